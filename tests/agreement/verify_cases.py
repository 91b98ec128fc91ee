"""Random calls of the verify family. The drafts are mostly those that the rule follows, so that walks go deep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import python_ref.ops as oracle
import specdec_kernels as sk

from .cases import (
    FLOATS,
    INDICES,
    ORDERS,
    ROWS,
    Draw,
    Shape,
    assemble,
    mask,
    near,
    rows,
    sampling,
    shape,
    strided,
    vocabularies,
)
from .compare import LOSSY

RULES = ("token", "block", "traversal", "greedy_plus_one")

#: Rules that draw nothing, and rules whose drafts have a law; the others of the family verify chosen drafts by settings.
UNDRAWN = ("verify_greedy", "verify_relaxed")
BAD_ROWS = (-1, -2, 1000, 2**31 - 1, -(2**31))


def _one(settings: sk.Sampling, b: int) -> sk.Sampling:
    """The settings of one request."""
    return sk.Sampling(*(None if field is None else field[b : b + 1] for field in settings[:5]), settings.filter_order)


def _map(draw: Draw, count: int, height: int, spoiled: bool) -> Tensor:
    """A map from nodes to rows, with entries out of range."""
    dtype = draw.one(INDICES)
    index = draw.whole_tensor(0, height - 1, (count,), dtype)
    if spoiled and count and draw.chance(0.3):
        index[draw.whole(0, count - 1)] = draw.one(BAD_ROWS + (2**40,) * (dtype == torch.int64))
    return index


class Case:
    """One call: ``arguments`` for the fused op and for the oracle alike."""

    def __init__(
        self,
        op: str,
        seed: int,
        *,
        odd: bool = True,
        vocab: int | None = None,
        dtype: torch.dtype | None = None,
        batch: int | None = None,
        depth: int | None = None,
        nodes: int = 7,
        kinds: tuple[str, ...] = ROWS,
        malformed: float = 0.1,
        rule: str | None = None,
    ) -> None:
        self.op, self.draw, self.odd = op, Draw(seed), odd
        draw = self.draw
        self.vocab = vocab or draw.one((1, 2, 3, 5, 9, 31, 33, 64))
        self.dtype = dtype or draw.one(FLOATS)
        self.depth = draw.whole(0, 4) if depth is None else depth
        self.batch = draw.whole(0, 4) if batch is None else batch
        branching = draw.one((0.0, 0.3, 0.6))
        self.shapes: list[Shape | None] = [
            None if odd and draw.chance(0.08) else shape(draw, nodes, self.depth, branching) for _ in range(self.batch)
        ]
        self.tree, self.first = assemble(draw, self.shapes, self.vocab, self.depth, draw.one(INDICES), padded=odd)
        self.count = self.tree.tokens.numel()
        self.arguments: dict[str, Any] = {"tree": self.tree}
        self._target(kinds)
        if op not in UNDRAWN:
            order = draw.one(ORDERS)
            self.arguments["sampling"] = sampling(draw, self.batch, odd, order)
            contexts = draw.whole_tensor(0, 500, (self.batch,), draw.one(INDICES))
            if odd and draw.chance(0.2):
                contexts = contexts.long() + draw.one((2**31 - 3, 2**32 - 2, -3, 2**40))
            self.arguments["context_lens"] = contexts
        if op == "verify_rejection":
            self._drafts(rule or draw.one(RULES))
        if op in LOSSY:
            self._limits()
        self._options()
        self._grow()
        if odd and draw.chance(malformed):
            self._spoil()

    def _target(self, kinds: tuple[str, ...]) -> None:
        draw, count = self.draw, self.count
        height = count + draw.whole(0, 2)
        if draw.chance(0.4):
            height = draw.whole(1, count + 2)
            self.arguments["rows"] = _map(draw, count, height, self.odd)
        self.arguments["logits"] = rows(draw, height, self.vocab, self.dtype, kinds)
        if draw.chance(0.4):
            self.arguments["allowed"], index = mask(draw, count, self.vocab)
            if index is not None:
                self.arguments["allowed_rows"] = index

    def _limits(self) -> None:
        draw = self.draw
        self.arguments |= {
            "verify_threshold": lambda: {
                "single": draw.one((0.0, 0.01, 0.3, 1.0)),
                "accumulated": draw.one((0.05, 0.5, 1.0)),
            },
            "verify_typical": lambda: {"epsilon": draw.one((0.0, 0.09, 0.5)), "delta": draw.one((0.0, 0.3, 2.0))},
            "verify_relaxed": lambda: {"top_k": draw.one((1, 2, 5, 100)), "delta": draw.one((0.0, 0.05, 0.5, 1.0))},
            "verify_synthetic": lambda: {"rates": draw.uniform(self.depth + draw.whole(0, 2)) * 1.5 - 0.1},
        }[self.op]()
        if self.op == "verify_relaxed" and draw.chance(0.5):
            self.arguments["relax"] = draw.whole_tensor(0, 1, (self.batch,)).bool()

    def _drafts(self, rule: str) -> None:
        draw, arguments, count = self.draw, self.arguments, self.count
        arguments["rule"] = rule
        arguments["replacement"] = draw.chance(0.5)
        if draw.chance(0.15):
            arguments["draft_logits"] = arguments["draft_sampling"] = None
            return
        settings = sampling(draw, self.batch, self.odd, draw.one(ORDERS))
        if draw.chance(0.6):
            settings = arguments["sampling"]
        arguments["draft_sampling"] = settings._replace(seed=None)
        height = count
        if draw.chance(0.5):
            height = draw.whole(1, count + 2)
            arguments["draft_rows"] = _map(draw, count, height, self.odd)
            if draw.chance(0.3) and count:
                arguments["draft_rows"][draw.whole(0, count - 1)] = -1
        target = arguments["logits"]
        if height and target.shape[0]:  # mostly the rows of the same nodes
            aligned = "rows" not in arguments and "draft_rows" not in arguments
            index = torch.arange(height) if aligned else draw.whole_tensor(0, target.shape[0] - 1, (height,))
            target = target[index]
        else:
            target = target.new_zeros((height, self.vocab))
        logits = near(draw, target, draw.one((0.0, 0.2, 1.5)))
        if draw.chance(0.3):
            to_target, to_draft = vocabularies(draw, self.vocab)
            arguments["draft_to_target"], arguments["target_to_draft"] = to_target, to_draft
            logits = logits[:, to_target.long().clamp(min=0)].contiguous()
        arguments["draft_logits"] = logits
        if "allowed" in arguments and draw.chance(0.5):
            arguments["draft_allowed_rows"] = draw.whole_tensor(-1, arguments["allowed"].shape[0] - 1, (count,))

    def _options(self) -> None:
        draw, arguments = self.draw, self.arguments
        arguments["logprobs"] = draw.one((None, "processed", "raw"))
        if draw.chance(0.25):
            arguments["active"] = draw.whole_tensor(0, 1, (self.batch,)).bool()
        if draw.chance(0.3):
            arguments["max_tokens"] = draw.whole_tensor(-1, self.depth + 2, (self.batch,), draw.one(INDICES))

    # ---- tokens of the nodes ----------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Give most nodes the token that the rule would follow."""
        if not self.arguments["logits"].shape[0]:
            return
        guess: Callable[[int, int, int, int, int], list[int]] = self._target_token
        if self.op == "verify_rejection":
            guess = self._drafted
        for b, made in enumerate(self.shapes):
            for node in range(len(made.parents) if made else 0):
                children = made.children(node)  # type: ignore[union-attr]
                if not children or self.draw.chance(0.15):
                    continue
                tokens = guess(b, node, self.first[b] + node, made.depths[node], len(children))  # type: ignore[union-attr]
                if self.op != "verify_rejection":  # the one token to follow stands at a random sibling
                    children = [self.draw.one(children)]
                for child, token in zip(children, tokens, strict=False):
                    self.tree.tokens[self.first[b] + child] = token
        if self.odd and self.count and self.draw.chance(0.2):
            where = self.draw.whole(0, self.count - 1)
            self.tree.tokens[where] = self.draw.one((-1, -5, self.vocab, 2**31 - 1, -(2**31)))

    def _row(self, owner: int) -> int:
        index = self.arguments.get("rows")
        row = owner if index is None else int(index[owner])
        return row if 0 <= row < self.arguments["logits"].shape[0] else 0

    def _allowed(self, owner: int, name: str) -> dict[str, Tensor]:
        arguments = self.arguments
        if "allowed" not in arguments:
            return {}
        index = arguments.get(name)
        row = owner if index is None else int(index[owner])
        return {"allowed": arguments["allowed"], "allowed_rows": torch.tensor([row])}

    def _target_token(self, b: int, node: int, owner: int, depth: int, num: int) -> list[int]:
        arguments = self.arguments
        settings = sk.Sampling.of(1, temperature=0.0)
        context = 0
        if self.op not in UNDRAWN:
            settings, context = _one(arguments["sampling"], b), int(arguments["context_lens"][b])
        row = arguments["logits"][self._row(owner)].unsqueeze(0)
        position = torch.tensor([context + depth + 1])
        return oracle.sample.sample(row, settings, position, **self._allowed(owner, "allowed_rows")).tolist()

    def _drafted(self, b: int, node: int, owner: int, depth: int, num: int) -> list[int]:
        arguments = self.arguments
        if arguments["draft_logits"] is None:
            row = arguments["logits"][self._row(owner)]
            best = torch.argsort(row.float().nan_to_num(nan=-1e9), descending=True)[:num]
            return best.tolist()
        index = arguments.get("draft_rows")
        row = owner if index is None else int(index[owner])
        if not 0 <= row < arguments["draft_logits"].shape[0]:
            return [self.draw.whole(0, self.vocab - 1) for _ in range(num)]
        settings = _one(arguments["draft_sampling"], b)
        settings = settings._replace(seed=arguments["sampling"].seed[b : b + 1])
        masked = self._allowed(owner, "draft_allowed_rows") if "draft_allowed_rows" in arguments else {}
        place = int(arguments["context_lens"][b]) + depth + 1
        made = oracle.sample.draft(
            arguments["draft_logits"][row].unsqueeze(0),
            settings,
            torch.tensor([place]),
            num,
            arguments["replacement"],
            top=num - 1 if arguments["rule"] == "greedy_plus_one" else 0,
            depths=torch.tensor([depth]),
            nodes=torch.tensor([node]),
            draft_to_target=arguments.get("draft_to_target"),
            **masked,
        )
        return made[0].tolist()

    def _spoil(self) -> None:
        """Break one entry of the tree."""
        draw, tree = self.draw, self.tree
        field = draw.one((tree.parents, tree.depths, tree.ends, tree.ends, tree.cu_nodes))
        if field.numel():
            field[draw.whole(0, field.numel() - 1)] = draw.one((-2, -1, 0, 1, 2, 3, 5, 9, 2**31 - 1, -(2**31)))

    def strided(self) -> dict[str, Any]:
        """The arguments as views into larger buffers."""
        return {name: strided(self.draw, value) for name, value in self.arguments.items()}


def call(op: str, seed: int, **options: Any) -> dict[str, Any]:
    """The arguments of one random call."""
    return Case(op, seed, **options).arguments
