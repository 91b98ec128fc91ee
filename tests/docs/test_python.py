"""Every Python block of README and docs runs, and prints what its comments say."""

import contextlib
import io
import re

import pytest

from .pages import PAGES, blocks

_PRINT = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_blocks_run_in_order_and_print_what_they_say(page):
    names = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python":
            continue
        # Blank lines before it, so that an error names the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, page, "exec")
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            exec(code, names)
        assert block.text.count("print(") == len(_PRINT.findall(block.text)), "a print says what it prints"
        assert written.getvalue().splitlines() == _PRINT.findall(block.text), f"{page}, line {block.line}"


def test_the_pages_that_promise_code_have_it():
    assert {"README.md", "docs/verify.md", "docs/decoding.md", "docs/adding-a-drafter.md"} <= set(WITH_PYTHON)
    (example,) = [block for block in blocks("README.md") if block.language == "python"]
    assert "sk.verify.match(" in example.text and len(example.text.splitlines()) <= 20
