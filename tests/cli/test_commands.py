"""Commands of two words beside a command that takes a word of its own."""

import pytest
import typer
import typer.testing

from specdec_kernels.cli import main
from specdec_kernels.cli.errors import UserError


@pytest.fixture
def run():
    """``run("bench", "serve")`` with commands that print what they got."""
    app = typer.Typer(cls=main._Commands, name="specdec", pretty_exceptions_enable=False)

    @app.command("bench")
    def bench(family: str = typer.Argument("all"), quick: bool = False) -> int:
        print("bench", family, quick)
        return 1

    @app.command("bench serve")
    def serve(tokens: int = 1) -> int:
        if tokens < 1:
            raise UserError("--tokens must be at least 1")
        print("serve", tokens)
        return 3

    return lambda *words: typer.testing.CliRunner().invoke(app, list(words), prog_name="specdec")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("bench",), 1, "bench all False"),
        (("bench", "verify", "--quick"), 1, "bench verify True"),
        (("bench", "--quick", "serve"), 1, "bench serve True"),
        (("bench", "serve"), 3, "serve 1"),
        (("bench", "serve", "--tokens", "7"), 3, "serve 7"),
    ],
)
def test_the_command_of_two_words_goes_first(run, words, code, said):
    done = run(*words)
    assert (done.exit_code, done.stdout.strip()) == (code, said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bench", "serve", "--tokens", "0"), "specdec bench serve: --tokens must be at least 1"),
        (("bench", "serve", "--token"), "specdec bench serve: no such option: --token"),
        (("bench", "serve", "more"), "specdec bench serve: got unexpected extra argument"),
        (("bench", "verify", "more"), "specdec bench: got unexpected extra argument"),
        (("serve",), "specdec: no such command 'serve'"),
    ],
)
def test_errors_name_both_words(run, words, said):
    done = run(*words)
    assert done.exit_code == 2 and not done.stdout
    assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1


def test_the_help_is_that_of_the_command(run):
    assert "--tokens" in run("bench", "serve", "--help").stdout
    assert "--quick" in run("bench", "--help").stdout
    assert "bench serve" in run("--help").stdout
