"""Which backend computes: argument, then ``use_backend``, then ``SPECDEC_BACKEND``, then automatic. Nothing falls back."""

import threading

import processes
import pytest
import torch
from agreement.compare import device_of

import specdec_kernels as sk
from specdec_kernels import _backend, _library
from specdec_kernels._schema import BY_NAME, OPS

from .samples import function, sample

CHAINS = torch.tensor([[5, 6, 7]])


@pytest.fixture
def computed(monkeypatch):
    """The backends that have computed ``tree.from_chains``: what reached the dispatcher, and what the oracle."""
    names = []
    monkeypatch.setitem(_library.OVERLOADS, "tree_from_chains", lambda *arguments: names.append("dispatcher"))
    monkeypatch.setattr(_backend, "reference", lambda op: lambda *arguments: names.append("reference"))
    return names


def chains(backend=None):
    sk.tree.from_chains(CHAINS, backend=backend)


def test_automatic_takes_the_kernels_of_the_device(computed):
    chains()
    assert computed == ["dispatcher"]


def test_use_backend_beats_automatic_and_the_argument_beats_both(computed):
    with sk.use_backend("reference"):
        chains()
        chains("cpu")
    with sk.use_backend("cpu"):
        chains()
        chains("reference")
    assert computed == ["reference", "dispatcher", "dispatcher", "reference"]


def test_blocks_nest_and_end_with_an_exception(computed):
    with sk.use_backend("reference"):
        with pytest.raises(KeyError), sk.use_backend("cpu"):
            chains()
            raise KeyError
        chains()
    chains()
    assert computed == ["dispatcher", "reference", "dispatcher"]


def test_a_block_counts_on_every_thread(computed):
    with sk.use_backend("reference"):
        other = threading.Thread(target=chains)
        other.start()
        other.join()
    assert computed == ["reference"]


def test_automatic_goes_on_to_the_oracle_where_no_kernel_is(computed, monkeypatch):
    monkeypatch.setitem(_backend._REASONS, ("tree_from_chains", "cpu"), "module _C has no kernel for it yet")
    chains()
    assert computed == ["reference"]


# What a process with SPECDEC_BACKEND=reference takes: automatic, use_backend, argument.
ENVIRONMENT = """
import torch
import specdec_kernels as sk
from specdec_kernels import _backend, _library
names = []
_library.OVERLOADS["tree_from_chains"] = lambda *arguments: names.append("dispatcher")
_backend.reference = lambda op: lambda *arguments: names.append("reference")
chains = torch.tensor([[5, 6, 7]])
sk.tree.from_chains(chains)
with sk.use_backend("cpu"):
    sk.tree.from_chains(chains)
    sk.tree.from_chains(chains, backend="reference")
sk.tree.from_chains(chains, backend="cpu")
print(*names)
"""


@pytest.mark.parametrize(("value", "first"), [("reference", "reference"), ("cpu", "dispatcher"), ("", "dispatcher")])
def test_the_environment_beats_automatic_alone(value, first):
    said = processes.python(ENVIRONMENT, SPECDEC_BACKEND=value)
    assert said.split() == [first, "dispatcher", "reference", "dispatcher"]


def test_an_unknown_name_in_the_environment_stops_the_first_op():
    program = "import torch, specdec_kernels as sk\nsk.tree.from_chains(torch.zeros((1, 2), dtype=torch.int64))"
    error = processes.error_of(program, SPECDEC_BACKEND="gpu")
    assert error == "ValueError: SPECDEC_BACKEND must be one of cuda, triton, cpu, reference, got 'gpu'"


def test_what_the_environment_cannot_be_served_raises():
    program = "import torch, specdec_kernels as sk\nsk.tree.from_chains(torch.zeros((1, 2), dtype=torch.int64))"
    error = processes.error_of(program, SPECDEC_BACKEND="triton")
    reason = sk.available_backends("tree_from_chains")["triton"]
    name = "specdec_kernels._backend.BackendUnavailableError"
    assert error == f"{name}: tree.from_chains: backend must be available, got 'triton': {reason}"


@pytest.mark.parametrize("name", ["gpu", "CPU", "torch", ""])
def test_an_unknown_name_is_refused(name):
    sentence = f"^backend must be one of cuda, triton, cpu, reference, got '{name}'$"
    with pytest.raises(ValueError, match=sentence):
        chains(name)
    with pytest.raises(ValueError, match=sentence), sk.use_backend(name):
        pass


UNSERVED = [
    (op.name, backend)
    for op in OPS
    for backend in sk.BACKENDS
    if backend != "cpu" and sk.available_backends(op.name)[backend] is not None
]


@pytest.mark.parametrize(("op", "backend"), UNSERVED)
def test_a_backend_that_cannot_serve_raises_with_the_reason(op, backend):
    text = f"{op.replace('_', '.', 1)}: backend must be available, got '{backend}': "
    text += sk.available_backends(op)[backend]
    call = sample(op, full=False)
    with pytest.raises(sk.BackendUnavailableError) as raised:
        function(op)(**call, backend=backend)
    assert str(raised.value) == text
    with sk.use_backend(backend), pytest.raises(sk.BackendUnavailableError) as raised:
        function(op)(**call)
    assert str(raised.value) == text


def test_the_error_is_a_runtime_error():
    assert issubclass(sk.BackendUnavailableError, RuntimeError)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_kernels_of_another_device_are_not_called(backend, monkeypatch):
    """An explicit choice never moves tensors, nor does another backend take them."""
    monkeypatch.setitem(_backend._REASONS, ("tree_from_chains", backend), None)
    tokens = CHAINS.to("meta")
    with pytest.raises(sk.BackendUnavailableError) as raised:
        sk.tree.from_chains(tokens, backend=backend)
    expected = f"tree.from_chains: backend must be available, got '{backend}': the tensors are on meta"
    assert str(raised.value) == expected


@pytest.mark.parametrize("op", [op.name for op in OPS if "cuda" not in op.backends])
def test_reasons_of_ops_of_the_cpu_alone(op):
    reasons = sk.available_backends(op)
    assert reasons["cuda"] == reasons["triton"] == "the op exists on cpu, reference only"


@pytest.mark.op("tree_from_chains")
def test_results_lie_on_the_device_of_the_inputs(backend):
    made = sk.tree.from_chains(CHAINS.to(device_of(backend)), backend=backend)
    assert {field.device.type for field in made if isinstance(field, torch.Tensor)} == {device_of(backend)}


#: Functions that compute on the host, without an op.
HOST = {"tree": {"optimal"}}


def test_every_op_has_one_function_and_every_function_one_op():
    families = {op.family for op in OPS}
    assert families <= {module for module in sk.__all__ if module.islower()}
    for family in families:
        module = getattr(sk, family)
        public = {name for name in module.__all__ if name.islower()} - HOST.get(family, set())
        assert public == {op.function for op in BY_NAME.values() if op.family == family}
