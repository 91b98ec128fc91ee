"""A whole step: the backends agree, and it is one graph for a compiler and for fake tensors."""

import pytest
import torch
from agreement.compare import device_of, same
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from . import steps

pytestmark = pytest.mark.op(*steps.OPS)


def tensors(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def written(given, backend, function=steps.step):
    """Everything that a step gives or changes."""
    result = function(given, backend)
    return [tensor.cpu() for tensor in tensors((result, given.key_cache, given.value_cache))]


@pytest.mark.parametrize("number", range(6))
def test_a_step_decides_and_moves_what_the_reference_does(backend, number):
    ours = written(steps.inputs(number, device_of(backend)), backend)
    theirs = written(steps.inputs(number), "reference")
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(a, b)


def test_some_of_these_steps_accept_drafts_and_move_rows():
    tokens, moved = 0, 0
    for number in range(6):
        given = steps.inputs(number)
        result, _, lengths = steps.step(given, "reference")
        assert torch.equal(lengths, given.context_lens + result.num_tokens)
        tokens += int(result.num_tokens.sum())
        place = torch.arange(result.path.shape[1])
        moved += int(((result.path > place) & (place < result.num_tokens[:, None])).sum())
    assert tokens > 6 * steps.BATCH - 3 and moved > 0


def test_a_step_is_one_graph(backend):
    compiled = torch.compile(steps.step, fullgraph=True, backend="aot_eager")
    try:
        for number in (0, 1):
            device = device_of(backend)
            ours = written(steps.inputs(number, device), backend, compiled)
            assert all(map(same, ours, written(steps.inputs(number, device), backend)))
    finally:
        torch._dynamo.reset()


def test_a_step_of_fake_tensors_has_the_shapes_of_a_real_one(backend):
    given = steps.inputs(0, device_of(backend))
    with FakeTensorMode() as mode:
        made = tensors(steps.step(pytree.tree_map_only(torch.Tensor, mode.from_tensor, given), backend))
    for fake, real in zip(made, tensors(steps.step(given, backend)), strict=True):
        assert isinstance(fake, FakeTensor)
        assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)
