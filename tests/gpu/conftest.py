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
            reason = calls.why_not(item.callspec.params["op"], item.callspec.params["backend"])
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
