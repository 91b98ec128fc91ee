"""``specdec trace``: what happened in a generation, step by step, as one page for a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from .errors import UserError, user_errors
from .output import check_file, printable, write_file
from .trace_file import Trace, read_trace

_PARTS = Path(__file__).parent / "page"
# In this order they become one script.
_SCRIPTS = ("dom.js", "model.js", "tokens.js", "tree.js", "charts.js", "text.js", "main.js")
# JSON knows other ways to write what could end the element that it stands in.
_HARMLESS = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What specdec generate --trace wrote.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; none: beside the trace, with the ending .html.")
    ] = None,
) -> None:
    """Draw a trace: one page that holds everything and works without a network."""
    out = _default(file) if out is None else out
    check_file("--out", out)
    content = read_trace(file)
    with user_errors():
        if out.exists() and out.samefile(file):
            raise UserError(f"--out must name another file than the trace, got {out}")
    page = make_page(content)
    write_file("--out", out, page)
    steps, requests = sum(len(request["steps"]) for request in content["requests"]), len(content["requests"])
    what = f"{_count(steps, 'step')} of {_count(requests, 'request')}"
    print(printable(f"wrote {out}: {what}, {len(page) / 1e3:.0f} kB; open it in any browser"))


def make_page(content: Trace) -> str:
    """The page of a trace that has been checked: HTML in which style, script and data are inline.

    Nothing of the trace is markup. Its policy lets the page run its own script and nothing else, and load nothing.
    """
    script = "\n".join(("(() => {", '"use strict";', *(_part(name) for name in _SCRIPTS), "})();"))
    style = _part("page.css")
    model = re.split(r"[\\/]", str(content["info"].get("model") or "").rstrip("\\/"))[-1]
    title = f"{model}: a trace of specdec" if model else "A trace of specdec"
    values = {
        "policy": f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}",
        "title": html.escape("".join(c if c.isprintable() else "\ufffd" for c in title)),
        "style": style,
        "script": script,
        "data": json.dumps(content, separators=(",", ":"), allow_nan=False).translate(_HARMLESS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], _part("page.html"))


def _default(file: Path) -> Path:
    with user_errors():
        return file.with_suffix(".html")


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
