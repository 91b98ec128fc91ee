"""``tree.optimal`` against all shapes of small trees, and ``draft.expand`` against its definition in plain Python."""

import itertools
import math
from functools import cache

import pytest
import torch

from python_ref.ops import draft, tree
from python_ref.types import Expansion

from .definition import as_float32, clean
from .trees import relation, seeded

INF = math.inf


@cache
def shapes(count, ranks):
    """All ordered trees of so many nodes with at most ``ranks`` children each, as nested tuples."""
    if count == 1:
        return [()]
    found = []
    for children in range(1, min(ranks, count - 1) + 1):
        for cuts in itertools.combinations(range(1, count - 1), children - 1):
            sizes = [b - a for a, b in zip((0, *cuts), (*cuts, count - 1), strict=True)]
            found += itertools.product(*(shapes(size, ranks) for size in sizes))
    return found


def value_of(shape, law, depth=0):
    """Expected tokens, and the depth of the tree."""
    row = law[depth] if depth < len(law) else []
    if len(shape) > len(row):
        return -INF, 0
    below = [value_of(child, law, depth + 1) for child in shape]
    total = 1.0 + sum(p * value for p, (value, _) in zip(row, below, strict=False))
    return total, 1 + max((deep for _, deep in below), default=-1)


def best_rate(law, max_nodes, max_depth, time_of, draft_cost):
    found = []
    for count in range(1, max_nodes + 1):
        for shape in shapes(count, max((len(row) for row in law), default=1) or 1):
            value, depth = value_of(shape, law)
            if value > -INF and depth <= max_depth:
                found.append(value / (time_of(count) + draft_cost * depth))
    return max(found)


def check(made, law, time_of, draft_cost):
    """A shape is a tree, and is worth what it says."""
    lines = relation(made.parents)
    assert made.depths == [len(line) - 1 for line in lines]
    assert made.ends == [max(i for i, line in enumerate(lines) if j in line) + 1 for j in range(len(lines))]
    for node in range(len(lines)):
        children = [made.ranks[c] for c, parent in enumerate(made.parents) if parent == node]
        assert children == list(range(len(children)))
    products = [math.prod(law[made.depths[v] - 1][made.ranks[v]] for v in line[1:]) for line in lines]
    assert made.expected == pytest.approx(sum(products), rel=1e-12)
    time = time_of(len(lines)) + draft_cost * max(made.depths)
    assert made.rate == pytest.approx(sum(products) / time, rel=1e-12)


def random_acceptance(numbers, ranks, ordered):
    cuts = sorted(numbers.choice((0, 1, 2, 3, 5, 6, 8)) / 8 for _ in range(ranks))
    parts = [b - a for a, b in zip((0, *cuts), cuts, strict=False)]
    numbers.shuffle(parts)
    return sorted(parts, reverse=True) if ordered else parts


def planner_cases(count):
    for seed in range(count):
        numbers = seeded(seed)
        ranks, max_nodes = numbers.randint(0, 3), numbers.randint(1, 7)
        depth = numbers.choice((None, 0, 1, 2, 3, 9))
        draft_cost = numbers.choice((0.0, 0.0, 0.1, 0.5))
        cost = numbers.choice((None, lambda n: 1 + 0.05 * n, [1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 9.0]))
        ordered = numbers.random() < 0.5
        if numbers.random() < 0.5:
            acceptance = [random_acceptance(numbers, ranks, ordered) for _ in range(numbers.randint(1, 4))]
            law = acceptance
        else:
            acceptance = random_acceptance(numbers, ranks, ordered) or [0.0]
            law = [acceptance] * (max_nodes - 1)
        time_of = (lambda n: 1.0) if cost is None else cost if callable(cost) else cost.__getitem__
        if cost is not None and not callable(cost):
            time_of = lambda n, cost=cost: cost[n - 1]  # noqa: E731
        options = {"max_depth": depth, "cost": cost, "draft_cost": draft_cost}
        limit = min(len(law), 99 if depth is None else depth)
        yield acceptance, law, max_nodes, options, limit, time_of


def test_optimal_is_the_best_of_all_small_trees():
    for acceptance, law, max_nodes, options, limit, time_of in planner_cases(200):
        made = tree.optimal(acceptance, max_nodes, **options)
        check(made, law, time_of, options["draft_cost"])
        assert len(made.parents) <= max_nodes and max(made.depths) <= limit
        best = best_rate(law, max_nodes, limit, time_of, options["draft_cost"])
        assert made.rate == pytest.approx(best, rel=1e-12)


# ---- draft.expand -----------------------------------------------------------------------------------------------------


def expanded(logits, scores, num, beams, there=None):
    """By the definition; scores in double precision."""
    width = 1 if scores is None else len(scores[0]) if scores else 1
    batch = len(logits) // width if width else len(scores)
    made = []
    for b in range(batch):
        tokens, reached = [], []
        for w in range(width):
            row = clean(logits[b * width + w])
            above = 0.0 if scores is None else scores[b][w]
            best = sorted((x for x in range(len(row)) if row[x] > -INF), key=lambda x: (-row[x], x))[:num]
            if math.isnan(above) or above == -INF:
                best = []
            top = max(row)
            total = math.log(math.fsum(math.exp(v - top) for v in row if v > -INF)) if best else 0.0
            for x in [*best, *[None] * (num - len(best))]:
                token = -1 if x is None else x if there is None else there[x]
                score = -INF if token < 0 else above + (row[x] - top - total)
                tokens.append(-1 if score == -INF else token)
                reached.append(score)
        order = sorted((c for c in range(len(reached)) if reached[c] > -INF), key=lambda c: (-reached[c], c))[:beams]
        made.append((tokens, reached, [*order, *[-1] * (beams - len(order))]))
    return made


def expand_case(seed):
    numbers, generator = seeded(seed), torch.Generator().manual_seed(seed)
    batch, width, vocab = numbers.randint(0, 3), numbers.randint(1, 4), numbers.randint(1, 9)
    logits = torch.randn(batch * width, vocab, generator=generator) * numbers.choice((1.0, 9.0))
    if numbers.random() < 0.5:
        logits = logits.round()
    for bad in (-INF, math.nan, INF):
        if numbers.random() < 0.3:
            logits[torch.rand(logits.shape, generator=generator) < 0.3] = bad
    scores = -torch.rand(batch, width, generator=generator)
    for bad in (-INF, math.nan):
        if numbers.random() < 0.3:
            scores[torch.rand(scores.shape, generator=generator) < 0.3] = bad
    there = torch.randperm(vocab, generator=generator) * 7 if numbers.random() < 0.5 else None
    if there is not None and numbers.random() < 0.3:
        there[0] = -1
    return (
        logits,
        scores if width > 1 or numbers.random() < 0.5 else None,
        numbers.randint(1, 5),
        numbers.randint(1, 6),
        there,
    )


def test_expand_is_its_definition():
    near = 0
    for seed in range(600):
        logits, scores, num, beams, there = expand_case(seed)
        batch = logits.shape[0] if scores is None else scores.shape[0]
        margin = torch.full((batch,), 77.0, dtype=torch.float64)
        made = draft.expand(logits, scores, num, beams, draft_to_target=there, margin=margin)
        wanted = expanded(
            logits.tolist(),
            None if scores is None else scores.tolist(),
            num,
            beams,
            None if there is None else there.tolist(),
        )
        assert (
            made.tokens.dtype == torch.int64 and made.scores.dtype == torch.float32 and made.beams.dtype == torch.int32
        )
        assert len(wanted) == batch
        for b, (tokens, reached, columns) in enumerate(wanted):
            assert made.tokens[b].tolist() == tokens
            assert made.scores[b].tolist() == pytest.approx(
                [as_float32(x) if x > -INF else x for x in reached], rel=1e-6
            )
            near += bool(margin[b] < 1e-5)
            if margin[b] >= 1e-12:
                assert made.beams[b].tolist() == columns
    assert near < 20


def test_the_margin_is_that_of_the_closest_pair():
    scores = torch.tensor([[0.0, -1e-6], [0.0, -1.0]])
    margin = torch.empty(2, dtype=torch.float64)
    draft.expand(torch.zeros(4, 2), scores, 1, 1, margin=margin)
    assert float(margin[0]) == pytest.approx(1e-6, rel=0.1) and float(margin[1]) > 0.1


def test_outputs_are_written_in_place():
    out = Expansion(torch.zeros(1, 2).long(), torch.zeros(1, 2), torch.zeros(1, 1).int())
    made = draft.expand(torch.tensor([[0.0, 1.0, 2.0]]), None, 2, 1, out=out)
    assert made is out and out.tokens.tolist() == [[2, 1]] and out.beams.tolist() == [[0]]
