"""A pytest plugin for the runs of ``make gpu-check``: nothing that cannot be, and nothing twice.

Ops that no GPU serves (``linear``) have no tests on ``cuda`` and ``triton``. A run on ``triton`` alone takes the tests that
take a backend; the others are the same as on ``cuda``.
"""

from __future__ import annotations

from typing import Any

import pytest

DEVICES = ("cuda", "triton")


def _ops(item: pytest.Item, parameters: dict[str, Any]) -> set[str]:
    named = {name for marker in item.iter_markers("op") for name in marker.args}
    return named | ({parameters["op"]} if isinstance(parameters.get("op"), str) else set())


def wanted(item: pytest.Item, chosen: list[str]) -> bool:
    """Whether a test belongs to a run on these backends."""
    from specdec_kernels._schema import BY_NAME

    parameters = getattr(getattr(item, "callspec", None), "params", {})
    backend = parameters.get("backend")
    if backend is not None and not isinstance(backend, str):
        return False  # no backend of the run can serve it
    if backend in DEVICES:
        possible = all(backend in BY_NAME[op].backends for op in _ops(item, parameters) if op in BY_NAME)
        return possible and backend in chosen
    return chosen != ["triton"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what does not belong to the run."""
    chosen = config.getoption("--backend") or []
    if not set(chosen) & set(DEVICES):
        return
    late = [item for item in items if not wanted(item, chosen)]
    if late:
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if item not in set(late)]
