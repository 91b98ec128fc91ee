"""What a drafter that reads hidden states is given: those of the right layers, at the right positions, in their order."""

import random

import pytest
import torch
from torch import nn

from python_ref.decoding import Decoder, Request
from python_ref.drafters import Proposal

from .helpers import OPS, VOCAB, model_of, prompt_of

LAYERS = 6
FEATURES = (4, 0, 5, 2)  # in any order


def next_token(position, token):
    """What the toy target says behind a token at a position."""
    return (7 * token + 3 * position + 1) % VOCAB


class Stamp(nn.Module):
    """A layer whose output says from which layer, position and token it comes: exact in float32, and no two alike."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, cosine, sine, attend):
        return 1000 * self.layer + cosine.view(-1, 1) + x % 1


@pytest.fixture(scope="module")
def target():
    """Tokens go in as fractions of 64; what is in the place of the rotary table are the positions themselves."""
    model = model_of(0, linear=None, num_hidden_layers=LAYERS)
    model.model.embed_tokens.weight.copy_((torch.arange(VOCAB) / 64).unsqueeze(1).expand(-1, 24))
    model.model.layers = nn.ModuleList(map(Stamp, range(LAYERS)))
    model.model.norm = nn.Identity()
    positions = torch.arange(float(model.config.max_positions)).view(-1, 1, 1, 1).expand(-1, 2, 1, 1)
    model.prepare = lambda: positions

    def logits(hidden):
        position, token = (hidden[:, 0] % 1000).long(), (hidden[:, 0] % 1 * 64).long()
        return 100.0 * nn.functional.one_hot(next_token(position, token), VOCAB)

    model.logits = logits
    return model


class Reader:
    """Checks all that it is given, and drafts the right text among wrong siblings, holes and padding."""

    features = FEATURES

    def __init__(self, ops, seed, shape):
        self.ops, self.shape, self.chosen = ops, shape, random.Random(seed)
        self.known, self.chunks, self.accepted = {}, [], []

    def _check(self, features, start, tokens):
        found = features.view(len(tokens), len(FEATURES), -1)
        for i, token in enumerate(tokens):
            for j, layer in enumerate(FEATURES):
                assert bool((found[i, j] == 1000 * layer + start + i + token / 64).all()), (start, i, layer)

    def prime(self, batch, row, features, start):
        serial, text = batch.serials[row], batch.texts[row]
        assert start == self.known.get(serial, 0)
        self._check(features, start, text[start : start + len(features)])
        self.known[serial] = start + len(features)
        self.chunks.append(len(features))

    def absorb(self, batch, features, num_tokens):
        assert num_tokens.dtype == torch.int32 and len(num_tokens) == len(features) == batch.size
        for row, count in enumerate(num_tokens.tolist()):
            assert (count > 0) == batch.active[row]
            assert not bool(features[row, count:].any())
            if count:
                text, first = list(batch.texts[row]), len(batch.texts[row]) - 1
                while len(text) < first + count:  # accepted is what the target says
                    text.append(next_token(len(text) - 1, text[-1]))
                self._check(features[row, :count], first, text[first:])
                self.known[batch.serials[row]] = first + count
                self.accepted.append(count - 1)

    def observe(self, batch, committed):
        """There are features of all of each text but its last token."""
        assert all(self.known.get(batch.serials[row], 0) == len(batch.texts[row]) - 1 for row in batch.live)

    def propose(self, batch, limits, rule):
        if self.shape == "chain":
            chains = [self._tree(batch.texts[row], limits[row], 0)[0][1:] for row in range(batch.size)]
            chains = [chain + [-1] * self.chosen.randrange(2) for chain in chains]
            width = max(map(len, chains))
            tokens = [chain + [5] * (width - len(chain)) for chain in chains]
            return Proposal(torch.tensor(tokens, dtype=torch.int64).view(batch.size, width), list(map(len, chains)))
        tokens, parents, lengths, offsets = [], [], [], [0]
        for row, limit in enumerate(limits):
            grown = self._tree(batch.texts[row], limit, 3) if batch.active[row] else ([], [])
            padding = self.chosen.randrange(3)
            tokens += grown[0] + [5] * padding
            parents += grown[1] + [0] * padding
            lengths.append(len(grown[0]))
            offsets.append(len(tokens))
        tree, _ = self.ops.tree.from_parents(
            torch.tensor(tokens),
            torch.tensor(parents, dtype=torch.int32),
            torch.tensor(offsets, dtype=torch.int32),
            lengths=torch.tensor(lengths),
            max_nodes=max(lengths),
            max_depth=max(limits) + 1,
        )
        return Proposal(tree=tree)

    def _tree(self, text, limit, width):
        """The right path, to any depth; up to ``width`` wrong siblings or holes on either side of each of its nodes."""
        tokens, parents, at = [text[-1]], [-1], 0
        for depth in range(self.chosen.randint(0, limit)):
            right = next_token(len(text) - 1 + depth, tokens[at])
            children = [self.chosen.choice((-1, (right + 1) % VOCAB)) for _ in range(self.chosen.randint(0, width))]
            children.insert(self.chosen.randint(0, len(children)), right)
            above = at
            for child in children:
                at = len(tokens) if child == right else at
                tokens.append(child)
                parents.append(above)
                if child != right and width:  # a wrong node with a child of its own
                    tokens.append((child + 1) % VOCAB)
                    parents.append(len(tokens) - 2)
        return tokens, parents


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize(("batch", "chunk"), [(1, 1), (3, 4), (5, 64)])
def test_every_feature_is_that_of_its_layer_and_position(shape, batch, chunk, ops, target):
    lengths = (1, 9, 2, 14, 5, 4, 13)
    requests = [
        Request(prompt_of(i, n), max_new_tokens=10 + 3 * i, temperature=0.5 * (i % 2), seed=i, stop_tokens=[7 * i])
        for i, n in enumerate(lengths)
    ]
    reader = Reader(OPS[ops], batch, shape)
    decoder = Decoder(target, ops=OPS[ops], drafter=reader, num_draft=4, max_batch=batch, prefill_chunk=chunk)
    for request, output in zip(requests, decoder.generate(requests), strict=True):
        text = list(request.prompt)
        for token in output.tokens:
            assert token == next_token(len(text) - 1, text[-1])
            text.append(token)
    assert sum(reader.chunks) == sum(lengths) - len(lengths)
    assert max(reader.chunks) == min(chunk, max(lengths) - 1)
    assert set(reader.accepted) == {0, 1, 2, 3, 4}
