"""Millions of texts of tiny table models, decoded by the fused ops in batches, and their law.

A table model has logits ``[V, V]`` after each last token. A text starts with token 0 at position 0; every trial has a
seed of its own, and goes on until its text has ``length`` tokens more, however many steps that takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from agreement.cases import Shape
from agreement.compare import device_of
from oracle.definition import law
from scipy import stats
from torch import Tensor

import specdec_kernels as sk

BATCH = 20_000  # trials that are decoded together

#: Rules that ask for no law of the drafts.
UNDRAFTED = ("match", "threshold", "typical", "synthetic")

#: What a law must not fall below, and what a planted bug must.
SOUND, FOUND = 1e-4, 1e-12


@dataclass(frozen=True)
class Case:
    """One configuration; ``parents`` is the tree of every step in pre-order, without children: plain decoding."""

    target: Tensor
    drafter: Tensor
    parents: tuple[int, ...] = (-1, 0)
    length: int = 5
    replacement: bool = False
    coupled: bool = False
    rule: str = "rejection"  # the rule "token"
    settings: dict[str, Any] = field(default_factory=dict)
    draft_settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # of a lossy rule

    @property
    def vocab(self) -> int:
        return self.target.shape[1]

    @property
    def shape(self) -> Shape:
        return Shape(list(self.parents))

    def expected(self) -> Tensor:
        """Probability of each text, in the order of its number to the base of the vocabulary."""
        step = table_law(self.target, self.settings)
        joint = step[0]
        for _ in range(self.length - 1):
            joint = (joint.unsqueeze(-1) * step.repeat(joint.numel() // self.vocab, 1).view(*joint.shape, -1)).flatten()
        return joint


def table_law(table: Tensor, settings: dict[str, Any]) -> Tensor:
    """The processed law after each token, from the definition: ``[V, V]`` float64."""
    return torch.tensor([law(row, **settings)[0] for row in table.tolist()], dtype=torch.float64)


class Decoding:
    """The steps of a case by the fused ops. Bugs of drivers are planted by overriding a method."""

    def __init__(self, case: Case, backend: str = "cpu") -> None:
        self.case, self.backend = case, backend
        self.device = device_of(backend)
        self.shape = case.shape
        self.target, self.drafter = case.target.to(self.device), case.drafter.to(self.device)
        self.options = {
            name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in case.options.items()
        }
        self._trees: dict[int, tuple[Tensor, ...]] = {}

    def sampling(self, seeds: Tensor, settings: dict[str, Any]) -> sk.Sampling:
        """The same settings for all trials, and a seed for each."""
        made = sk.Sampling.of(1, device=self.device, **settings)
        columns = {name: getattr(made, name).expand(seeds.numel()) for name in made._fields[:4]}
        return made._replace(**columns, seed=seeds)

    def draft(self, node: int, num: int, tokens: Tensor, lengths: Tensor, seeds: Tensor) -> Tensor:
        """Children of a node that holds ``tokens [B]``: ``[B, num]``."""
        depth = self.shape.depths[node]
        return sk.sample.draft(
            self.drafter[tokens.clamp(min=0)],
            self.sampling(seeds, self.case.draft_settings),
            lengths + depth,
            num,
            self.case.replacement,
            depths=torch.full_like(tokens, depth),
            nodes=torch.full_like(tokens, node),
            coupled=self.case.coupled,
            top=num - 1 if self.case.rule == "greedy_plus_one" else 0,
            backend=self.backend,
        )

    def grow(self, roots: Tensor, lengths: Tensor, seeds: Tensor) -> Tensor:
        """The tokens of all nodes: ``[B, N]``."""
        nodes = [roots] + [roots] * (len(self.case.parents) - 1)
        for node in range(len(nodes)):
            children = self.shape.children(node)
            if children:
                drawn = self.draft(node, len(children), nodes[node], lengths, seeds)
                for child, tokens in zip(children, drawn.unbind(1), strict=True):
                    nodes[child] = tokens
        return torch.stack(nodes, 1)

    def tree(self, tokens: Tensor) -> sk.TokenTree:
        batch, width = tokens.shape
        if batch not in self._trees:
            offsets = torch.arange(batch + 1, dtype=torch.int32, device=self.device) * width
            columns = (self.shape.parents, self.shape.depths, self.shape.ends)
            made = [torch.tensor(column, dtype=torch.int32, device=self.device).repeat(batch) for column in columns]
            self._trees[batch] = (offsets, *made)
        offsets, *columns = self._trees[batch]
        return sk.TokenTree(offsets, tokens.flatten(), *columns, max_nodes=width, max_depth=max(self.shape.depths))

    def verify(self, tokens: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """What a step emits: ``[B, depth + 1]``, and how many."""
        tree, rows = self.tree(tokens), tokens.flatten().clamp(min=0)
        settings = self.sampling(seeds, self.case.settings)
        options: dict[str, Any] = {"rows": rows, "backend": self.backend}
        if self.case.rule in UNDRAFTED:
            rule = getattr(sk.verify, self.case.rule)
            result = rule(tree, self.target, settings, lengths - 1, **self.options, **options)
        else:
            result = sk.verify.rejection(
                tree,
                self.target,
                self.drafter,
                settings,
                self.sampling(seeds, self.case.draft_settings),
                lengths - 1,
                "token" if self.case.rule == "rejection" else self.case.rule,
                self.case.replacement,
                draft_rows=rows,
                **options,
            )
        return result.tokens, result.num_tokens

    def step(self, roots: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Draft and verify."""
        return self.verify(self.grow(roots, lengths, seeds), lengths, seeds)


def texts(decoding: Decoding, seeds: Tensor) -> tuple[Tensor, int]:
    """The number of each trial's text, and the fewest steps that a trial took."""
    case = decoding.case
    wide = case.length + 1 + len(case.parents)
    text = torch.zeros((seeds.numel(), wide + 1), dtype=torch.int64, device=decoding.device)
    length = torch.ones(seeds.numel(), dtype=torch.int64, device=decoding.device)
    steps, left = 0, torch.arange(seeds.numel(), device=decoding.device)
    fewest = 0
    while left.numel():
        known = length[left]
        tokens, num = decoding.step(text[left, known - 1], known, seeds[left])
        for i in range(tokens.shape[1]):
            there = torch.where(i < num, known + i, wide)  # the last column takes what is nobody's
            text[left, there] = tokens[:, i]
        length[left] = known + num
        steps += 1
        done = length[left] > case.length
        fewest = fewest or steps * bool(done.any())
        left = left[~done]
    numbers = torch.zeros_like(length)
    for i in range(1, case.length + 1):
        numbers = numbers * case.vocab + text[:, i]
    return numbers.cpu(), fewest


def count(
    decoding: Decoding, trials: int, size: int, sample: Callable[[Tensor], tuple[Tensor, int]]
) -> tuple[Tensor, int]:
    """How often each of ``size`` outcomes came up, and the fewest steps of a trial."""
    found, fewest = torch.zeros(size, dtype=torch.int64), []
    for first in range(0, trials, BATCH):
        seeds = torch.arange(first, min(first + BATCH, trials), device=decoding.device) * 7 - 10**6
        numbers, steps = sample(seeds)
        found += torch.bincount(numbers, minlength=size)
        fewest.append(steps)
    assert int(found.sum()) == trials
    return found, min(fewest)


def p_value(found: Tensor, expected: Tensor) -> float:
    """Of the chi-square test; cells that hardly ever come up are pooled, and what cannot come up must not."""
    if bool((found[expected == 0] > 0).any()):
        return 0.0
    wanted = expected * int(found.sum())
    rare = wanted < 10
    observed = torch.cat((found[~rare].double(), found[rare].sum().double().view(1)))
    wanted = torch.cat((wanted[~rare], wanted[rare].sum().view(1)))
    kept = wanted > 0
    return float(stats.chisquare(observed[kept].numpy(), wanted[kept].numpy(), sum_check=False).pvalue)


def check(decoding: Decoding, trials: int) -> tuple[float, int]:
    """The p-value of a case's texts, and the fewest steps of a trial."""
    expected = decoding.case.expected()
    found, fewest = count(decoding, trials, expected.numel(), lambda seeds: texts(decoding, seeds))
    return p_value(found, expected), fewest


def check_drafts(decoding: Decoding, trials: int) -> float:
    """The p-value of two draws at each of three consecutive positions, each position after the first draw before it."""
    case, vocab = decoding.case, decoding.case.vocab
    q = table_law(case.drafter, case.draft_settings)
    pairs = q.unsqueeze(2) * q.unsqueeze(1)  # [last token, first draw, second draw]
    if not case.replacement:
        pairs = pairs * (1 - torch.eye(vocab)) / (1 - q).unsqueeze(2)
    expected = torch.einsum("ab,acd,cef->abcdef", pairs[0], pairs, pairs).flatten()

    def sample(seeds: Tensor) -> tuple[Tensor, int]:
        tokens, numbers = torch.zeros_like(seeds), torch.zeros_like(seeds)
        for step in range(3):
            drawn = decoding.draft(0, 2, tokens, torch.full_like(seeds, step + 1), seeds)
            numbers = (numbers * vocab + drawn[:, 0]) * vocab + drawn[:, 1]
            tokens = drawn[:, 0]
        return numbers.cpu(), 3

    return p_value(count(decoding, trials, vocab**6, sample)[0], expected)
