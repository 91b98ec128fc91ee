"""Bad data has one bounded result on every backend (``bad_data.py``)."""

import pytest

from .bad_data import CHECKS

pytestmark = pytest.mark.op("attention_tree_attention", "kv_write")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_bad_data(backend, check):
    check(backend)
