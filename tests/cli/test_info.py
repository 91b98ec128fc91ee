"""``specdec info``, ``--help`` and ``--version``."""

import json
import os
import re

import pytest
import torch
import typer

import specdec_kernels as sk
from specdec_kernels import _library
from specdec_kernels._schema import OPS
from specdec_kernels.cli import machine
from specdec_kernels.cli.main import app

COMMANDS = typer.main.get_command(app).commands
PROMISED = {
    "info": ["--json"],
    "demo": ["--quick", "--json"],
    "generate": (
        "--model --drafter --prompt --prompt-file --max-new-tokens --temperature --top-k --top-p --min-p --seed --num-draft "
        "--backend --device --dtype --batch-file --stats --json"
    ).split(),
    "bench": ["--json"],
    "bench serve": "--drafter --max-batch --rate --requests --max-new-tokens --quick --json --csv --plot".split(),
}


def test_facts(specdec, tmp_path):
    path = tmp_path / "info.json"
    result = specdec("info", "--json", path)
    assert result.exit_code == 0
    facts = json.loads(path.read_text())
    assert set(facts) == {"versions", "packages", "modules", "cpu", "gpus", "environment", "ops"}
    assert facts["versions"]["specdec_kernels"] == sk.__version__ and facts["versions"]["torch"] == torch.__version__
    assert facts["cpu"]["instruction_set"] in ("baseline", "avx2", "avx512")
    assert facts["cpu"]["threads"] == torch.get_num_threads() and facts["cpu"]["cores"] >= 1
    assert set(facts["modules"]) == {"_C", "_C_cuda"}
    for module in facts["modules"].values():
        assert (module["file"] is None) == (module["reason"] is not None)
    assert facts["ops"] == {op.name: sk.available_backends(op.name) for op in OPS}
    assert len(facts["gpus"]) == torch.cuda.device_count()


def test_matrix_names_a_reason_for_every_gap(specdec):
    result = specdec("info")
    said = result.stdout
    legend = dict(re.findall(r"^(\d+)\s+(.*(?:\n(?!\d).*)*)", said[said.index("\ntree.") :], re.MULTILINE))
    reasons = {number: " ".join(text.split()) for number, text in legend.items()}
    for op in OPS:
        (line,) = [line for line in said.splitlines() if line.startswith(op.name.replace("_", ".", 1) + " ")]
        for cell, reason in zip(line.split()[1:], sk.available_backends(op.name).values(), strict=True):
            assert cell == "yes" if reason is None else reasons[cell] == reason, (op.name, cell)


def test_a_module_that_was_not_built_is_explained(specdec, monkeypatch):
    monkeypatch.setitem(_library.MODULES, "_C_cuda", "not built")
    monkeypatch.setattr(_library, "module_path", {"_C": "_C.abi3.so"}.get)
    assert re.search(r"_C_cuda\s+not built", specdec("info").stdout)


def test_our_variables_are_shown(specdec, monkeypatch):
    monkeypatch.setenv("SPECDEC_TEST_ONLY", "seven")
    assert re.search(r"SPECDEC_TEST_ONLY\s+seven", specdec("info").stdout)
    assert os.environ["SPECDEC_TEST_ONLY"] == "seven"


def test_instruction_set_by_features(monkeypatch):
    """What the module would choose; where it is loaded it is asked instead."""
    monkeypatch.setattr(machine, "module_path", lambda module: None)
    monkeypatch.delenv("SPECDEC_CPU_ISA", raising=False)
    avx2 = {"avx2", "fma", "f16c"}
    assert machine.instruction_set(set()) == machine.instruction_set(avx2 - {"fma"}) == "baseline"
    assert machine.instruction_set(avx2) == "avx2"
    avx512 = avx2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    assert machine.instruction_set(avx512) == "avx512"
    monkeypatch.setenv("SPECDEC_CPU_ISA", "avx2")
    assert machine.instruction_set(avx512) == "avx2"
    assert machine.instruction_set(set()) == "baseline", "it lowers, and never raises"


@pytest.mark.parametrize("command", PROMISED)
def test_help_tells_of_every_option(specdec, command):
    result = specdec(*command.split(), "--help")
    assert result.exit_code == 0 and result.stderr == ""
    options = {name for parameter in COMMANDS[command].params for name in parameter.opts}
    assert set(PROMISED[command]) <= options
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


def test_help_of_the_whole(specdec):
    for arguments in ((), ("--help",), ("-h",)):
        result = specdec(*arguments)
        assert result.exit_code == 0
        for command in PROMISED:
            assert command in result.stdout
    assert specdec("--version").stdout == f"specdec {sk.__version__}\n"


def test_interruption(specdec, monkeypatch):
    from specdec_kernels.cli import info

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "collect", interrupted)
    result = specdec("info")
    assert result.exit_code == 130 and "Traceback" not in result.stderr
