"""Traces of small trees, and of tokens that would do harm as markup."""

from types import SimpleNamespace

import torch

from python_ref.decoding import Request
from python_ref.decoding.trace import Recorder
from python_ref.types import TokenTree

VOCAB = 8
#: Hostile texts of tokens, and bytes that are no characters.
HOSTILE = [
    b"</script><script>document.documentElement.dataset.hacked=1</script>",
    b"<!--<script>",
    b"<img src=https://example.org/x onerror=alert(1)>",
    b"&lt;b&gt; ]]> {{data}} {{script}} '\"`${1}",
    b"\x00\x1b[2J\x7f\r\n\t  ",
    "\u202e\u2028\u2029\ufeff\u00a0\u200d\u0085\u0301".encode(),
    b"\xf0\x9f",
    b"\x90\x8d\xff",
]


def records(*requests):
    """A recorder that was told of requests 10, 11, ..."""
    recorder = Recorder()
    for i, request in enumerate(requests):
        recorder.request(10 + i, request)
    return recorder


def column(values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def two_trees():
    """Root 1 with children 2 (and below it 3) and 4; root 5 with child 6 and padding; a row without nodes."""
    return TokenTree(
        cu_nodes=column([0, 4, 7, 7]),
        tokens=column([1, 2, 3, 4, 5, 6, -1], torch.int64),
        parents=column([-1, 0, 1, 0, -1, 0, -1]),
        depths=column([0, 1, 2, 1, 0, 1, 0]),
        ends=column([4, 3, 3, 4, 2, 2, 0]),
        max_nodes=4,
        max_depth=2,
    )


def decided(tokens, paths):
    """A result, padded with -1."""
    width = max(map(len, tokens)) + 1

    def padded(lines):
        return column([line + [-1] * (width - len(line)) for line in lines])

    return SimpleNamespace(tokens=padded(tokens), path=padded(paths), num_tokens=column([len(line) for line in tokens]))


def letters(token):
    return b"t%d" % token


def hostile(token):
    return HOSTILE[token]


def step_of(recorder, texts, serials=(10, 11, -1), rows=None, logits=None, tree=None, seconds=None, result=None):
    result = decided([[4, 7], [0], []], [[0, 3], [0], []]) if result is None else result
    recorder.step(two_trees() if tree is None else tree, logits, rows, result, texts, serials, seconds)


def hostile_trace():
    """A trace of two requests of two steps each, the texts of whose tokens are hostile."""
    recorder = records(Request([3, 1]), Request([5]))
    logits = torch.zeros((7, VOCAB))
    step_of(recorder, [[3, 1], [5], []], logits=logits, seconds={"draft": 0.25, "<i>": 0})
    step_of(recorder, [[3, 1, 4, 7], [5, 0], []], logits=logits, seconds={"draft": 0.5})
    info = {"model": "models/</title><script>x</script>", "drafter": "\u202e<b>", "num_draft": 4}
    return recorder.to_dict(hostile, info)
