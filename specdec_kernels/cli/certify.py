"""``specdec certify``: test that verification keeps the target's law, on any backend, and of other packages' functions."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from .. import available_backends
from .. import certify as proof
from .._backend import BACKENDS, device_of
from ..certify import Case, Certificate, Peer
from . import engine, output
from .errors import UserError, user_errors


def certify(
    rule: Annotated[str, typer.Option(help=f"The rule: {', '.join(proof.RULES)}, or all.")] = "all",
    backend: Annotated[str, typer.Option(help="The backend of our ops: cpu, cuda, triton or reference.")] = "cpu",
    trials: Annotated[
        str, typer.Option(metavar="N", help="Texts per case, such as 1e6; else as many as take some seconds.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the models and the texts.")] = 0,
    peers: Annotated[bool, typer.Option(help="Also test functions of other packages that are installed.")] = True,
    json: output.JsonOption = None,
) -> int:
    """Test that verification keeps the target's law.

    Small random models decode many texts, at least three steps each; the joint law of their first tokens is held against the
    exact one. The exit code is 1 if a test fails.
    """
    engine.check_choice("--rule", rule, (*proof.RULES, "all"))
    engine.check_choice("--backend", backend, BACKENDS)
    output.check_json(json)
    count = _number(trials)
    rules = proof.RULES if rule == "all" else (rule,)
    for op in ("sample_draft", "sample_sample", "verify_match", "verify_rejection", "verify_threshold"):
        if reason := available_backends(op)[backend]:
            raise UserError(f"--backend must be one that is there, got {backend!r}: {reason}")
    asked = [peer for peer in proof.PEERS if peers and peer.rule in rules]
    missing = {peer.op: reason for peer in asked if (reason := peer.missing())}
    ours = proof.exact_cases_of if backend == "reference" else proof.cases_of
    with user_errors():
        plan: list[tuple[Peer | None, str, list[Case]]] = [(None, name, ours(name, seed)) for name in rules]
        for other in asked:
            if other.op not in missing:
                # What they take: no huge vocabulary, and no nodes without a token, as drafters that stop leave them.
                known = proof.cases_of(other.rule, seed, not other.trees)
                cases = [case for case in known if case.vocab < 50_000 and not case.stops]
                plan.append((other, other.rule, cases))
    tests = sum(len(cases) for _, _, cases in plan)
    console = Console(soft_wrap=True, highlight=False)
    alarm = f"{proof.FALSE_ALARM:g}"
    console.print(
        f"{tests} tests on backend {backend}; if nothing is wrong, one of them fails with a probability of about {alarm}"
    )
    results: list[Certificate] = []
    broken: list[dict[str, object]] = []
    with output.progress("tested", tests) as done:
        for peer, name, cases in plan:
            given: dict[str, Any] = {"cases": cases, "seed": seed, "tests": tests}
            if peer is None:
                with user_errors():
                    for one in proof.certify(
                        None, name, backend=backend, device=device_of(backend), trials=count, **given
                    ):
                        results.append(one)
                        done(len(results))
                continue
            torch.manual_seed(seed % 2**63)  # their noise
            most = peer.trials if count is None else min(count, peer.trials)
            try:
                for one in proof.certify(peer.verifier, name, device=peer.device, trials=most, op=peer.op, **given):
                    results.append(one)
                    done(len(results))
            except Exception as error:  # whatever a foreign function raises; the others go on
                named: dict[str, object] = {"op": peer.op, "rule": peer.rule, "backend": peer.device}
                broken.append(named | {"passed": False, "error": f"{type(error).__name__}: {error}"})
    console.print(_table(results))
    console.print(_NOTE)
    for peer, _, _ in plan:
        if peer is not None and count is not None and count > peer.trials:
            console.print(f"{peer.op}: {peer.trials:,} texts, which are all that its speed allows")
    for op, reason in missing.items():
        console.print(f"not tested: {op}, {reason}")
    for found in broken:
        console.print(f"failed: {found['op']} raised {found['error']}")
    failed = sum(not one.passed for one in results) + len(broken)
    console.print(f"{failed} of {len(results) + len(broken)} tests failed" if failed else "no test failed")
    output.write_json(json, [_finite(one._asdict()) for one in results] + broken)
    return 1 if failed else 0


def _finite(fields: dict[str, object]) -> dict[str, object]:
    """A certificate as JSON has it: without NaN and infinity."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in fields.items()}


def _number(text: str) -> int | None:
    if not text:
        return None
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = 0
    if not 1 <= value <= 10**12:
        raise UserError(f"--trials must be a number from 1 to 1e12, got {text!r}")
    return value


#: What the columns mean.
_NOTE = """
texts  how many were decoded (reference: branches of an exact enumeration, whose p is 1 or 0)
p      how probable such counts are if nothing is wrong (G-test)
finds  the bias, as total-variation distance between joint laws of the counted outcomes (of a large vocabulary those
       are bins of tokens), that the test finds with probability 0.99
"""


def _table(results: list[Certificate]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rule or function")
    table.add_column("case")
    for name in ("texts", "p", "finds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in results:
        ours = one.op.startswith(("verify.", "sample."))
        name = one.rule if ours else one.op.replace(".", ". ", 1)
        finds = f"{one.finds:.3f}" if one.degrees else f"{one.finds:.0e}"
        verdict = "passed" if one.passed else "[bold red]FAILED[/]"
        table.add_row(name, one.case, f"{one.trials:,}", f"{one.p_value:.3g}", finds, verdict)
    return table
