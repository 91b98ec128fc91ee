"""What README and docs tell to type exists: targets of the Makefile, commands and their options; and links lead somewhere."""

import re
import shlex

import pytest
import typer

import specdec_kernels as sk
from python_ref.training.__main__ import _parser
from specdec_kernels import _library
from specdec_kernels._schema import BY_NAME, OPS
from specdec_kernels.cli.main import app

from .pages import PAGES, ROOT, blocks, read, spans, table

COMMANDS = typer.main.get_command(app).commands
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
TYPED = ("make", "specdec", "python", "pip", "echo")


def lines():
    """``(page, command line)`` of every shell block, and of code in sentences that begins like one."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                yield from ((page, line) for line in block.text.splitlines() if line.strip())
        yield from ((page, span) for span in spans(page) if span.split()[0] in TYPED and " " in span)


def words_of(line):
    """The words of each command of a pipe, without comments and settings of the environment."""
    words = shlex.split(line, comments=True)
    while "|" in words:
        yield words[: words.index("|")]
        words = words[words.index("|") + 1 :]
    yield words


def check_specdec(words):
    size = 2 if " ".join(words[:2]) in COMMANDS else 1
    command = COMMANDS[" ".join(words[:size])]
    options = {name: option for option in command.params for name in option.opts}
    rest = iter(words[size:])
    for word in rest:
        if word in ("--help", "-h"):
            continue
        if word.startswith("-"):
            assert word in options, f"specdec {words[0]} has no option {word}"
            if not getattr(options[word], "is_flag", False):
                next(rest)
        else:
            # Only `bench` takes a word: what to measure.
            assert any(option.param_type_name == "argument" for option in command.params), word


def check(words):
    program, *rest = words
    if program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS, rest
    elif program == "specdec":
        check_specdec(rest)
    elif program == "python":
        assert rest[:2] == ["-m", "python_ref.training"], rest
        _parser().parse_args(rest[2:])
    else:
        assert program == "echo" or (program, rest[0]) == ("pip", "install"), words


@pytest.mark.parametrize(("page", "line"), sorted(set(lines())))
def test_commands_exist(page, line):
    for words in words_of(line):
        check(words)


def test_the_two_commands_are_in_the_readme():
    typed = {line.split("  ")[0] for page, line in lines() if page == "README.md"}
    assert {"make demo", "make test"} <= typed


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page):
    """Python and shell blocks are checked; anything else is a picture."""
    assert {block.language for block in blocks(page)} <= {"python", "sh", ""}
    for block in blocks(page):
        if not block.language:
            assert not re.search(r"^(make|specdec|pip|python|import|from) ", block.text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        place = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert place.exists(), target
        headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE) if anchor else []
        named = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in named, target
    for span in re.findall(r"docs/[\w-]+\.md", read(page)):
        assert (ROOT / span).is_file(), span


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    for span in spans(page):
        if re.fullmatch(r"(python_ref|specdec_kernels|csrc|tests|bench|docs)/[\w./-]+", span):
            assert (ROOT / span).exists(), span


def test_the_support_matrix_is_that_of_the_installation():
    rows = {
        row["op"].replace(".", "_", 1): row for row in table("README.md", "op", "cpu", "reference", "cuda", "triton")
    }
    assert set(rows) == {op.name for op in OPS}
    for name, row in rows.items():
        reasons = sk.available_backends(name)
        assert set(row.values()) - {row["op"]} <= {"yes", "-"}
        assert (row["triton"] == "yes") == ("triton" in BY_NAME[name].backends), name
        for backend in ("cpu", "reference"):
            assert (row[backend] == "yes") == (reasons[backend] is None), (name, backend)
        if _library.MODULES["_C_cuda"] is None:  # a machine without an nvcc builds none
            kernel = "cuda" in BY_NAME[name].backends and _library.has_kernel(name, "CUDA")
            assert (row["cuda"] == "yes") == kernel, name


def test_every_family_has_a_page():
    for family in {op.family for op in OPS}:
        page = read(f"docs/{family}.md")
        assert page.startswith(f"# The {family} family\n")
        for op in OPS:
            if op.family == family:
                assert re.search(rf"`{op.function}[`(]", page), op.name


def test_every_variable_of_the_environment_is_documented():
    known = {row["variable"] for row in table("CONTRIBUTING.md", "variable", "values", "effect")}
    read_by = re.compile(r"""(?:getenv\(|environ(?:\.get\(|\[))["'](SPECDEC_\w+|MAX_JOBS)["']""")
    used = set()
    for folder in ("specdec_kernels", "python_ref", "csrc", "bench", "."):
        paths = (ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*")
        for path in paths:
            if path.suffix in (".py", ".cpp", ".h"):
                used |= set(read_by.findall(path.read_text(encoding="utf-8")))
    assert {"SPECDEC_BACKEND", "SPECDEC_DEBUG", "SPECDEC_CPU_ISA", "SPECDEC_CUDA"} <= used <= known


def test_variables_of_the_makefile_exist():
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"\b[A-Z]+_OPTIONS\b", read("CONTRIBUTING.md")):
        assert f"$({name})" in makefile
