"""Text as it comes, and what is told meanwhile."""

import io
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from python_ref.training.corpus import SourceFile
from python_ref.training.tokenizer import train_tokenizer
from specdec_kernels.cli import output
from specdec_kernels.cli.output import printable, progress, working, write_text
from specdec_kernels.cli.text import TextStream

TOKENIZER = train_tokenizer([SourceFile("a.py", "def f(x):\n    return x\n" * 9)], 280)


def stream(tokens, sizes=(1,)):
    """The pieces of a text whose tokens come in runs of the given sizes."""
    text, pieces, place = TextStream(TOKENIZER), [], 0
    while place < len(tokens):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text.push(tokens[place : place + size]))
        place += size
    return [*pieces, text.finish()]


def test_a_character_of_several_tokens_comes_whole():
    tokens = TOKENIZER.encode("x\U0001f40dy\u00fc").ids
    pieces = stream(tokens)
    assert "".join(pieces) == "x\U0001f40dy\u00fc"
    assert [piece for piece in pieces if piece] == ["x", "\U0001f40d", "y", "\u00fc"]
    assert pieces.count("") == len(tokens) + 1 - 4, "nothing is given before it is certain"


def test_a_text_that_ends_within_a_character():
    tokens = TOKENIZER.encode("a\U0001f40d").ids[:-1]
    pieces = stream(tokens)
    assert "".join(pieces) == TOKENIZER.decode(tokens) and pieces[-1]


@settings(max_examples=60)
@given(st.text(), st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any))
def test_pieces_are_the_text(text, sizes):
    tokens = TOKENIZER.encode(text).ids
    assert "".join(stream(tokens, sizes)) == text


@settings(max_examples=60)
@given(st.lists(st.integers(1, 279), max_size=30), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_pieces_of_anything_a_model_may_say(tokens, sizes):
    """Bytes that are no characters may show as more or fewer marks, and nothing else is lost or added."""
    mark = "\ufffd"
    pieces = "".join(stream(tokens, sizes))
    assert pieces.replace(mark, "") == TOKENIZER.decode(tokens).replace(mark, "")


def test_special_tokens_are_not_text():
    tokens = [0, *TOKENIZER.encode("def").ids, 0]
    assert "".join(stream(tokens)) == "def"


def test_control_characters_do_not_reach_a_terminal(monkeypatch):
    assert printable("a\x1b[2Jb\r\n\tc\x07\x9b") == "a[2Jb\n\tc"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for kind, expected in ((Terminal, "a[0m"), (io.StringIO, "a\x1b[0m")):
        target = kind()
        monkeypatch.setattr(sys, "stdout", target)
        write_text("a\x1b[0m")
        write_text("")
        assert target.getvalue() == expected


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(output, "_PATIENCE", 0.05)
    monkeypatch.setattr(output, "_SECONDS_BETWEEN_LINES", 0.05)


def test_long_work_is_told_of(impatient, capsys):
    with working("reading"):
        time.sleep(0.3)
    with working("blinking"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().err == "reading ...\n"


def test_progress_in_a_log(impatient, capsys):
    with progress("tokens", 100) as report:
        report(1)
        time.sleep(0.06)
        report(40)
        report(41)
        time.sleep(0.06)
        report(100)
    assert capsys.readouterr().err == "tokens: 40 of 100\n", "a line from time to time, and none for the end"
