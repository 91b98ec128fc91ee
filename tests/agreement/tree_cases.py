"""Random calls of the tree family and of ``draft.expand``, with every oddity that the contract names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import python_ref.ops as oracle
import specdec_kernels as sk

from . import compare
from .cases import FLOATS, INDICES, ROWS, Draw, assemble, rows, shape, stops, strided

BUILDERS = ("tree_from_parents", "tree_from_beams", "tree_best_first")
EXPORTS = ("tree_to_dense_mask", "tree_to_packed_mask", "tree_to_links", "tree_to_paths")
EXACT = (*BUILDERS, *EXPORTS)
ALL = (*EXACT, "draft_expand")

HUGE = (-2, -(2**31), 2**31 - 1)
ODD_SCORES = (-math.inf, math.nan, math.inf, 0.5, -0.0, -3e38)


def _integers(draw: Draw, low: int, high: int, batch: int, odd: bool) -> Tensor:
    """One integer per request, now and then one out of range."""
    made = draw.whole_tensor(low, high, (batch,), draw.one(INDICES))
    if odd and batch and draw.chance(0.3):
        made[draw.whole(0, batch - 1)] = draw.one((*HUGE, -1, high + 1))
    return made


def scores(draw: Draw, odd: bool, *size: int) -> Tensor:
    """Log-probabilities: of a model, or with many ties; ``odd`` ones are no log-probabilities."""
    if draw.chance(0.5):
        made = draw.whole_tensor(-4, 0, size, torch.float32) / 4
    else:
        made = -(draw.normal(*size).abs() * 3)
    for value in ODD_SCORES if odd else ():
        if draw.chance(0.2):
            made[torch.rand(size, generator=draw.generator) < 0.1] = value
    return made


def roots(draw: Draw, batch: int, odd: bool) -> Tensor:
    made = draw.whole_tensor(0, 99, (batch,), draw.one(INDICES))
    if odd and batch and draw.chance(0.4):
        made[draw.whole(0, batch - 1)] = draw.one((-1, -(2**31)))
    return made


def _budget(draw: Draw, arguments: dict[str, Any], batch: int, most: int, odd: bool) -> None:
    if draw.chance(0.4):
        arguments["budget"] = draw.whole(0 if odd else 1, most)
        return
    arguments["budget"] = _integers(draw, 0 if odd else 1, most + 2, batch, odd)
    if draw.chance(0.5):
        arguments["max_nodes"] = draw.whole(0 if odd else 1, most)


def from_parents(draw: Draw, batch: int, odd: bool, most: int) -> dict[str, Any]:
    parents: list[int] = []
    offsets = [draw.whole(0, 2) if odd else 0]
    parents += [0] * offsets[0]
    for _ in range(batch):
        made = [-1]
        while len(made) < draw.whole(1, most):
            made.append(draw.whole(max(0, len(made) - draw.one((1, 2, 9))), len(made) - 1))
        if odd and draw.chance(0.2):
            made[draw.whole(0, len(made) - 1)] = draw.one((*HUGE, -1, 0, 1, 2))
        made = made if not odd or draw.chance(0.85) else []
        parents += made
        offsets.append(len(parents))
    parents += [draw.one((-1, 0, 7))] * (draw.whole(0, 2) if odd else 0)
    if odd and draw.chance(0.15):
        offsets[draw.whole(0, batch)] = draw.one((*HUGE, 0, 1, len(parents), len(parents) + 1))
    tokens = draw.whole_tensor(-3, 99, (len(parents),), draw.one(INDICES))
    bound = 1024 if most > 99 else draw.one((most, most, most // 2, 1024))
    arguments: dict[str, Any] = {
        "tokens": tokens,
        "parents": torch.tensor(parents, dtype=torch.int64).to(draw.one(INDICES)),
        "cu_nodes": torch.tensor(offsets, dtype=torch.int32),
        "max_nodes": bound if odd else 1024,
        "max_depth": draw.one((most, most, 2, 0)) if odd else most,
        "slots": draw.chance(0.5),
    }
    if draw.chance(0.5):
        arguments["lengths"] = _integers(draw, 0, most if odd else 1, batch, odd)
    return arguments


def from_beams(draw: Draw, batch: int, odd: bool, most: int) -> dict[str, Any]:
    pool = draw.whole(0, 3 * most)
    parents = torch.full((batch, pool), -1)
    near = draw.one((2, 5, pool + 1))
    for i in range(pool):
        parents[:, i] = draw.whole_tensor(max(-1, i - near), i - 1, (batch,))
    tokens = draw.whole_tensor(0, draw.one((0, 2, 9)), (batch, pool))
    if odd and batch * pool and draw.chance(0.4):
        for _ in range(3):
            b, i = draw.whole(0, batch - 1), draw.whole(0, pool - 1)
            parents[b, i] = draw.one((*HUGE, i, pool))
            tokens[b, draw.whole(0, pool - 1)] = draw.one((-1, -(2**31)))
    arguments: dict[str, Any] = {
        "root_tokens": roots(draw, batch, odd),
        "tokens": tokens.to(draw.one(INDICES)),
        "parents": parents.to(draw.one(INDICES)),
        "scores": scores(draw, odd, batch, pool),
        "max_depth": draw.one((1, 3, 3 * most + 1)),
    }
    _budget(draw, arguments, batch, most, odd)
    if draw.chance(0.4):
        arguments["lengths"] = _integers(draw, 0, pool, batch, odd)
    return arguments


def best_first(draw: Draw, batch: int, odd: bool, most: int) -> dict[str, Any]:
    depth, ranks = draw.whole(0 if odd else 1, 6), draw.whole(0 if odd else 1, draw.one((3, most)))
    laws = scores(draw, odd, batch, depth, ranks)
    if ranks and draw.chance(0.7):
        laws = laws.sort(-1, descending=True).values
    ids = draw.whole_tensor(0, 99, (batch, depth, ranks), draw.one(INDICES))
    if odd and draw.chance(0.4):
        ids[torch.rand(ids.shape, generator=draw.generator) < 0.2] = draw.one((-1, -(2**31)))
    arguments: dict[str, Any] = {"root_tokens": roots(draw, batch, odd), "log_probs": laws, "token_ids": ids}
    _budget(draw, arguments, batch, most, odd)
    if draw.chance(0.4):
        arguments["total_budget"] = draw.whole(0, batch * most)
    return arguments


def export(op: str, draw: Draw, batch: int, odd: bool, most: int) -> dict[str, Any]:
    depth = draw.one((1, 3, 9))
    shapes = [
        None if odd and draw.chance(0.15) else shape(draw, most, depth, draw.one((0.0, 0.4))) for _ in range(batch)
    ]
    tree, first = assemble(draw, shapes, 99, depth, draw.one(INDICES), odd)
    if odd and draw.chance(0.3):
        spoiled = draw.one(("parents", "depths", "ends", "cu_nodes"))
        column = getattr(tree, spoiled)
        if column.numel():
            column[draw.whole(0, column.numel() - 1)] = draw.one((*HUGE, -1, 0, 1, 3))
    bound = draw.one((tree.max_nodes, tree.max_nodes, tree.max_nodes + 3, tree.max_nodes // 2)) if odd else most
    arguments: dict[str, Any] = {"tree": tree._replace(max_nodes=bound)}
    if op == "tree_to_links":
        arguments["dtype"] = draw.one(INDICES)
    if op == "tree_to_packed_mask":
        arguments["layout"] = draw.one(("full", "full", "query", "words"))
        if arguments["layout"] == "full":
            arguments["max_context"] = draw.one((0, 5, 40))
            arguments["context_lens"] = _integers(draw, 0, arguments["max_context"], batch, odd)
    return arguments


def expand(draw: Draw, batch: int, odd: bool, vocab: int | None) -> dict[str, Any]:
    width, vocab = draw.one((None, 1, 2, 3, 5)), vocab or draw.one((1, 2, 5, 33, 64, 200))
    kinds = ROWS if odd else ("normal",)
    arguments: dict[str, Any] = {
        "logits": rows(draw, batch * (width or 1), vocab, draw.one(FLOATS), kinds),
        "scores": None if width is None else scores(draw, odd, batch, width).clamp(max=1.0),
        "num": draw.one((1, 2, 3, 7, 64)),
        "beams": draw.one((1, 2, 5, 64)),
    }
    if draw.chance(0.4):
        there = draw.permutation(2 * vocab)[:vocab]
        if odd and draw.chance(0.4):
            there[draw.whole(0, vocab - 1)] = -1
        arguments["draft_to_target"] = there.to(draw.one(INDICES))
    return arguments | stops(draw, batch, odd, 0.25)


def call(
    op: str, seed: int, *, batch: int | None = None, odd: bool = True, most: int = 9, vocab: int | None = None
) -> dict[str, Any]:
    """The arguments of one random call with so many requests, of about ``most`` nodes each."""
    draw = Draw(seed)
    batch = draw.whole(0, 4) if batch is None else batch
    if op in EXPORTS:
        return export(op, draw, batch, odd, most)
    if op == "draft_expand":
        return expand(draw, batch, odd, vocab)
    return {"tree_from_parents": from_parents, "tree_from_beams": from_beams, "tree_best_first": best_first}[op](
        draw, batch, odd, most
    )


def flat(value: Any) -> list[Any]:
    """The fields of a result, nested ones as well."""
    return [leaf for part in value for leaf in flat(part)] if isinstance(value, tuple) else [value]


def outcome(backend: str, op: str, arguments: dict[str, Any]) -> list[Tensor]:
    """All that a call gives as a list of tensors: bounds, and the scores of ``best_first``."""
    if op == "tree_best_first":
        device = compare.device_of(backend)
        rows = sum(compare.run(backend, op, arguments).ends.shape)
        reached = torch.full((rows,), 77.0, device=device)
        made = [*flat(compare.run(backend, op, arguments | {"scores": reached})), reached.cpu()]
    else:
        made = flat(compare.run(backend, op, arguments))
    return [torch.tensor(field) if isinstance(field, int) else field for field in made if field is not None]


def expected(op: str, arguments: dict[str, Any]) -> list[Tensor]:
    """The same of the oracle."""
    return outcome("reference", op, arguments)


def check_expansion(backend: str, arguments: dict[str, Any], tally: compare.Tally) -> None:
    """Tokens are those of the oracle, scores nearly, beams follow from the scores and are the oracle's but near ties."""
    count = arguments["logits"].shape[0] if arguments["scores"] is None else arguments["scores"].shape[0]
    margin = torch.empty(count, dtype=torch.float64)
    theirs = oracle.draft.expand(**arguments, margin=margin)
    ours = compare.run(backend, "draft_expand", arguments)
    assert isinstance(ours, sk.Expansion)
    assert [(f.dtype, f.shape) for f in ours] == [(f.dtype, f.shape) for f in theirs]
    sure = margin >= compare.TOLERANCE
    same = (ours.tokens == theirs.tokens).all(1)
    assert bool((same | ~sure).all()) and ("min_confidence" in arguments or "max_entropy" in arguments or same.all())
    finite = torch.isfinite(theirs.scores) & same[:, None]
    assert torch.equal(ours.scores[same][~finite[same]], theirs.scores[same][~finite[same]])
    error = (ours.scores.double() - theirs.scores.double()).abs()[finite]
    assert bool((error <= 2e-6 * theirs.scores[finite].abs().clamp(min=1.0)).all())
    for b in range(count):
        order = sorted(
            (c for c, s in enumerate(ours.scores[b].tolist()) if s > -math.inf), key=lambda c: -ours.scores[b, c]
        )
        chosen = order[: arguments["beams"]]
        assert ours.beams[b].tolist() == chosen + [-1] * (arguments["beams"] - len(chosen))
        equal, within = torch.equal(ours.beams[b], theirs.beams[b]), bool(margin[b] < compare.TOLERANCE)
        tally.requests += 1
        tally.near += within
        tally.different += not equal
        assert equal or within


def spread(draw: Draw, op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call with tensors of other strides."""
    made = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.dim() == 3:
            order = draw.permutation(3).tolist()
            inner = value.permute(order).repeat_interleave(2, -1)[..., ::2]
            made[name] = inner.permute([order.index(i) for i in range(3)])
        elif isinstance(value, Tensor) and value.dim() == 2 and name != "logits" and draw.chance(0.5):
            made[name] = value.t().repeat_interleave(3, 1)[:, ::3].t()
        elif name == "tree" or isinstance(value, Tensor):
            made[name] = strided(draw, value) if isinstance(value, Tensor) else _spread_tree(draw, value)
    return made


def _spread_tree(draw: Draw, tree: Any) -> Any:
    return tree._replace(**{name: strided(draw, getattr(tree, name)) for name in tree._fields[:5]})
