"""Memory: what is written and what is not, any strides, both widths of indices, offsets past 2^31 elements."""

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk

from . import compare
from .calls import LAW, call, check, equal, outcome, poisoned
from .cases import Draw, chain_tree, rows
from .sample_cases import Case as SampleCase
from .verify_cases import UNDRAWN
from .verify_cases import Case as VerifyCase

EVERY = pytest.mark.op(*LAW)
SENTINEL = 48


def fields(result):
    """The tensors of a result, those of records in it as well."""
    if isinstance(result, tuple):
        return [field for part in result for field in fields(part)]
    return [result] if isinstance(result, torch.Tensor) else []


def rebuilt(result, change):
    """The result with every tensor replaced."""
    if not isinstance(result, tuple):
        return change(result) if isinstance(result, torch.Tensor) else result
    made = [rebuilt(field, change) for field in result]
    return type(result)(*made) if hasattr(result, "_fields") else tuple(made)


class Windows:
    """Outputs that lie in the middle of larger buffers, full of poison."""

    def __init__(self):
        self.buffers = []

    def __call__(self, like):
        size = like.numel()
        buffer = poisoned(like.new_empty(size + 2 * SENTINEL))
        self.buffers.append((buffer, size))
        return buffer[SENTINEL : SENTINEL + size].view(like.shape)

    def untouched(self):
        """Whether nothing is written around the outputs."""
        for buffer, size in self.buffers:
            around = torch.cat((buffer[:SENTINEL], buffer[SENTINEL + size :]))
            if not compare.same(around, poisoned(around)):
                return False
        return True


def rewritten(function, arguments):
    """Call twice, the second time into poisoned windows; both results."""
    first = function(**arguments)
    windows = Windows()
    out = rebuilt(first, windows)
    second = function(**arguments, out=out)
    assert windows.untouched(), "written out of bounds"
    given = [field.data_ptr() for field in fields(out)]
    assert [field.data_ptr() for field in fields(second)] == given, "out= is not what comes back"
    return fields(first), fields(second)


def public(op, backend):
    family, name = op.split("_", 1)
    function = getattr(getattr(sk, family), name)
    return lambda **arguments: function(**arguments, backend=backend)


@EVERY
@pytest.mark.parametrize("op", LAW)
def test_every_element_of_an_output_is_written_and_no_other(backend, op):
    device = compare.device_of(backend)
    for seed in range(40):
        arguments = {name: compare.move(value, device) for name, value in call(op, seed).items()}
        windows = Windows()
        if op.startswith("sample"):
            count = arguments["logits"].shape[0]
            arguments["status"] = windows(torch.zeros(count, dtype=torch.int32, device=device))
        if op in compare.LOSSY:
            tree = arguments["tree"]
            wide = torch.zeros(tree.cu_nodes.numel() - 1, tree.max_depth + 1, device=device)
            arguments["divergence"] = windows(wide)
        assert equal(*rewritten(public(op, backend), arguments)), f"seed {seed}"
        assert windows.untouched()
        if op.startswith("sample"):
            assert not bool((arguments["status"] == 77).any())
        if op in compare.LOSSY:
            assert not bool(arguments["divergence"].isnan().any())


@pytest.mark.op("tree_from_chains", "draft_ngram_lookup")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_element_of_chains_and_lookups_is_written_and_no_other(backend, dtype):
    draw, device = Draw(3), compare.device_of(backend)
    for batch, width in ((0, 3), (1, 1), (3, 0), (4, 7), (33, 5)):
        tokens = draw.whole_tensor(0, 3, (batch, width), dtype).to(device)
        lengths = draw.whole_tensor(-1, width + 1, (batch,), dtype).to(device)
        calls = (
            ("tree_from_chains", {"tokens": tokens, "lengths": lengths}),
            ("draft_ngram_lookup", {"history": tokens, "lengths": lengths, "num": 3}),
        )
        for op, arguments in calls:
            assert equal(*rewritten(public(op, backend), arguments)), (op, batch, width)


@pytest.mark.op("linear_skinny", "linear_pack")
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_element_of_a_product_is_written_and_no_other(backend, weights, dtype):
    for count, outputs, inputs in ((0, 5, 3), (1, 1, 1), (3, 33, 0), (5, 31, 17), (70, 65, 9)):
        packed = sk.linear.pack(torch.randn(outputs, inputs), weights, backend=backend)
        arguments = {"x": torch.randn(count, inputs).to(dtype), "packed": packed}
        assert equal(*rewritten(public("linear_skinny", backend), arguments)), (count, outputs, inputs)


@EVERY
@pytest.mark.parametrize("op", LAW)
def test_inputs_are_left_as_they_were(backend, op):
    for seed in range(10):
        arguments = call(op, seed)
        device = compare.device_of(backend)
        moved = {name: compare.move(value, device) for name, value in arguments.items()}
        before = [field.clone() for value in moved.values() for field in fields(value)]
        public(op, backend)(**moved)
        after = [field for value in moved.values() for field in fields(value)]
        assert equal(before, after)


@EVERY
@pytest.mark.parametrize("op", LAW)
def test_strides_do_not_matter(backend, op):
    for seed in range(20):
        case = (SampleCase if op.startswith("sample") else VerifyCase)(op, seed)
        dense = outcome(backend, op, case.arguments)
        assert equal(dense, outcome(backend, op, case.strided())), f"seed {seed}"


@EVERY
def test_rows_that_are_one_row(backend):
    """A row stride of 0: all requests share one row."""
    row = rows(Draw(2), 1, 50, torch.float32, ("normal",))
    settings = sk.Sampling.of(9, temperature=0.8, top_k=20, seed=list(range(9)))
    for op, options in (("sample_sample", {}), ("sample_draft", {"num": 3})):
        arguments = {"sampling": settings, "positions": torch.arange(9)} | options
        shared = outcome(backend, op, arguments | {"logits": row.expand(9, -1)})
        assert equal(shared, outcome(backend, op, arguments | {"logits": row.expand(9, -1).contiguous()}))


@EVERY
@pytest.mark.parametrize("op", LAW)
def test_both_widths_of_indices_give_the_same_results(backend, op):
    """Every index tensor as int32 and as int64; tokens come back in the dtype of the tree's."""

    def widened(arguments, dtype):
        changed = {}
        for name, value in arguments.items():
            if name == "tree":
                changed[name] = value._replace(tokens=value.tokens.to(dtype))
            elif isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64) and name != "allowed":
                changed[name] = value.to(dtype)
        return arguments | changed

    for seed in range(20):
        arguments = call(op, seed, odd=False)
        wide = outcome(backend, op, widened(arguments, torch.int64))
        narrow = outcome(backend, op, widened(arguments, torch.int32))
        if op.startswith("verify"):
            assert (wide[0].dtype, narrow[0].dtype) == (torch.int64, torch.int32)
            narrow[0] = narrow[0].long()
        assert equal(wide, narrow), f"seed {seed}"


# ---- offsets past 2^31 elements -----------------------------------------------------------------------------------------

VOCAB = 300
STRIDE = 2**31 + 1000


@pytest.fixture(scope="module")
def far_rows():
    """Two rows of bfloat16 whose distance no 32-bit number holds; what lies between is never touched, so it costs nothing."""
    memory = torch.empty(STRIDE + VOCAB, dtype=torch.bfloat16)
    view = memory.as_strided((2, VOCAB), (STRIDE, 1))
    view.copy_(rows(Draw(8), 2, VOCAB, torch.bfloat16, ("normal",)))
    return view


def dense(arguments):
    """The same call with rows that lie side by side."""
    return {name: value.contiguous() if name.endswith("logits") else value for name, value in arguments.items()}


@pytest.mark.op(*LAW)
@pytest.mark.parametrize("op", LAW)
def test_rows_far_apart(op, far_rows):
    """The backend is the CPU's: a copy to another device would need the memory in between."""
    settings = sk.Sampling.of(2, temperature=0.9, top_p=0.9, seed=[3, 4])
    positions = torch.tensor([1, 2])
    if op.startswith("sample"):
        arguments = {"logits": far_rows, "sampling": settings, "positions": positions}
        arguments |= {"num": 4} if op == "sample_draft" else {}
    else:
        best = oracle.sample.draft(far_rows, settings._replace(temperature=torch.zeros(2)), positions, 1)
        tree = chain_tree([[0, int(best[1, 0])], [0, int(best[0, 0])]])
        arguments = {"tree": tree, "logits": far_rows, "rows": torch.tensor([1, 0, 0, 1]), "logprobs": "processed"}
    if op.startswith("verify") and op not in UNDRAWN:
        arguments |= {"sampling": settings, "context_lens": positions}
    if op == "verify_synthetic":
        arguments["rates"] = torch.tensor([0.7])
    if op == "verify_rejection":
        drafts = {"draft_logits": far_rows, "draft_rows": torch.tensor([1, 0, 0, 1]), "draft_sampling": settings}
        arguments |= drafts
    check("cpu", op, arguments, compare.Tally(f"{op}, rows far apart, cpu"))
    assert equal(outcome("cpu", op, arguments), outcome("cpu", op, dense(arguments)))


@pytest.mark.op("draft_ngram_lookup", "tree_from_chains")
def test_histories_and_chains_far_apart():
    memory = torch.empty(STRIDE + 8, dtype=torch.int32)
    history = memory.as_strided((2, 8), (STRIDE, 1))
    history.copy_(torch.tensor([[1, 2, 3, 1, 2, 0, 0, 0], [7, 7, 9, 7, 7, 0, 0, 0]]))
    lengths = torch.tensor([5, 5])
    ours = sk.draft.ngram_lookup(history, lengths, num=2, backend="cpu")
    expected = oracle.draft.ngram_lookup(history, lengths, num=2)
    assert equal(list(ours), list(expected))
    made = sk.tree.from_chains(history, lengths, backend="cpu")
    assert torch.equal(made.tokens, oracle.tree.from_chains(history, lengths).tokens)
