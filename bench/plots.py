"""Pictures of the rows of a GPU: ``python -m bench.plots FOLDER OUT`` reads the CSV files of a folder and writes PNG files.

Needs matplotlib. Pictures are made from rows when they are wanted; the rows are what is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .rows import read_csv

Line = tuple[list[float], list[float]]


def lines(rows: list[dict[str, str]]) -> dict[str, dict[str, Line]]:
    """By op and case, and by variant: share of the copy bandwidth over needed bytes, in ascending order.

    Of the rows on normal logits with half of the drafts accepted, in all shapes.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        shown = row["family"] == "verify" and row["accepted"] == "half" and row["data"] == "normal"
        if not shown or not row["share_of_copy"]:
            continue
        title = f"{row['op'].replace('_', '.', 1)}, {row['case']}"
        points = found.setdefault(title, {}).setdefault(row["variant"], [])
        points.append((float(row["needed_bytes"]), float(row["share_of_copy"])))
    return {
        title: {
            name: ([x for x, _ in sorted(points)], [y for _, y in sorted(points)]) for name, points in variants.items()
        }
        for title, variants in found.items()
    }


def main(folder: str, out: str) -> int:
    """Draw ``verify.png``; 1 if there are no rows."""
    rows: list[dict[str, str]] = []
    for path in sorted(Path(folder).glob("*.csv")):
        try:
            rows += read_csv(path)
        except ValueError:  # another table
            continue
    drawn = lines(rows)
    if not drawn:
        print("there are no rows to be drawn")
        return 1
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(drawn), 1, figsize=(7, 3 * len(drawn)), squeeze=False)
    for (title, variants), axis in zip(drawn.items(), axes[:, 0], strict=True):
        for name, (needed, share) in sorted(variants.items()):
            axis.plot([x / 1e6 for x in needed], share, marker="o", label=name)
        axis.set(title=title, xscale="log", xlabel="needed MB", ylabel="share of copy bandwidth", ylim=(0, None))
        axis.grid(True, alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(Path(out) / "verify.png", dpi=110)
    print("verify.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
