"""Lossy rules, as the fused ops decide: their texts are off, and a token is off by as much as they say."""

import pytest
import torch
from agreement.cases import Shape
from agreement.compare import device_of
from oracle.enumeration import random_table

import specdec_kernels as sk

from .test_laws import trials_on
from .texts import BATCH, FOUND, SOUND, Case, Decoding, check, p_value

P3, Q3 = random_table(3, 1), random_table(3, 2)

OFF = {
    "a threshold of one draft": ("threshold", {"single": 0.4}),
    "a threshold of all drafts": ("threshold", {"accumulated": 0.9}),
    "typical": ("typical", {}),
    "synthetic": ("synthetic", {"rates": torch.tensor([0.5])}),
}


@pytest.mark.parametrize("name", OFF)
def test_lossy_settings_are_found(name):
    rule, options = OFF[name]
    case = Case(P3, Q3, rule=rule, draft_settings={"temperature": 0.0}, options=options)
    assert check(Decoding(case), 100_000)[0] < FOUND


ROW = torch.tensor([0.3, -0.4, 1.1, 0.0, -1.5, 0.6])
CHILDREN = (4, 0, 4, 3)  # the second 4 does not count
LIMITS = [(1.0, 1.0), (1.0, 0.6), (1.0, 0.3), (0.15, 1.0), (0.1, 0.8)]


def law_of_thresholds(p, single, accumulated):
    """Each draft has a part of the coin's range; what is left is drawn without them."""
    law, left, total, taken = torch.zeros_like(p), p.clone(), 0.0, 0.0
    for token in dict.fromkeys(CHILDREN):
        total += float(p[token])
        upto = 1.0 if float(p[token]) >= single else min(total / accumulated, 1.0)
        law[token] = max(upto - taken, 0.0)
        taken, left[token] = max(upto, taken), 0.0
    return law + (1 - taken) * left / left.sum()


def first_tokens(backend, trials, single, accumulated):
    """How often each token comes first, and the divergence, which is the same in all trials."""
    device, found = device_of(backend), torch.zeros(ROW.numel(), dtype=torch.int64)
    shape, width = Shape([-1, *[0] * len(CHILDREN)]), len(CHILDREN) + 1
    said = set()
    for first in range(0, trials, BATCH):
        batch = min(BATCH, trials - first)
        columns = [torch.tensor(column, dtype=torch.int32) for column in (shape.parents, shape.depths, shape.ends)]
        tokens = torch.tensor([0, *CHILDREN]).repeat(batch)
        offsets = torch.arange(batch + 1, dtype=torch.int32) * width
        fields = [field.to(device) for field in (offsets, tokens, *(column.repeat(batch) for column in columns))]
        sampling = sk.Sampling.of(batch, seed=list(range(first, first + batch)), device=device)
        divergence = torch.zeros(batch, 2, device=device)
        result = sk.verify.threshold(
            sk.TokenTree(*fields, max_nodes=width, max_depth=1),
            ROW.view(1, -1).to(device),
            sampling,
            torch.full((batch,), 9, device=device),
            single,
            accumulated,
            rows=torch.zeros_like(fields[1]),
            divergence=divergence,
            backend=backend,
        )
        found += torch.bincount(result.tokens[:, 0].cpu(), minlength=ROW.numel())
        said |= set(divergence[:, 0].tolist())
    assert len(said) == 1
    return found, said.pop()


@pytest.mark.op("verify_threshold")
@pytest.mark.parametrize(("single", "accumulated"), LIMITS)
def test_a_token_is_as_far_off_as_the_rule_says(backend, single, accumulated):
    trials = trials_on(backend, 200_000)
    found, said = first_tokens(backend, trials, single, accumulated)
    p = ROW.double().softmax(0)
    law = law_of_thresholds(p, single, accumulated)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float((law - p).clamp(min=0).sum()) == pytest.approx(said, abs=1e-6)
    assert (said > 0.05) == ((single, accumulated) != (1.0, 1.0))
    assert p_value(found, law) > SOUND
    likelier = law > p + 1e-9  # the distance, as it shows in the trials
    seen = float((found.double() / trials - p)[likelier].sum())
    assert seen == pytest.approx(said, abs=2.5 / trials**0.5)
