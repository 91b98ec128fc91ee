"""EAGLE-3 heads: checkpoints of several exporters, the architecture, and what is refused."""

import pytest
import torch

from python_ref.models.eagle3 import Eagle3Config
from python_ref.models.eagle3_checkpoint import is_eagle3, load_eagle3, save_eagle3
from python_ref.models.transformer import causal

from .heads import KEPT, SHAPE, VOCAB, straightforward, target_of, tensors_of, write
from .helpers import RowByRow

REDUCED = {**SHAPE, "draft_vocab_size": len(KEPT)}


def renamed(tensors, layer, prefix=""):
    return {prefix + name.replace("midlayer", layer): tensor for name, tensor in tensors.items()}


NAMINGS = {
    "published": lambda t: t,
    "layers.0": lambda t: renamed(t, "layers.0"),
    "model.layers.0": lambda t: renamed(t, "layers.0", "model."),
    "model.midlayer": lambda t: renamed(t, "midlayer", "model."),
    "only the layer in model": lambda t: renamed(t, "model.layers.0"),
    "with rotary frequencies": lambda t: t | {"midlayer.self_attn.rotary_emb.inv_freq": torch.ones(5)},
}


def outputs(head, target, ids):
    """Hidden states and logits of the pairs of a text, by the features of the target."""
    count = len(ids) - 1
    positions = torch.arange(count)
    features = target(ids[:-1], positions, causal(1), features=head.features)[1]
    hidden = head(head.fuse(features), ids[1:], positions, causal(1))
    return features, hidden, head.logits(hidden)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("raw", [SHAPE, REDUCED], ids=["whole vocabulary", "reduced vocabulary"])
def test_every_exporter_gives_the_same_head(raw, naming, file, tmp_path):
    target, tensors = target_of(), tensors_of(raw)
    directory = write(tmp_path, raw, NAMINGS[naming](tensors), file)
    assert is_eagle3(directory)
    head = load_eagle3(directory, target)
    ids = torch.arange(20) * 7 % VOCAB
    features, hidden, logits = outputs(head, target, ids)
    wanted = straightforward(tensors, raw, target.model.embed_tokens.weight[ids[1:]], features)
    torch.testing.assert_close(hidden.double(), wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits.double(), wanted[1], rtol=1e-4, atol=1e-5)
    assert all(not parameter.requires_grad for parameter in head.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "rms_norm_eps": 1e-2, "rope_theta": 100.0},
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 5, 6]}},
    ],
)
def test_the_architecture_follows_its_configuration(options, tmp_path):
    raw = REDUCED | options
    ids = raw.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids", [1, 2, 3])
    target, tensors = target_of(), tensors_of(raw, features=len(ids))
    head = load_eagle3(write(tmp_path, raw, tensors), target)
    assert list(head.features) == ids
    text = torch.arange(25) * 11 % VOCAB
    features, hidden, logits = outputs(head, target, text)
    stream = target(text[:-1], torch.arange(24), causal(1), features=ids)[1]
    assert torch.equal(features, stream)
    wanted = straightforward(tensors, raw, target.model.embed_tokens.weight[text[1:]], features)
    torch.testing.assert_close(hidden.double(), wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits.double(), wanted[1], rtol=1e-4, atol=1e-5)


def test_d2t_is_an_offset(tmp_path):
    target = target_of()
    head = load_eagle3(write(tmp_path, REDUCED, tensors_of(REDUCED)), target)
    assert torch.equal(head.target_ids(), KEPT)
    draft_ids = head.draft_ids()
    assert torch.equal(draft_ids[KEPT], torch.arange(len(KEPT)))
    assert int((draft_ids >= 0).sum()) == len(KEPT)
    assert torch.equal(head.t2d, draft_ids >= 0)


def test_exporters_may_leave_t2d_out_and_put_identities_in(tmp_path):
    target, tensors = target_of(), tensors_of(REDUCED)
    head = load_eagle3(write(tmp_path / "a", REDUCED, {n: t for n, t in tensors.items() if n != "t2d"}), target)
    assert torch.equal(head.t2d, tensors["t2d"])
    short = tensors | {"d2t": tensors["d2t"].int(), "t2d": tensors["t2d"].to(torch.uint8)}
    head = load_eagle3(write(tmp_path / "b", REDUCED, short), target)
    assert head.d2t.dtype == torch.int64 and torch.equal(head.d2t, tensors["d2t"])
    identity = {"d2t": torch.zeros(VOCAB, dtype=torch.int64), "t2d": torch.ones(VOCAB, dtype=torch.bool)}
    head = load_eagle3(write(tmp_path / "c", SHAPE, tensors_of(SHAPE) | identity), target)
    assert head.d2t is None and head.t2d is None and head.target_ids() is None and head.draft_ids() is None


def test_an_embedding_of_its_own_is_used_and_frees_the_width(tmp_path):
    target = target_of()
    raw = {**REDUCED, "hidden_size": 24, "target_hidden_size": 32}
    tensors = tensors_of(raw) | {"embed_tokens.weight": torch.randn(VOCAB, 24)}
    head = load_eagle3(write(tmp_path, raw, tensors), target)
    ids = torch.arange(12)
    features, hidden, _ = outputs(head, target, ids)
    wanted = straightforward(tensors, raw, tensors["embed_tokens.weight"][ids[1:]], features)
    torch.testing.assert_close(hidden.double(), wanted[0], rtol=1e-4, atol=1e-5)


def test_outputs_go_on_without_fc(tmp_path):
    """The second draft of a chain: its hidden state is the first one's output, one position further on."""
    target, tensors = target_of(), tensors_of(REDUCED)
    head = load_eagle3(write(tmp_path, REDUCED, tensors), target)
    ids = torch.arange(6)
    features, hidden, _ = outputs(head, target, ids)
    fed = [1, 2, 3, 4, 5, 9]
    again = head(torch.cat((head.fuse(features), hidden[-1:])), torch.tensor(fed), torch.arange(6), causal(1))
    torch.testing.assert_close(again[:-1], hidden)
    # As if the target's features had led to that output: an fc that is inverted.
    led = features.double() @ tensors["fc.weight"].double().T
    wide = dict(tensors, **{"fc.weight": torch.eye(32)})
    embedded = target.model.embed_tokens.weight[fed]
    wanted = straightforward(wide, REDUCED, embedded, torch.cat((led, hidden[-1:].double())))[0]
    torch.testing.assert_close(again.double(), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_saved_is_loaded(tmp_path):
    target, tensors = target_of(), tensors_of(REDUCED)
    head = load_eagle3(write(tmp_path / "a", REDUCED, tensors), target)
    save_eagle3(head, REDUCED, tmp_path / "b", torch.float32)
    again = load_eagle3(tmp_path / "b", target)
    assert set(again.state_dict()) == set(tensors)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in tensors.items())
    save_eagle3(head, REDUCED, tmp_path / "c", torch.bfloat16)
    assert load_eagle3(tmp_path / "c", target).weight.dtype == torch.float32
    assert load_eagle3(tmp_path / "c", target, dtype=torch.float16).weight.dtype == torch.float16


def test_a_row_does_not_depend_on_its_neighbours(tmp_path):
    target = target_of()
    head = load_eagle3(write(tmp_path, REDUCED, tensors_of(REDUCED)), target)
    head.use_linear(RowByRow, torch.float32)

    def own(layer, query, key, value):
        return query * key.repeat_interleave(2, 1) + value.repeat_interleave(2, 1)

    generator = torch.Generator().manual_seed(0)
    features, ids = torch.randn(9, 96, generator=generator), torch.arange(9)
    hidden = head(head.fuse(features), ids, ids, own)
    logits = head.logits(hidden)
    for i in range(9):
        one = slice(i, i + 1)
        alone = head(head.fuse(features[one]), ids[one], ids[one], own)
        assert torch.equal(alone, hidden[one]) and torch.equal(head.logits(alone), logits[one])


BROKEN = {
    "no config": (None, {}, FileNotFoundError, "config.json must exist in"),
    "unknown": (
        {"architectures": ["BertModel"]},
        {},
        ValueError,
        "architectures must name one of LlamaForCausalLMEagle3",
    ),
    "two layers": ({"num_hidden_layers": 2}, {}, ValueError, "num_hidden_layers must be 1, got 2"),
    "other norm": ({"norm_before_residual": True}, {}, ValueError, "norm_before_residual must be false, got True"),
    "vocabulary": ({"vocab_size": 70}, {}, ValueError, "vocab_size must be that of the target, 61, got 70"),
    "too large": ({"draft_vocab_size": 62}, {}, ValueError, "draft_vocab_size must be at most vocab_size 61, got 62"),
    "no number": ({"draft_vocab_size": "x"}, {}, ValueError, "draft_vocab_size must be a positive integer, got 'x'"),
    "target's width": (
        {"target_hidden_size": 16},
        {},
        ValueError,
        "target_hidden_size must be that of the target, 32, got 16",
    ),
    "own width": (
        {"hidden_size": 24, "target_hidden_size": 32},
        {},
        ValueError,
        "hidden_size must be that of the target, whose embedding is borrowed, 32, got 24",
    ),
    "a layer too high": (
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 7]}},
        {},
        ValueError,
        "eagle_aux_hidden_state_layer_ids must be below 7, the layers of the target, got 7",
    ),
    "no layers": (
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}},
        {},
        ValueError,
        "eagle_aux_hidden_state_layer_ids must be a list of layers, got []",
    ),
    "missing": ({}, {"fc.weight": None}, ValueError, "the checkpoint must hold fc.weight, got no such tensor"),
    "superfluous": ({}, {"x": torch.ones(1)}, ValueError, "the checkpoint must hold known tensors only, got x"),
    "misshapen": (
        {},
        {"fc.weight": torch.ones(32, 64)},
        ValueError,
        "fc.weight must have shape [32, 96], got [32, 64]",
    ),
    "integers": (
        {},
        {"norm.weight": torch.ones(32, dtype=torch.int32)},
        ValueError,
        "norm.weight must hold floating-point numbers, got torch.int32",
    ),
    "twice": (
        {},
        {"model.norm.weight": torch.ones(32)},
        ValueError,
        "the checkpoint must hold norm.weight once, got it under two names",
    ),
    "no d2t": ({}, {"d2t": None, "t2d": None}, ValueError, "the checkpoint must hold d2t, got no such tensor"),
    "d2t too short": (
        {},
        {"d2t": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        "d2t must hold 17 integers, got [3] of torch.int64",
    ),
    "d2t of ids": ({}, {"d2t": KEPT}, ValueError, "d2t must lead to 17 different ids below 61, got others"),
    "d2t twice": (
        {},
        {"d2t": -torch.arange(17)},
        ValueError,
        "d2t must lead to 17 different ids below 61, got others",
    ),
    "another t2d": (
        {},
        {"t2d": torch.ones(61, dtype=torch.bool)},
        ValueError,
        "t2d must mark the 17 ids of d2t among 61, got others",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_sentence(case, tmp_path):
    options, changes, error, message = BROKEN[case]
    raw = REDUCED | (options or {})
    tensors = {name: tensor for name, tensor in (tensors_of(REDUCED) | changes).items() if tensor is not None}
    write(tmp_path, raw, tensors)
    if options is None:
        (tmp_path / "config.json").unlink()
    with pytest.raises(error) as caught:
        load_eagle3(tmp_path, target_of())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_permutation_of_the_whole_vocabulary_is_refused(tmp_path):
    ids = torch.arange(VOCAB).flip(0)
    tensors = tensors_of(SHAPE) | {"d2t": ids - torch.arange(VOCAB)}
    with pytest.raises(ValueError, match="d2t must be 0 where the vocabularies are the same, got a permutation"):
        load_eagle3(write(tmp_path, SHAPE, tensors), target_of())


@pytest.mark.parametrize("content", [b"", b"nothing of torch", b"\x80\x02K\x01."])
def test_a_damaged_torch_file_is_refused(content, tmp_path):
    write(tmp_path, SHAPE, tensors_of(SHAPE), "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match="pytorch_model.bin must ") as caught:
        load_eagle3(tmp_path, target_of())
    assert "\n" not in str(caught.value)


def test_a_torch_file_of_something_else_is_refused(tmp_path):
    write(tmp_path, SHAPE, tensors_of(SHAPE), "pytorch_model.bin")
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin must hold a dictionary of tensors, got list"):
        load_eagle3(tmp_path, target_of())


def test_no_weights_and_a_dtype_that_cannot_be_served(tmp_path):
    write(tmp_path, SHAPE, tensors_of(SHAPE))
    with pytest.raises(ValueError, match="load_eagle3: dtype must be float32, bfloat16 or float16, got torch.float64"):
        load_eagle3(tmp_path, target_of(), dtype=torch.float64)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors must exist in"):
        load_eagle3(tmp_path, target_of())


def test_a_decoder_is_no_head(tmp_path):
    write(tmp_path, {"architectures": ["LlamaForCausalLM"]}, {"x": torch.ones(1)})
    assert not is_eagle3(tmp_path) and not is_eagle3(tmp_path / "nowhere")


def test_a_draft_vocabulary_that_is_not_named_is_the_targets():
    config = Eagle3Config.from_dict({**SHAPE, "architectures": ["LlamaForCausalLM"], "draft_vocab_size": None})
    assert config.draft_vocab_size == VOCAB and not config.is_reduced and config.num_features == 3
