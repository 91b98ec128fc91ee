"""The test itself: its tail, its threshold, and the power that it states, against scipy and against trials."""

import math

import pytest
import torch
from scipy import stats

from specdec_kernels.certify import detectable, g_test, quantile
from specdec_kernels.certify.statistics import upper_tail


@pytest.mark.parametrize("degrees", [1, 7, 200, 3000])
def test_tail_and_quantile_are_those_of_chi_square(degrees):
    for p in (0.5, 1e-3, 1e-8):
        limit = quantile(p, degrees)
        assert limit == pytest.approx(stats.chi2.isf(p, degrees), rel=1e-9)
        assert upper_tail(limit, degrees) == pytest.approx(p, rel=1e-6)


def test_the_statistic_is_the_likelihood_ratio():
    found, law = torch.tensor([480, 300, 220]), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    expected = stats.power_divergence(found.numpy(), (law * 1000).numpy(), lambda_="log-likelihood")
    made = g_test(found, law)
    assert (made.statistic, made.p_value) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert made.degrees == 2


def test_rare_cells_are_pooled_and_impossible_ones_are_not_forgiven():
    law = torch.tensor([0.899, 0.1, 0.0005, 0.0005, 0.0], dtype=torch.float64)
    assert g_test(torch.tensor([8990, 1000, 9, 1, 0]), law).degrees == 2
    assert g_test(torch.tensor([8990, 999, 5, 5, 1]), law).p_value == 0.0
    assert math.isinf(g_test(torch.tensor([8990, 999, 5, 5, 1]), law).statistic)


def test_too_few_counts_speak_against_nobody():
    """All cells are pooled to one, whose expected count is exact up to rounding."""
    for seed in range(20):
        law = torch.softmax(torch.randn(625, generator=torch.Generator().manual_seed(seed)).double(), 0)
        made = g_test(torch.bincount(torch.arange(9), minlength=625), law)
        assert made == (0.0, 0, 1.0) and made.statistic <= quantile(1e-6, made.degrees)


@pytest.mark.parametrize(("cells", "trials"), [(40, 20_000), (1000, 3_000)], ids=["usual", "rare"])
def test_p_values_are_uniform_where_nothing_is_wrong(cells, trials):
    law = torch.softmax(torch.randn(cells, generator=torch.Generator().manual_seed(1)).double(), 0)
    generator = torch.Generator().manual_seed(2)
    values = []
    for _ in range(400):
        drawn = torch.multinomial(law, trials, replacement=True, generator=generator)
        values.append(g_test(torch.bincount(drawn, minlength=cells), law).p_value)
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_rare_cells_are_gathered_until_they_are_expected_often_enough():
    law = torch.softmax(torch.randn(1000, generator=torch.Generator().manual_seed(1)).double(), 0)
    degrees = g_test((law * 3000).round().long(), law).degrees
    assert 3000 / 30 - 20 < degrees <= 3000 / 10  # groups of 10 to 30, besides the cells that are not rare
    assert g_test(torch.tensor([60, 60] + [1] * 80), torch.tensor([0.3, 0.3] + [0.005] * 80).double()).degrees == 5


def test_a_bias_of_the_stated_size_is_found_as_often_as_stated():
    """In the direction that is hardest to find: all cells off by the same share of themselves."""
    cells, trials = 64, 40_000
    law = torch.softmax(torch.randn(cells, generator=torch.Generator().manual_seed(1)).double(), 0)
    limit = quantile(1e-6, cells - 1)
    distance = detectable(trials, cells - 1, limit, power=0.9)
    order = law.argsort()
    sign = torch.ones(cells, dtype=torch.float64)
    sign[order[::2]] = -1
    up, down = law[sign > 0].sum(), law[sign < 0].sum()
    biased = law * (1 + sign * torch.where(sign > 0, distance / up, distance / down))
    assert 0.5 * float((biased - law).abs().sum()) == pytest.approx(distance)
    generator = torch.Generator().manual_seed(3)
    found = 0
    for _ in range(200):
        drawn = torch.multinomial(biased, trials, replacement=True, generator=generator)
        found += g_test(torch.bincount(drawn, minlength=cells), law).statistic > limit
    assert found >= 0.82 * 200
    assert detectable(4 * trials, cells - 1, limit) == pytest.approx(detectable(trials, cells - 1, limit) / 2, rel=1e-3)
