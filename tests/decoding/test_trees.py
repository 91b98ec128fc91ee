"""Trees in the decoder: identical text, and a cache that is that of the accepted text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import specdec_kernels as sk
from python_ref.decoding import Decoder, PagedCache, Request
from python_ref.decoding.prefill import prefill
from python_ref.drafters import DFlashDrafter, Eagle3Drafter, IndependentDrafter, NgramDrafter, Proposal

from .blocks import drafter_model
from .heads import head_of
from .helpers import OPS, VOCAB, Scripted, corrupted, model_of, noise, perfect, plain, prompt_of, requests_of

Script = Callable[[list[int], int], list[int]]


class ScriptedTree:
    """Grows a random tree around what a script says comes next, sometimes none, in any topological order."""

    def __init__(self, ops: Any, script: Script, seed: int, nodes: int = 9, best_first: bool = False) -> None:
        self.ops, self.script, self.nodes, self.best_first = ops, script, nodes, best_first
        self.chosen = random.Random(seed)

    def propose(self, batch: Any, limits: Sequence[int], rule: str) -> Proposal:
        tokens: list[int] = []
        parents: list[int] = []
        offsets = [0]
        for row, limit in enumerate(limits):
            if batch.active[row]:
                one, above = self._tree(batch.texts[row], limit)
                tokens += one
                parents += above
            offsets.append(len(tokens))
        tree, _ = self.ops.tree.from_parents(
            torch.tensor(tokens, dtype=torch.int64),
            torch.tensor(parents, dtype=torch.int32),
            torch.tensor(offsets, dtype=torch.int32),
            max_nodes=self.nodes,
            max_depth=max(limits),
        )
        return Proposal(tree=tree)

    def _tree(self, text: list[int], limit: int) -> tuple[list[int], list[int]]:
        right = self.script(text, limit)
        tokens, parents, depths = [text[-1]], [-1], [0]
        on_path = 0 if not self.best_first else None  # the node that the right continuation has come to
        while len(tokens) < self.nodes and limit:
            if self.best_first and depths[-1] < min(limit, len(right)) and len(tokens) == depths[-1] + 1:
                parent, token = len(tokens) - 1, right[depths[-1]]
            else:
                parent, token = self.chosen.randrange(len(tokens)), self.chosen.randrange(VOCAB)
                if on_path is not None and depths[on_path] < len(right) and self.chosen.random() < 0.4:
                    parent, token = on_path, right[depths[on_path]]
                    on_path = len(tokens) if depths[parent] < limit else on_path
            if depths[parent] == limit:
                break
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
        return tokens, parents

    def observe(self, batch: Any, committed: Sequence[int]) -> None:
        """Nothing to learn."""


def tokens_of(outputs: Any) -> list[list[int]]:
    return [output.tokens for output in outputs]


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees_give_the_text_of_plain_decoding(ops, temperature):
    ops = OPS[ops]
    model = model_of(0)
    requests = requests_of(5, temperature)
    expected = plain(model, requests, ops)
    known = perfect(requests, expected)
    for seed, script in enumerate((known, corrupted(known, 5), noise(6))):
        for rule in ("match", "greedy", "rejection")[: 3 if temperature == 0 else 1]:
            drafter = ScriptedTree(ops, script, seed)
            decoder = Decoder(model, ops=ops, drafter=drafter, rule=rule, num_draft=4)
            assert tokens_of(decoder.generate(requests)) == expected, (seed, rule)
            if script is known:
                assert decoder.statistics.mean_tokens_per_step > 1.3


def test_neither_batch_nor_pages_change_the_text_of_trees():
    model = model_of(0)
    requests = requests_of(12, 0.9)
    expected = plain(model, requests)
    known = perfect(requests, expected)
    for setting in range(8):
        chosen = random.Random(setting)
        decoder = Decoder(
            model,
            ops=sk,
            drafter=ScriptedTree(sk, known, setting, nodes=chosen.choice((2, 5, 9, 24))),
            num_draft=chosen.choice((1, 2, 3, 7)),
            max_batch=chosen.choice((1, 2, 5, 12)),
            page_size=chosen.choice((1, 2, 4, 16)),
            logprobs=chosen.choice((None, "raw")),
        )
        chosen.shuffle(decoder.cache.free_pages)
        assert tokens_of(decoder.generate(requests)) == expected, setting
        assert sorted(decoder.cache.free_pages) == list(range(decoder.cache.num_pages))


def test_a_tree_that_is_always_right_is_as_good_as_a_chain():
    model = model_of(0)
    request = Request(prompt_of(1, 6), max_new_tokens=10)
    script = perfect([request], plain(model, [request]))
    decoder = Decoder(model, ops=sk, drafter=ScriptedTree(sk, script, 0, best_first=True), num_draft=4)
    decoder.generate([request])
    assert decoder.statistics.steps == 2
    assert decoder.statistics.drafted == decoder.statistics.accepted == [2, 2, 2, 2]


def test_the_positions_of_the_model_end_the_text_of_trees():
    model = model_of(0)
    request = Request(prompt_of(5, 40), max_new_tokens=200, temperature=0.9)
    expected = plain(model, [request])
    script = perfect([request], expected)
    output = Decoder(model, ops=sk, drafter=ScriptedTree(sk, script, 3, nodes=40), num_draft=7).generate([request])[0]
    assert output.tokens == expected[0] and len(output.tokens) == 24


# ---- the cache ---------------------------------------------------------------------------------------------------------


def contents(cache: PagedCache, row: int, length: int) -> torch.Tensor:
    """``[layers, length, 2, heads, dim]``: what a row holds, in the order of the positions."""
    pages = torch.tensor(cache.pages(row), dtype=torch.int64)
    return cache.storage[:, pages].flatten(1, 2)[:, :length]


class Checked:
    """A drafter behind which every step's cache is compared with that of a fresh prefill of the text."""

    def __init__(self, drafter: Any) -> None:
        self.drafter = drafter
        self.decoder: Any = None
        self.compared = 0

    def __getattr__(self, name: str) -> Any:
        """What reads hidden states has more to it: ``features``, ``prime`` and ``absorb``."""
        return getattr(self.drafter, name)

    def propose(self, batch: Any, limits: Sequence[int], rule: str) -> Proposal:
        return self.drafter.propose(batch, limits, rule)  # type: ignore[no-any-return]

    def observe(self, batch: Any, committed: Sequence[int]) -> None:
        self.drafter.observe(batch, committed)
        decoder = self.decoder
        for row in batch.live:
            text = batch.texts[row]
            fresh = PagedCache(decoder.model.config, 1, page_size=4)
            prefill(decoder.model, decoder.ops, fresh, 0, text[:-1], 0, 7)
            ours, theirs = contents(decoder.cache, row, len(text) - 1), contents(fresh, 0, len(text) - 1)
            assert torch.equal(ours, theirs), (row, len(text))
            self.compared += committed[row] > 1


class Moves:
    """A trace that counts the steps of requests whose accepted path was not the first one of the tree."""

    def __init__(self) -> None:
        self.count = 0

    def request(self, serial: int, request: Request) -> None:
        """Of no interest."""

    def step(self, tree: Any, logits: Any, rows: Any, result: Any, *rest: Any) -> None:
        for path, count in zip(result.path.tolist(), result.num_tokens.tolist(), strict=True):
            self.count += path[:count] != list(range(count))

    def finish(self, serial: int, output: Any) -> None:
        """Of no interest."""


TREES = ("tree", "wide tree", "eagle3-tree", "ddtree")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", [*TREES, "chain", "ngram", "independent", "eagle3", "dflash"])
def test_the_cache_after_a_step_is_that_of_a_fresh_prefill(kind, temperature):
    """To the bit, for every drafter: where a tree was accepted off its first path, rows had to move."""
    model = model_of(0, num_hidden_layers=4)
    requests = requests_of(4, temperature)
    if kind == "ngram":
        requests = [Request([3, 4, 5, 6] * 3 + [i], max_new_tokens=16, temperature=temperature) for i in range(3)]
    known = perfect(requests, plain(model, requests))
    drafter = {
        "tree": lambda: ScriptedTree(sk, known, 1),
        "wide tree": lambda: ScriptedTree(sk, known, 2, nodes=30),
        "chain": lambda: Scripted(corrupted(known, 3)),
        "ngram": lambda: NgramDrafter(sk),
        "independent": lambda: IndependentDrafter(model_of(1), sk),
        "eagle3": lambda: Eagle3Drafter(head_of(model, 5, scale=0.5), sk),
        "eagle3-tree": lambda: Eagle3Drafter(head_of(model, 5, scale=0.5), sk, beams=6, nodes=40),
        "dflash": lambda: DFlashDrafter(drafter_model(model), sk),
        "ddtree": lambda: DFlashDrafter(drafter_model(model), sk, nodes=40, ranks=VOCAB),
    }[kind]()
    checked, moves = Checked(drafter), Moves()
    checked.decoder = Decoder(model, ops=sk, drafter=checked, num_draft=4, page_size=2, trace=moves)
    checked.decoder.generate(requests)
    assert checked.compared > (kind in (*TREES, "chain"))
    assert (moves.count > 1) == (kind in TREES)
