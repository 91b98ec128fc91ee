"""DFlash models: what their configurations say, and checkpoints written by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from python_ref.models import ModelConfig, Transformer
from python_ref.models.dflash import DFlash, DFlashConfig, feature_layers
from python_ref.models.dflash_checkpoint import is_dflash, load_dflash, save_dflash
from python_ref.models.transformer import causal

# The shape of a published checkpoint, as far as it is not a number of its own.
PUBLISHED = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "num_hidden_layers": 5,
    "num_target_layers": 36,
    "block_size": 16,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
    "layer_types": ["full_attention"] * 5,
    "sliding_window": None,
    "use_sliding_window": False,
    "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
}
SMALL = PUBLISHED | {
    "num_hidden_layers": 2,
    "num_target_layers": 6,
    "block_size": 4,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "vocab_size": 29,
    "layer_types": ["full_attention"] * 2,
    "dflash_config": {"mask_token_id": 28, "target_layer_ids": [0, 2, 3]},
}


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    raw = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 29,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    model = Transformer(ModelConfig.from_dict(raw)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=max(parameter.shape[-1], 1) ** -0.5)
    return model


def made(target, **changes):
    torch.manual_seed(1)
    model = DFlash(DFlashConfig.from_dict(SMALL | changes), target).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model


def test_a_published_configuration():
    config = DFlashConfig.from_dict(PUBLISHED)
    assert (config.block_size, config.mask_token_id) == (16, 151669)
    assert config.features == (1, 9, 17, 25, 33)
    assert config.causal == (False,) * 5
    assert config.windows == (0,) * 5
    assert config.layer.rotary.theta == 1e6
    assert config.layer.qk_norm


def test_the_layers_that_are_read_where_none_are_named():
    """One for each layer of the drafter, from the second to the fourth from the end."""
    assert feature_layers(5, 36) == (1, 9, 17, 25, 33)
    assert feature_layers(5, 64) == (1, 16, 31, 46, 61)
    assert feature_layers(1, 36) == (18,)
    assert feature_layers(2, 4) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "options", "causal_layers", "windows"),
    [
        ({}, {}, (False, False), (0, 0)),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9}, {}, (True, False), (9, 0)),
        ({"is_causal": True}, {}, (True, True), (0, 0)),
        ({}, {"causal": True}, (True, True), (0, 0)),
        ({"is_causal": False}, {"causal": True}, (False, False), (0, 0)),
        (
            {"layer_types": ["sliding_attention"] * 2, "sliding_window": 9},
            {"causal": False},
            (False, False),
            (9, 9),
        ),
        ({}, {"use_swa": True, "swa_window_size": 7}, (False, False), (7, 7)),
    ],
)
def test_which_layers_are_causal_and_have_a_window(changes, options, causal_layers, windows):
    config = DFlashConfig.from_dict(SMALL | changes | {"dflash_config": SMALL["dflash_config"] | options})
    assert config.causal == causal_layers
    assert config.windows == windows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "architectures must name DFlashDraftModel"),
        ({"dflash_config": None}, "dflash_config must be an object"),
        ({"dflash_config": {}}, "mask_token_id must be an integer"),
        ({"dflash_config": {"mask_token_id": 29}}, "mask_token_id must be below vocab_size 29, got 29"),
        ({"dflash_config": {"mask_token_id": 1, "target_layer_ids": []}}, "target_layer_ids must be a list of layers"),
        ({"dflash_config": {"mask_token_id": 1, "target_layer_ids": [-1]}}, "target_layer_ids must be a list"),
        ({"dflash_config": {"mask_token_id": 1, "attention_sink_bias": True}}, "attention_sink_bias must be false"),
        ({"dflash_config": {"mask_token_id": 1, "causal": 1}}, "causal must be true or false, got 1"),
        ({"block_size": 1}, "block_size must be an integer of at least 2, got 1"),
        ({"block_size": True}, "block_size must be an integer"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_window must be a positive integer, got None"),
        ({"layer_types": ["full_attention"]}, "layer_types must name full_attention or sliding_attention for 2 layers"),
        ({"layer_types": ["linear_attention"] * 2}, "layer_types must name"),
        ({"draft_vocab_size": 20}, "draft_vocab_size must be vocab_size 29, got 20"),
        ({"is_neox_style": False}, "is_neox_style must be true"),
        ({"logit_scale": 0}, "logit_scale must be above 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
    ],
)
def test_configurations_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        DFlashConfig.from_dict(SMALL | changes)


def test_features_are_outputs_of_layers_counted_from_0(target):
    """Of id j the residual stream behind layer j, before the next one's norm: not the embedding, not the final norm."""
    model = made(target)
    ids = torch.arange(9)
    _, features = target(ids, ids, causal(1), features=model.features)
    stream, found = target.model.embed_tokens(ids), []
    cosine, sine = target.prepare()[ids].unbind(1)
    for layer in target.model.layers:
        stream = layer(stream, cosine, sine, causal(1))
        found.append(stream)
    assert torch.equal(features, torch.cat([found[0], found[2], found[3]], dim=-1))
    assert model.fc.weight.shape == (24, 3 * 24)  # features, not layers of the drafter


def test_a_layer_that_the_target_lacks(target):
    with pytest.raises(ValueError, match="target_layer_ids must be below 6, the layers of the target, got 6"):
        made(target, dflash_config={"mask_token_id": 28, "target_layer_ids": [6]})


def test_context_does_not_pass_the_norm_of_a_layers_inputs(target):
    """Keys and values of the context are products of the fused features themselves, by the weights of the block's."""
    model = made(target)
    context = torch.randn(3, 24)
    sides = model.project(context)
    assert sides.shape == (3, 2, 2, 2, 8)
    for i, layer in enumerate(model.layers):
        attention = layer.self_attn
        for side, weight in enumerate((attention.k_proj.weight, attention.v_proj.weight)):
            torch.testing.assert_close(sides[:, i, side].flatten(1), context @ weight.T)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_checkpoint_by_hand(prefix, tmp_path, target):
    model = made(target)
    weights = {prefix + name: p.to(torch.bfloat16) for name, p in model.named_parameters()}
    assert not any("embed" in name or "lm_head" in name for name in weights)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    assert is_dflash(tmp_path)
    loaded = load_dflash(tmp_path, target)
    assert loaded.weight.dtype == torch.float32
    for (name, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(torch.bfloat16).float()), name
    ids = torch.tensor([3, 28])
    assert torch.equal(loaded.embed(ids), target.model.embed_tokens(ids))
    # A release with an embedding of its own for masks.
    mask = torch.randn(24)
    torch.save(mask, tmp_path / "mask_embedding.pt")
    embedded = load_dflash(tmp_path, target).embed(ids)
    assert torch.equal(embedded[1], mask)
    assert torch.equal(embedded[0], target.model.embed_tokens.weight[3])
    torch.save(mask[:5], tmp_path / "mask_embedding.pt")
    with pytest.raises(ValueError, match="must hold 24 floating-point numbers, got"):
        load_dflash(tmp_path, target)


def test_saving_and_loading(tmp_path, target):
    model = made(target)
    save_dflash(model, SMALL, tmp_path / "new", torch.float32)
    loaded = load_dflash(tmp_path / "new", target)
    for (name, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 30}, "vocab_size must be that of the target, 29, got 30"),
        ({"num_target_layers": 7}, "num_target_layers must be that of the target, 6, got 7"),
        ({"hidden_size": 32}, "hidden_size must be that of the target, 24, got 32"),
        ({"intermediate_size": 41}, "must have shape"),
        ({"num_hidden_layers": 3, "layer_types": None}, "must hold layers.2."),
    ],
)
def test_checkpoints_of_another_target(changes, message, tmp_path, target):
    save_dflash(made(target), SMALL | changes, tmp_path, torch.float32)
    with pytest.raises(ValueError, match=message):
        load_dflash(tmp_path, target)


def test_logits_may_be_scaled(target):
    hidden = torch.randn(2, 24)
    plain, scaled = made(target), made(target, logit_scale=0.5)
    assert torch.equal(scaled.logits(hidden), plain.logits(hidden) * 0.5)
