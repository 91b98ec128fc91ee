"""What the card of a block drafter says of time: rows of ``specdec bench drafts``, which were measured with the shipped model.

A training knows how many drafts are right, not what they cost; these rows do.
"""

from __future__ import annotations

import csv
from pathlib import Path

#: Rows of the checkout; a wheel has none, and makes no cards.
RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"

_TEMPLATE = Path(__file__).resolve().parent / "cards" / "time-of-blocks.md"


def section(results: Path, block_size: int, nodes: int) -> str:
    """The part of the card, from the newest file of a folder that has all rows; empty if none has.

    Args:
        results: folder with ``drafts-*.csv``.
        block_size: rows of a block.
        nodes: nodes of the tree.
    """
    files = sorted(results.glob("drafts-*.csv"), key=lambda path: path.stem[-10:], reverse=True)  # their dates
    return next(filter(None, (section_of(path, block_size, nodes) for path in files)), "")


def section_of(path: Path, block_size: int, nodes: int) -> str:
    """The same from one file: every number of drafts in a row, a tree of whole blocks, and plain decoding in its run."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if float(row["temperature"]) == 0]
    most = block_size - 1
    chains = {int(row["num_draft"]): row for row in rows if row["drafter"] == "dflash"}
    trees = [row for row in rows if row["drafter"] == "ddtree"]
    tree = next((row for row in trees if (int(row["num_draft"]), int(row["nodes"])) == (most, nodes)), None)
    plain = next((row for row in trees if row["num_draft"] == "0"), None)
    if sorted(chains) != list(range(block_size)) or tree is None or plain is None:
        return ""
    shown = [chains[number] for number in sorted(chains)]
    best = max(chains.values(), key=lambda row: float(row["tokens_per_s"]))

    def figures(column: str, digits: int) -> str:
        return " | ".join(f"{float(row[column]):.{digits}f}" for row in shown)

    def over(row: dict[str, str], base: dict[str, str]) -> str:  # of one drafter: others ran at another time
        return f"{float(row['tokens_per_s']) / float(base['tokens_per_s']):.2f}"

    loads = sorted(float(row["load"]) for row in (*shown, tree) if row["load"])
    return _TEMPLATE.read_text(encoding="utf-8").format(
        file=path.name,
        batch=tree["batch"],
        threads=tree["threads"],
        device=tree["device"],
        labels=" | ".join(map(str, sorted(chains))),
        rules="|".join(["---"] * len(chains)),
        tokens=figures("tokens_per_step", 2),
        times=figures("step_ms", 1),
        rates=figures("tokens_per_s", 0),
        rows=block_size,
        load=f", load {loads[0]:g} to {loads[-1]:g} at the start" if loads else "",
        best=best["num_draft"],
        enough=int(best["num_draft"]) + 1,
        best_rate=f"{float(best['tokens_per_s']):.0f}",
        one_ms=f"{float(chains[1]['step_ms']):.1f}",
        one_tokens=f"{float(chains[1]['tokens_per_step']):.2f}",
        most=most,
        most_ms=f"{float(chains[most]['step_ms']):.1f}",
        most_tokens=f"{float(chains[most]['tokens_per_step']):.2f}",
        most_over=over(chains[most], chains[0]),
        nodes=nodes,
        tree_tokens=f"{float(tree['tokens_per_step']):.2f}",
        tree_over=over(tree, plain),
        share=f"{100 * float(chains[most]['share_of_best']):.0f}",
    )
