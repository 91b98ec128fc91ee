"""Our decoder against ``transformers``: logits and greedy text of tiny random models."""

import pytest
import torch

from python_ref.models import load_config, load_model

from .helpers import greedy, logits_of, save, tiny

PROMPT = torch.randint(61, (11,), generator=torch.Generator().manual_seed(3))

FAMILIES = {
    "llama": ("llama", {}),
    "llama-tied-biases-head-dim": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 18},
    ),
    "llama-multi-head": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-2, "rope_theta": 500.0}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-multi-query": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied-bias": ("qwen3", {"head_dim": 20, "tie_word_embeddings": True, "attention_bias": True}),
}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-options": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 8.0,
        "beta_slow": 0.5,
        "truncate": False,
        "mscale": 0.8,
        "mscale_all_dim": 0.4,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "attention_factor": 1.3,
        "original_max_position_embeddings": 32,
    },
}


def compare(theirs: torch.nn.Module, directory, length: int = 40) -> None:
    ours = load_model(directory, dtype=torch.float32)
    ids = torch.randint(61, (length,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(ids[None]).logits[0]
        text = theirs.generate(PROMPT[None], do_sample=False, max_new_tokens=20, pad_token_id=0)
    torch.testing.assert_close(logits_of(ours, ids), wanted, rtol=1e-4, atol=1e-4)
    assert greedy(ours, PROMPT, 20) == text[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("case", FAMILIES)
def test_family(case, tmp_path):
    family, options = FAMILIES[case]
    model = tiny(family, **options)
    compare(model, save(model, tmp_path))


@pytest.mark.parametrize("case", SCALINGS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_rope_scaling(case, family, tmp_path):
    model = tiny(family, rope_parameters={"rope_theta": 1000.0, **SCALINGS[case]})
    plain = tiny(family, rope_parameters={"rope_theta": 1000.0, "rope_type": "default"})
    ids = torch.arange(40)
    with torch.no_grad():
        assert (model(ids[None]).logits - plain(ids[None]).logits).abs().max() > 1e-2, "the scaling must matter"
    compare(model, save(model, tmp_path))


def test_dynamic_scaling_follows_decoding_token_by_token(tmp_path):
    scaling = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1000.0}
    theirs = tiny("llama", max_position_embeddings=16, rope_parameters=scaling)
    ours = load_model(save(theirs, tmp_path), dtype=torch.float32)
    assert ours.config.max_positions == 48
    ids = torch.randint(61, (45,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        step = theirs(ids[None, :12], use_cache=True)
        rows = [step.logits[0]]
        for position in range(12, len(ids)):
            step = theirs(ids[None, position : position + 1], past_key_values=step.past_key_values)
            rows.append(step.logits[0])
        text = theirs.generate(PROMPT[None], do_sample=False, max_new_tokens=30, pad_token_id=0)
    torch.testing.assert_close(logits_of(ours, ids), torch.cat(rows), rtol=1e-4, atol=1e-4)
    assert greedy(ours, PROMPT, 30) == text[0, len(PROMPT) :].tolist()


def test_old_style_rope_keys(tmp_path):
    """Configurations written before ``rope_parameters`` existed."""
    model = tiny("llama", rope_parameters={"rope_theta": 777.0, "rope_type": "linear", "factor": 2.0})
    save(model, tmp_path)
    path = tmp_path / "config.json"
    import json

    raw = json.loads(path.read_text())
    del raw["rope_parameters"]
    raw |= {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    path.write_text(json.dumps(raw))
    assert load_config(tmp_path).rotary.theta == 777.0
    compare(model, tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_shards(family, tmp_path):
    model = tiny(family)
    save(model, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    compare(model, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, tmp_path):
    """The error against float32 is at most twice that of ``transformers`` in the same dtype."""
    model = tiny("qwen3", head_dim=16)
    save(model.to(dtype), tmp_path)
    ours = load_model(tmp_path)
    assert ours.lm_head.weight.dtype == dtype
    ids = torch.arange(40)
    exact = logits_of(load_model(tmp_path, dtype=torch.float32), ids)
    with torch.no_grad():
        theirs = model(ids[None]).logits[0].float()
    error = (logits_of(ours, ids).float() - exact).pow(2).mean().sqrt()
    assert error <= 2 * (theirs - exact).pow(2).mean().sqrt()


def test_stop_tokens(tmp_path):
    model = tiny("llama", eos_token_id=[3, 5])
    save(model, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert load_config(tmp_path).stop_tokens == (3, 5, 9)
