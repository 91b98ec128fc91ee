"""The bits of a row of hidden states and logits depend on that row alone (CPU, packed products)."""

import pytest
import torch

from python_ref.models import ModelConfig, Transformer
from python_ref.models.transformer import silu

from .helpers import RowByRow

# hidden, intermediate, heads, key heads, head size: vectors filled and not, more work than one thread takes.
SHAPES = [(64, 128, 4, 2, 16), (36, 100, 3, 1, 10), (50, 77, 2, 2, 6), (128, 3072, 4, 2, 64), (16, 40000, 1, 1, 16)]
ROWS = range(1, 18)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def model_of(family: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Transformer:
    hidden, inner, heads, kv_heads, head_dim = shape
    config = ModelConfig.from_dict(
        {
            "architectures": [family],
            "vocab_size": 53,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 128,
        }
    )
    torch.manual_seed(0)
    model = Transformer(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=max(parameter.shape[-1], 1) ** -0.5)
    model.to(dtype).use_linear(RowByRow, dtype if dtype == torch.bfloat16 else torch.float32)
    return model


def own_context(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention row by row, to the row's own key and two keys made from it."""
    out = []
    for q, k, v in zip(query, key, value, strict=True):
        group = len(q) // len(k)
        keys = torch.stack((k, k.flip(-1), -k)).repeat_interleave(group, 1)
        values = torch.stack((v, v.flip(-1), -v)).repeat_interleave(group, 1)
        weights = (q * keys).sum(-1).softmax(0)
        out.append((weights.unsqueeze(-1) * values).sum(0))
    return torch.stack(out)


@torch.no_grad()
def run(model: Transformer, ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = model(ids, positions, own_context)
    return hidden, model.logits(hidden)


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_of_a_row(family, shape, threads):
    model = model_of(family, shape)
    ids, positions = torch.arange(17) * 3, torch.arange(17) * 7 % 128
    threads(1)
    alone = [run(model, ids[i : i + 1], positions[i : i + 1]) for i in range(17)]
    for count in (1, 2):
        threads(count)
        for rows in ROWS if shape[1] < 1000 else (1, 11, 17):
            hidden, logits = run(model, ids[:rows], positions[:rows])
            for row in range(len(hidden)):
                assert torch.equal(hidden[row], alone[row][0][0]), (count, rows, row)
                assert torch.equal(logits[row], alone[row][1][0]), (count, rows, row)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bits_of_a_row_in_sixteen_bits(dtype):
    model = model_of("Qwen3ForCausalLM", (36, 100, 3, 1, 10), dtype)
    ids, positions = torch.arange(9), torch.arange(9) * 11
    _, together = run(model, ids, positions)
    for row in range(9):
        _, alone = run(model, ids[row : row + 1], positions[row : row + 1])
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("size", [1, 7, 64, 100, 768, 3072, 32768, 40001, 65600])
def test_silu(size, threads):
    x = torch.randn(13, 2 * size, generator=torch.Generator().manual_seed(1))
    gate = x.chunk(2, dim=-1)[0]
    threads(1)
    alone = [silu(row[None].clone())[0] for row in gate]
    torch.testing.assert_close(torch.stack(alone), torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-6)
    for count in (1, 2):
        threads(count)
        for rows in (1, 2, 5, 13):
            for view in (gate[:rows], gate[:rows].clone()):
                assert all(torch.equal(a, b) for a, b in zip(silu(view), alone[:rows], strict=True))


def test_rotary_table_entries_depend_on_their_position_alone():
    base = {"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    for head_dim in (6, 64, 100):
        tables = []
        for positions in (70, 200, 1000):
            raw = base | {"hidden_size": head_dim, "num_attention_heads": 1, "max_position_embeddings": positions}
            tables.append(ModelConfig.from_dict(raw).rotary.table())
            assert tables[-1].shape == (positions, 2, 1, head_dim)
        assert all(torch.equal(t, tables[-1][: len(t)]) for t in tables)
