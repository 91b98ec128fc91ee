"""Tests that need a GPU, or a backend that is not there, are deselected, and the run says why."""

from collections import Counter
from pathlib import Path

from . import calls

_HERE = Path(__file__).parent
_REASONS = Counter()


def pytest_collection_modifyitems(config, items):
    kept, late = [], []
    for item in items:
        reason = None
        if item.path.parent == _HERE and item.path.name == "test_device.py":
            parameters = item.callspec.params
            ops = [parameters["op"]] if "op" in parameters else calls.steps.OPS  # a whole step
            reasons = (calls.why_not(op, parameters["backend"]) for op in ops)
            reason = next((found for found in reasons if found is not None), None)
        if reason is None:
            kept.append(item)
        else:
            late.append(item)
            _REASONS[reason] += 1
    if late:
        config.hook.pytest_deselected(items=late)
        items[:] = kept


def pytest_terminal_summary(terminalreporter):
    for reason, count in sorted(_REASONS.items()):
        terminalreporter.write_line(f"tests/gpu: {count} tests deselected: {reason}")
