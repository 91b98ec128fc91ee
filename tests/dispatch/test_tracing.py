"""Public functions under ``FakeTensorMode`` and ``torch.compile(fullgraph=True)``."""

import pytest
import torch
from agreement.compare import device_of, move, same
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

import specdec_kernels as sk

from .samples import function, sample, served

FULL = pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])
EVERY = pytest.mark.parametrize(("op", "backend"), served())


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    yield
    torch._dynamo.reset()


def tensors(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def call_of(op, backend, full, batch=2):
    """Arguments on the backend's device; the same ones at each call."""
    torch.manual_seed(batch)
    return move(tuple(sample(op, full, batch).items()), device_of(backend))


def outcome(called, call, backend):
    """What a call gives, and its arguments, some of which it may have written."""
    return tensors((called(**call, backend=backend), call))


@FULL
@EVERY
def test_fake_results_have_the_shapes_and_dtypes_of_real_ones(op, backend, full):
    call = dict(call_of(op, backend, full))
    expected = outcome(function(op), call, backend)
    with FakeTensorMode() as mode:
        fake = pytree.tree_map_only(torch.Tensor, mode.from_tensor, call)
        made = outcome(function(op), fake, backend)
    assert len(made) == len(expected) > 0
    for ours, real in zip(made, expected, strict=True):
        assert isinstance(ours, FakeTensor)
        assert (ours.shape, ours.dtype, ours.device) == (real.shape, real.dtype, real.device)


@FULL
@EVERY
def test_compiled_code_gives_the_same_bits_for_two_sizes(op, backend, full):
    """One compiled callable, no graph break, the results of eager mode."""
    compiled = torch.compile(function(op), fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        expected = outcome(function(op), dict(call_of(op, backend, full, batch)), backend)
        made = outcome(compiled, dict(call_of(op, backend, full, batch)), backend)
        assert all(same(ours.cpu(), real.cpu()) for ours, real in zip(made, expected, strict=True))


@pytest.mark.op("draft_ngram_lookup", "tree_from_chains")
def test_two_ops_make_one_graph_of_the_default_compiler(backend):
    """The result of one op is the input of the next: mutation is functionalised and put back."""

    def step(history, lengths):
        drafts, counts = sk.draft.ngram_lookup(history, lengths, 1, 3, 2, backend=backend)
        chains = torch.cat((history[:, -1:], drafts), dim=1)
        return sk.tree.from_chains(chains, counts + 1, backend=backend)

    device = device_of(backend)
    history = torch.tensor([[1, 2, 3, 1, 2], [4, 4, 4, 4, 4], [1, 2, 3, 4, 5]], device=device)
    lengths = torch.full((3,), 5, device=device)
    made = tensors(torch.compile(step, fullgraph=True)(history, lengths))
    assert all(map(torch.equal, made, tensors(step(history, lengths))))


@pytest.mark.op("linear_pack")
def test_compiled_code_follows_the_choice_of_a_backend(backend):
    """A choice made after compilation is not overruled by what was compiled before."""
    compiled = torch.compile(sk.linear.pack, fullgraph=True, backend="aot_eager")
    weight = torch.eye(2)
    with sk.use_backend(backend):
        assert compiled(weight).data[0, :, :2].tolist() == weight.tolist()
    with sk.use_backend("triton"), pytest.raises(Exception, match="the op exists on cpu, reference only"):
        compiled(weight)
