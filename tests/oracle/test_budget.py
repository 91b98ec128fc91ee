"""``draft.budget``: its definition in plain Python, every number of drafts by brute force, and the law of what it lets
through, by enumeration."""

import itertools
import math

import pytest
import torch

from python_ref import ops
from python_ref.ops import draft, elementary

from .enumeration import law_of_text, random_table
from .trees import seeded

INF, NAN = math.inf, math.nan


def case(seed):
    """Scores, costs and active requests as lists; a third of them on a grid that is full of ties."""
    numbers = seeded(seed)
    batch, width = numbers.randint(0, 4), numbers.choice((0, 1, 2, 3, 5))
    grid = numbers.random() < 0.35
    scores = []
    for _ in range(batch):
        steps = [numbers.choice((0, 0.25, 0.5)) if grid else numbers.random() for _ in range(width)]
        scores.append([-total for total in itertools.accumulate(steps)])
        for c in range(width):
            if numbers.random() < 0.15:
                scores[-1][c] = numbers.choice((NAN, INF, -INF, 1.5, 0.0, -0.0, -29.0, -31.0, -1e30))
    count = numbers.choice((1, 2, 3, batch * width + 1, batch * width + 4))
    slope = numbers.choice((0.0, 0.03, 0.1, 0.3, 1.0))
    costs = [1 + slope * n for n in range(count)]
    if numbers.random() < 0.5:  # steps with plateaus between them
        costs = [math.ceil(cost * 2) / 2 for cost in costs]
    for n in range(count):
        if numbers.random() < 0.1:
            costs[n] = numbers.choice((NAN, INF, -INF, 0.0, -1.0, 1e-40))
    active = [numbers.random() < 0.8 for _ in range(batch)]
    return scores, costs, active


def tensors(scores, costs, active):
    width = len(scores[0]) if scores else 3
    return torch.tensor(scores).float().reshape(len(active), width), torch.tensor(costs), torch.tensor(active).bool()


def in_order(scores, active):
    """``(score, request)`` of all candidates."""
    found = [
        (-min(score, 0.0), b, c)
        for b, row in enumerate(scores)
        for c, score in enumerate(row)
        if active[b] and not math.isnan(score) and score > -INF
    ]
    return [(-score, b) for score, b, _ in sorted(found)]


def units(score):
    """exp of a score in units of 2^-40."""
    return 0 if score < -30 else int(elementary.exp(torch.tensor([score], dtype=torch.float64))[0] * 2**40 + 0.5)


def rates(order, costs, active):
    """Tokens per time of each number of drafts; None where the cost is none."""
    found, tokens = [], sum(active) * 2**40
    for n in range(min(len(order), len(costs) - 1) + 1):
        tokens += units(order[n - 1][0]) if n else 0
        found.append(tokens / costs[n] if 0 < costs[n] < INF else None)
    return found


def best_of_all(found):
    there = [rate for rate in found if rate is not None]
    return found.index(max(there)) if there else 0


def greedy(found):
    n = 0
    while n + 1 < len(found) and found[n + 1] is not None and (found[n] is None or found[n + 1] > found[n]):
        n += 1
    return n


def counts_of(order, n, batch):
    return [sum(b == request for _, request in order[:n]) for b in range(batch)]


def test_every_number_of_drafts_and_the_greedy_way():
    sizes = {False: set(), True: set()}
    for seed in range(1500):
        scores, costs, active = tensors(*case(seed))
        order = in_order(scores.tolist(), active.tolist())
        found = rates(order, costs.tolist(), active.tolist())
        for sampled, rule in ((False, best_of_all), (True, greedy)):
            made = draft.budget(scores, costs, active=active, sampled=sampled)
            assert made.dtype == torch.int32
            assert made.tolist() == counts_of(order, rule(found), len(active)), f"seed {seed}"
            sizes[sampled].add(int(made.sum()))
    assert min(map(len, sizes.values())) > 8


def test_gains_are_the_exponentials_of_scores():
    scores = torch.cat((-torch.rand(3000) * 40, torch.tensor([0.0, -30.0, -30.1, -1e30, -1e-7, -1e-42])))
    made = draft.gains(scores)
    exact = [math.exp(score) * 2**40 for score in scores.tolist()]
    assert made.tolist() == pytest.approx(exact, abs=0.501)
    assert made[3000:3004].tolist() == [2**40, 0, 0, 0]


def test_the_worked_example():
    scores = torch.tensor([[0.9, 0.5], [0.7, 0.1]]).log()
    costs = torch.tensor([10.0, 11, 12, 14, 20])
    assert draft.budget(scores, costs).tolist() == [1, 1]
    plateau = torch.tensor([10.0, 15, 15, 15, 15])  # 2.9/15 is less than 2/10, 3.6/15 and what follows is more
    assert draft.budget(scores, plateau).tolist() == [2, 2]
    assert draft.budget(scores, plateau, sampled=True).tolist() == [0, 0]


def test_a_cost_is_chosen_or_not():
    scores = torch.zeros(1, 3)
    for costs, wanted in (
        ([1.0], 0),
        ([NAN], 0),
        ([NAN, 1.0], 1),
        ([1.0, NAN, 1.0], 2),
        ([0.0, -1.0, INF, NAN], 0),
        ([1.0, 2.0, 3.0, 4.0, 1e-9], 0),  # of equal ones the smallest; there is no fourth candidate
    ):
        assert draft.budget(scores, torch.tensor(costs)).tolist() == [wanted]
    assert draft.budget(scores, torch.tensor([NAN, 1.0, 1.0, NAN]), sampled=True).tolist() == [2]
    assert draft.budget(scores, torch.tensor([1.0, NAN, 0.1]), sampled=True).tolist() == [0]


def test_a_tree_stays_closed():
    """Children come behind their parents, in scores and in columns."""
    for seed in range(200):
        numbers = seeded(seed)
        parents, scores = [-1] * 3, []
        for b in range(3):
            row = []
            for c in range(8):
                parent = numbers.randint(-1, c - 1)
                parents += [parent] if b == 0 and c >= 3 else []
                above = row[parents[c]] if c >= 3 and parents[c] >= 0 else 0.0
                row.append(above - numbers.choice((0.0, 0.25, 0.5)))
            scores.append(row)
        costs = torch.tensor([1 + 0.05 * n for n in range(25)])
        counts = draft.budget(torch.tensor(scores), costs).tolist()
        for row, count in zip(scores, counts, strict=True):
            chosen = sorted(range(8), key=lambda c, row=row: (-row[c], c))[:count]
            assert all(parents[c] < 0 or parents[c] in chosen for c in chosen)


def test_the_result_is_written_in_place():
    out = torch.full((2,), 77, dtype=torch.int32)
    assert draft.budget(torch.zeros(2, 1), torch.tensor([1.0, 1, 1]), out=out) is out and out.tolist() == [1, 1]


# ---- the law of what is let through ----------------------------------------------------------------------------------

TARGET, DRAFTER = random_table(2, 5), 1.5 * random_table(2, 8)
PLATEAU = (10.0, 18.0, 18.0, 22.0, 22.0)
SLOPE = (10.0, 13.0, 16.5, 21.5, 24.0)


def decoded(costs, sampled, by_law=True, temperature=1.0):
    """The law of two tokens, and the numbers of drafts that were verified.

    Two requests share a budget; the text is that of the first one. Both draw chains of two drafts, and the score of a
    draft is a function of the law that it was drawn from, or of the token itself.
    """
    drawn_by = ops.Sampling.of(2, temperature=temperature, seed=[11, 12])
    settings = ops.Sampling.of(1, seed=11)
    seen = set()

    def step(history):
        roots = torch.tensor([history[-1], 0])
        positions = torch.tensor([len(history), 5])
        chains, rows, scores = [roots], roots, []
        for depth in range(2):
            laws = DRAFTER[rows].log_softmax(1)
            depths = torch.full((2,), depth)
            if depth == 0:
                rows = ops.sample.draft(DRAFTER[rows], drawn_by, positions, 1, depths=depths)[:, 0]
            else:  # the second draft of the other request decides nothing
                first = drawn_by._replace(temperature=drawn_by.temperature * torch.tensor([1.0, 0.0]))
                rows = ops.sample.draft(DRAFTER[rows], first, positions + 1, 1, depths=depths)[:, 0]
            taken = laws.amax(1) if by_law else laws.gather(1, rows.unsqueeze(1))[:, 0]
            scores.append(taken + (scores[-1] if scores else 0.0))
            chains.append(rows)
        counts = draft.budget(torch.stack(scores, 1), torch.tensor(costs), sampled=sampled)
        seen.add(int(counts[0]))
        tree = ops.tree.from_chains(torch.stack(chains, 1)[:1], counts[:1] + 1)
        logits = tree.tokens.clamp(min=0)
        made = ops.verify.rejection(
            *(tree, TARGET[logits], DRAFTER[logits], settings, ops.Sampling.of(1, temperature=temperature)),
            torch.tensor([len(history) - 1]),
        )
        return tuple(made.tokens[0, : int(made.num_tokens[0])].tolist())

    return law_of_text(step, (0, 1), 2).law, seen


def error_of(law):
    after = TARGET.double().softmax(1)
    expected = {(x, y): float(after[1, x] * after[x, y]) for x in range(2) for y in range(2)}
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    return max(abs(law.get(text, 0.0) - p) for text, p in expected.items())


@pytest.mark.parametrize("costs", [SLOPE, PLATEAU], ids=["slope", "plateau"])
def test_drafts_that_are_drawn_keep_their_law_when_the_first_decrease_ends_the_budget(costs):
    law, seen = decoded(costs, sampled=True)
    assert error_of(law) < 1e-12
    assert costs == PLATEAU or len(seen) > 1


def test_a_look_past_a_plateau_changes_the_law_of_drafts_that_are_drawn():
    law, seen = decoded(PLATEAU, sampled=False)
    assert len(seen) > 1 and error_of(law) > 1e-3


def test_a_score_of_the_token_itself_changes_the_law():
    law, seen = decoded(SLOPE, sampled=True, by_law=False)
    assert len(seen) > 1 and error_of(law) > 1e-3


@pytest.mark.parametrize("sampled", [False, True])
def test_drafts_that_are_a_function_of_the_text_keep_it_with_any_budget(sampled):
    for by_law in (False, True):
        law, _ = decoded(PLATEAU, sampled, by_law, temperature=0.0)
        assert error_of(law) < 1e-12
