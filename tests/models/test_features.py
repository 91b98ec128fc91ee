"""Which hidden states the target hands out: ids of layers mean their outputs, before the final norm."""

import pytest
import torch
from torch import nn

from python_ref.models import load_model
from python_ref.models.eagle3 import feature_layers
from python_ref.models.transformer import causal

from .heads import SHAPE, target_of
from .helpers import save, tiny


class Stamp(nn.Module):
    """A layer that adds a thousand to what goes through it."""

    def forward(self, x, cosine, sine, attend):
        return x + 1000


def test_a_feature_is_the_output_of_its_layer_at_its_position():
    """Token ``t`` has the embedding ``t``, and each layer adds 1000: a feature says where it comes from."""
    model = target_of(layers=8)
    model.model.embed_tokens.weight.copy_(torch.arange(SHAPE["vocab_size"]).unsqueeze(1).expand(-1, 32))
    model.model.layers = nn.ModuleList(Stamp() for _ in range(8))
    ids = torch.tensor([3, 50, 7])
    ones = torch.ones(32)
    hidden, features = model(ids, torch.arange(3), causal(1), features=(1, 3, 4))
    for row, token in enumerate(ids.tolist()):
        # The output of layer j has gone through j + 1 layers: it is the stream that enters layer j + 1.
        expected = torch.cat([ones * (1000 * entering + token) for entering in (2, 4, 5)])
        assert torch.equal(features[row], expected)
    last = model(ids, torch.arange(3), causal(1), features=(7, 0, 0))[1].view(3, 3, 32)
    assert torch.equal(last[:, :, 0], torch.stack((8000 + ids, 1000 + ids, 1000 + ids), 1).float())
    # The hidden states are those without features: the final norm of the last layer's output.
    assert torch.equal(hidden, model(ids, torch.arange(3), causal(1)))
    assert torch.equal(hidden, model.model.norm(last[:, 0]))


def test_features_are_the_hidden_states_of_transformers(tmp_path):
    theirs = tiny("qwen3", head_dim=16, num_hidden_layers=5)
    ours = load_model(save(theirs, tmp_path), dtype=torch.float32)
    ids = torch.arange(20)
    with torch.no_grad():
        states = theirs(ids[None], output_hidden_states=True).hidden_states
        features = ours(ids, torch.arange(20), causal(1), features=range(4))[1]
    wanted = torch.cat([states[j + 1][0] for j in range(4)], dim=1)
    torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "ids"),
    [(80, (1, 39, 76)), (36, (1, 17, 32)), (32, (1, 15, 28)), (8, (1, 3, 4)), (6, (1, 2, 2)), (5, (1, 1, 1))]
    + [(4, (0, 1, 1)), (3, (0, 0, 1)), (2, (0, 0, 1)), (1, (0, 0, 0))],
)
def test_the_layers_that_a_head_reads(layers, ids):
    """The streams that enter the layers 2, L // 2 and L - 3, in ascending order; within a small target, the nearest."""
    assert feature_layers(layers) == ids
