"""A machine that is never looked at, and the command line and the tiny models of the tests of the command line."""

import pytest
from cli.conftest import assets, one_thread, specdec  # noqa: F401

from bench.machine import Bandwidth
from bench.measured import Setting

MACHINE = {
    "device": "Any Processor (family 1 model 2)",
    "threads": 2,
    "load": 0.1,
    "torch": "2.13.0",
    "version": "0.1.0",
    "commit": "0123456789",
    "date": "2026-01-31",
}


def make_setting(**options):
    """One sample of each variant."""
    return Setting(MACHINE, Bandwidth(read=20.0, copy=15.0, reader="torch.sum"), repeats=1, budget_s=0.01, **options)


@pytest.fixture
def setting():
    return make_setting()
