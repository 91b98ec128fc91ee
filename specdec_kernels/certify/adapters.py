"""Other packages' verification functions as verifiers: what they are given, and how their results are read.

Each is called as its package calls it, with the processed laws as probabilities and noise from torch's generator. They run
where the package is installed (and, but for transformers, where there is a GPU). They are also examples of how to write an
adapter of one's own: a function of a :class:`~specdec_kernels.certify.decoding.Step`.
"""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree as trees
from .decoding import Step, Verifier


def _module(name: str) -> Any:
    """A module of another package, None where it cannot be imported, for whatever reason it has."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None


def _chain(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Drafts ``[B, N-1]``, their laws ``[B, N-1, V]``, and the target's ``[B, N, V]`` of chains."""
    parents = step.case.parents
    if list(parents) != list(range(-1, len(parents) - 1)):
        raise ValueError(f"certify: parents must be those of a chain for this function, got {list(parents)}")
    return step.tokens[:, 1:], step.draft_probs()[:, :-1].contiguous(), step.target_probs()


def transformers(step: Step) -> tuple[Tensor, Tensor]:
    """``transformers.generation.utils._speculative_sampling``: chains, one request at a time."""
    function = _module("transformers.generation.utils")._speculative_sampling
    drafts, draft, target = _chain(step)
    batch, count = drafts.shape
    tokens = torch.full((batch, count + 1), -1, dtype=torch.int64)
    numbers = torch.ones(batch, dtype=torch.int64)
    for b in range(batch):  # its logits are softmaxed once more: logarithms of the laws
        valid, matches = function(drafts[b : b + 1], draft[b : b + 1].log(), count, target[b : b + 1].log())
        numbers[b] = int(matches) + 1
        tokens[b, : valid.shape[1]] = valid[0]
    return tokens, numbers


def flashinfer(step: Step) -> tuple[Tensor, Tensor]:
    """``flashinfer.sampling.chain_speculative_sampling``: chains."""
    drafts, draft, target = _chain(step)
    seed, offset = (int(torch.randint(2**31, (1,))) for _ in range(2))
    made = _module("flashinfer.sampling").chain_speculative_sampling(
        draft, drafts.int(), target, seed=seed, offset=offset
    )
    return made[0].long(), (made[0] >= 0).sum(1)


def vllm(step: Step) -> tuple[Tensor, Tensor]:
    """``vllm.v1.sample.rejection_sampler.rejection_sample``: chains; the bonus token is drawn by the caller.

    Older versions take the target's probabilities, newer ones its logits, of which they take the softmax.
    """
    drafts, draft, target = _chain(step)
    batch, count = drafts.shape
    bonus = torch.multinomial(target[:, -1], 1)
    every = torch.arange(1, batch + 1, dtype=torch.int32, device=drafts.device) * count
    settings = SimpleNamespace(
        all_greedy=False,
        all_random=True,
        temperature=torch.ones(batch, device=drafts.device),
        generators={},
        top_k=None,
        top_p=None,
    )
    flat = (drafts.flatten().int(), [count] * batch, count, every)
    function = _module("vllm.v1.sample.rejection_sampler").rejection_sample
    judged = target[:, :-1].flatten(0, 1).contiguous()
    if "target_logits" in inspect.signature(function).parameters:
        judged = judged.log()
    made = function(*flat, draft.flatten(0, 1), judged, bonus.int(), settings)
    return made.long(), (made >= 0).sum(1)


def sglang(step: Step) -> tuple[Tensor, Tensor]:
    """``sgl_kernel.tree_speculative_sampling_target_only`` at thresholds of 1: trees of deterministic drafts."""
    tokens, device = step.tokens, step.tokens.device
    batch, nodes = tokens.shape
    width = step.tree.max_depth + 1
    links = trees.to_links(step.tree, dtype=torch.int64)
    predicted = torch.full((batch * nodes,), -1, dtype=torch.int32, device=device)
    accepted = torch.full((batch, width), -1, dtype=torch.int32, device=device)
    number = torch.zeros(batch, dtype=torch.int32, device=device)
    target = step.target_probs().contiguous()
    coins = torch.rand((batch, nodes), device=device), torch.rand(batch, device=device)
    index = torch.arange(batch * nodes, device=device).view(batch, nodes)
    structure = (tokens.contiguous(), index, links.first_child, links.next_sibling)
    _module("sgl_kernel").tree_speculative_sampling_target_only(
        predicted, accepted, number, *structure, *coins, target, torch.zeros_like(target), 1.0, 1.0, True
    )
    emitted = predicted[accepted.clamp(min=0).long()].long()
    return torch.where(accepted >= 0, emitted, -1), number.long() + 1


class Peer(NamedTuple):
    """A function of another package.

    Attributes:
        op: its name.
        verifier: its adapter.
        rule: the rule whose cases it can be given.
        module: what must be importable.
        device: where it runs.
        trees: whether it takes trees.
        trials: how many texts its speed allows.
    """

    op: str
    verifier: Verifier
    rule: str
    module: str
    device: str
    trees: bool
    trials: int

    def missing(self) -> str | None:
        """Why it cannot run here; None: it can."""
        if _module(self.module) is None:
            return f"{self.module} cannot be imported"
        if self.device == "cuda" and not torch.cuda.is_available():
            return "there is no GPU"
        return None


PEERS = (
    Peer(
        "transformers._speculative_sampling",
        transformers,
        "token",
        "transformers.generation.utils",
        "cpu",
        False,
        2_500,
    ),
    Peer("flashinfer.chain_speculative_sampling", flashinfer, "token", "flashinfer.sampling", "cuda", False, 200_000),
    Peer("vllm.rejection_sample", vllm, "token", "vllm.v1.sample.rejection_sampler", "cuda", False, 200_000),
    Peer("sgl_kernel.tree_speculative_sampling_target_only", sglang, "threshold", "sgl_kernel", "cuda", True, 200_000),
)
