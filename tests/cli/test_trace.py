"""Traces: what the recorder keeps of a step, the file, and the page that draws it."""

import html
import json
import re

import pytest
import torch

from python_ref.decoding import Output, Request
from python_ref.decoding.trace import FORMAT, VERSION
from python_ref.ops.tree import from_chains
from python_ref.training.corpus import SourceFile
from python_ref.training.tokenizer import train_tokenizer
from specdec_kernels.cli import engine
from specdec_kernels.cli import trace as trace_command
from specdec_kernels.cli.trace import make_page
from specdec_kernels.cli.trace_file import read_trace
from specdec_kernels.cli.vocabulary import token_bytes

from .conftest import PROMPTS, SOURCE
from .test_errors import complains
from .traces import HOSTILE, VOCAB, column, decided, hostile_trace, letters, records, step_of, two_trees


def known(logits):
    """Probabilities of rows of logits in double precision, rounded as in a trace."""
    law = torch.log_softmax(logits.double(), dim=1).exp()
    return lambda row, token: pytest.approx(law[row, token].item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_as_it_was(dtype):
    recorder = records(Request([3, 1]), Request([5], temperature=0.5, seed=7))
    logits = torch.randn((7, VOCAB), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = logits.clone()
    step_of(recorder, [[3, 1], [5], []], logits=logits, seconds={"draft": 0.25})
    written = recorder.to_dict(letters, {"model": "m"})
    assert torch.equal(logits, before)
    assert (written["format"], written["version"], written["info"]) == (FORMAT, VERSION, {"model": "m"})
    assert written["tokens"] == {"ids": list(range(8)), "texts": [f"t{i}" for i in range(8)]}
    assert written["seconds"] == {"draft": [0.25]}
    first, second = written["requests"]
    p = known(logits)
    assert first["steps"] == [
        {
            "step": 0,
            "context": 1,
            "tokens": [1, 2, 3, 4],
            "parents": [-1, 0, 1, 0],
            "probabilities": [None, p(0, 2), p(1, 3), p(0, 4)],
            "path": [0, 3],
            "emitted": [4, 7],
            "emitted_probabilities": [p(0, 4), p(3, 7)],
        }
    ]
    (step,) = second["steps"]
    assert (step["tokens"], step["parents"], step["context"]) == ([5, 6], [-1, 0], 0)
    assert step["probabilities"] == [None, p(4, 6)] and step["emitted_probabilities"] == [p(4, 0)]
    assert second["prompt"] == [5] and second["settings"] == {
        "max_new_tokens": 128, "temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 7,
    }  # fmt: skip


def test_rows_of_logits_and_bad_numbers():
    """Rows are shared, NaN is no probability, and infinity is the largest of numbers; some things are not known."""
    logits = torch.zeros((2, 4))
    logits[0] = torch.tensor([torch.nan, 0.0, torch.inf, 0.0])
    rows = column([0, 1, 9, 1, 1, 1, 0], torch.int64)
    recorder = records(Request([1]), Request([5]))
    result = decided([[2, 3, 0], [1], []], [[0, 1, 2], [0], []])
    step_of(recorder, [[1], [5], []], rows=rows, logits=logits, result=result)
    first, second = (request["steps"][0] for request in recorder.to_dict(letters)["requests"])
    assert first["probabilities"] == [None, 1.0, 0.25, None], "token 4 is beyond the vocabulary of the logits"
    assert first["emitted_probabilities"] == [1.0, 0.25, None], "row 9 is not there"
    assert second["probabilities"] == [None, None] and second["emitted_probabilities"] == [0.25]
    logits[0, 2] = torch.nan
    recorder = records(Request([1]), Request([5]))
    step_of(recorder, [[1], [5], []], rows=rows, logits=logits, result=result)
    assert recorder.to_dict(letters)["requests"][0]["steps"][0]["probabilities"][1] == 0.0


def test_without_logits():
    recorder = records(Request([1]), Request([5]))
    step_of(recorder, [[1], [5], []])
    step = recorder.to_dict(letters)["requests"][0]["steps"][0]
    assert step["probabilities"] == [None] * 4 and step["emitted_probabilities"] == [None] * 2


def test_the_end_of_a_text_cuts_its_last_step():
    recorder = records(Request([1]), Request([5]))
    step_of(recorder, [[1], [5], []], logits=torch.zeros((7, VOCAB)))
    recorder.finish(10, Output([4], "stop"))
    recorder.finish(11, Output([0], "length"))
    first, second = recorder.to_dict(letters)["requests"]
    assert first["finish_reason"] == "stop" and second["finish_reason"] == "length"
    (step,) = first["steps"]
    assert step["emitted"] == [4] and step["path"] == [0, 3], "the accepted draft was the stop token"
    assert step["emitted_probabilities"] == [0.125]
    assert second["steps"][0]["emitted"] == [0] and second["steps"][0]["path"] == [0]


def test_dead_ends_and_damaged_trees():
    recorder = records(Request([1]), Request([5]))
    damaged = two_trees()._replace(parents=column([-1, 0, 9, 0, -1, 0, -1]))
    result = decided([[-1], [6, -1], []], [[0], [0, 1], []])
    step_of(recorder, [[1], [5], []], tree=damaged, logits=torch.zeros((7, VOCAB)), result=result)
    recorder.finish(10, Output([], "dead_end"))
    first, second = (request["steps"][0] for request in recorder.to_dict(letters)["requests"])
    assert (first["tokens"], first["parents"], first["path"], first["emitted"]) == ([1], [-1], [0], [])
    assert second["emitted"] == [6] and second["path"] == [0, 1] and second["emitted_probabilities"] == [0.125]


def test_steps_are_numbered_for_all_and_phases_may_come_late():
    recorder = records(Request([1]))
    tree = from_chains(torch.tensor([[1, 2]]))
    recorder.step(tree, None, None, decided([[2, 3]], [[0, 1]]), [[1]], [10])
    recorder.request(20, Request([4]))
    recorder.step(tree, None, None, decided([[3]], [[0]]), [[4]], [20], {"draft": 1.5})
    recorder.step(tree, None, None, decided([[3]], [[0]]), [[4, 3]], [20], {"verify": 0.5})
    written = recorder.to_dict(letters)
    assert [[step["step"] for step in request["steps"]] for request in written["requests"]] == [[0], [1, 2]]
    assert written["seconds"] == {"draft": [0, 1.5, 0], "verify": [0, 0, 0.5]}


def test_serials_must_be_known():
    recorder = records(Request([1]))
    with pytest.raises(ValueError, match=r"Recorder.request: serial must be of a new request, got 10 again"):
        recorder.request(10, Request([1]))
    with pytest.raises(ValueError, match=r"Recorder.finish: serial must be of a request that was told of, got 11"):
        recorder.finish(11, Output())
    with pytest.raises(ValueError, match=r"Recorder.step: serials must be of requests that were told of, got 11"):
        step_of(recorder, [[1], [5], []])


def test_bytes_of_byte_level_tokens():
    text = "def f(\u00fc):\n\t'\U0001f40d' \x00"
    tokenizer = train_tokenizer([SourceFile("a.py", SOURCE)], 280)
    read = token_bytes(tokenizer)
    ids = tokenizer.encode(text).ids
    assert b"".join(map(read, ids)).decode() == text
    assert max(len(read(i)) for i in ids) >= 1 and any(len(read(i)) == 1 and read(i)[0] > 127 for i in ids)
    assert read(0) == b"<|endoftext|>" and read(10**6) == b""


def test_bytes_of_sentencepiece_tokens():
    from tokenizers import Tokenizer, decoders, models

    vocab = {"<unk>": 0, "<0x0A>": 1, "\u2581def": 2, "\u2581\u2581": 3, "\u0100": 4, "<0xF0>": 5}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert [token_bytes(tokenizer)(i) for i in range(1, 6)] == [b"\n", b" def", b"  ", "\u0100".encode(), b"\xf0"]


# The file and its page


@pytest.fixture
def content():
    return hostile_trace()


@pytest.fixture
def written(content, tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(content))
    return path


def data_of(page):
    (data,) = re.findall(r'<script type="application/json" id="trace">(.*?)</script>', page, re.DOTALL)
    return data


def test_what_is_written_is_read(content, written):
    read = read_trace(written)
    assert read == content
    assert read["tokens"]["texts"][6:] == [[0xF0, 0x9F], [0x90, 0x8D, 0xFF]], "bytes stay bytes"
    assert read["tokens"]["texts"][:6] == [text.decode() for text in HOSTILE[:6]]


def test_the_command(specdec, content, written, tmp_path):
    out = tmp_path / "page.html"
    result = specdec("trace", written, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"wrote {out}: 4 steps of 2 requests, ")
    assert out.read_text() == make_page(content)
    assert specdec("trace", written).exit_code == 0
    assert written.with_suffix(".html").read_text() == out.read_text()


def test_the_page_holds_the_data_and_refers_to_nothing(content):
    page = make_page(content)
    assert json.loads(data_of(page)) == content
    outside = page.replace(data_of(page), "")
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\b(src|href|srcset|action)\s*=|import\s*\(|fetch\(", outside)
    assert "default-src 'none'" in page
    assert "{{" not in outside.replace("${", "")


def test_nothing_of_the_trace_is_markup(content):
    page = make_page(content)
    data = data_of(page)
    assert not set(data) & set("<>&") and data.isascii()
    assert page.count("<script") == 2 and page.count("</script") == 2
    assert len(re.findall(r"<title>[^<]*</title>", page)) == 1 and html.escape("script>: a trace of specdec") in page
    for part in trace_command._SCRIPTS:
        script = (trace_command._PARTS / part).read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|</script", script
        )


def test_every_part_of_the_page_is_in_it_and_short():
    parts = {path.name: path.read_text() for path in trace_command._PARTS.iterdir()}
    assert {name for name in parts if name.endswith(".js")} == set(trace_command._SCRIPTS)
    assert all(text.count("\n") < 500 for text in parts.values())


def damaged(content, *path, value):
    """The trace as text, with another value somewhere in it; None: with nothing there."""
    copy = json.loads(json.dumps(content))
    place = copy
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(copy)


STEP = ("requests", 0, "steps", 1)


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (("format",), "specdec-figures", "must be a trace as specdec generate --trace writes it, got other JSON"),
        (("format",), None, "must be a trace as specdec generate --trace writes it, got other JSON"),
        (("version",), 2, "must be a trace of version 1, got 2"),
        (("version",), None, "must be a trace of version 1, got null"),
        (("info",), [], ": info must be an object, got []"),
        (("info", "a\n"), [1], r': info."a\n" must be a text or a number, got [1]'),
        (("info", "a"), float("inf"), ': info."a" must be a text or a number, got Infinity'),
        (("tokens",), None, ": tokens must be an object, got null"),
        (("tokens", "ids", 1), 0, ": tokens.ids must have 8 different ids, got 7"),
        (("tokens", "ids", 1), -1, ": tokens.ids[1] must be an integer from 0, got -1"),
        (("tokens", "texts"), [], ": tokens.texts must have 8 elements, got 0"),
        (("tokens", "texts", 1), [256], ": tokens.texts[1] must be a text or a list of bytes, got [256]"),
        (("seconds", "draft"), [1], ': seconds."<i>" must have 1 elements, got 2'),
        (("seconds", "draft", 1), -1, ': seconds."draft"[1] must be a time in seconds, got -1'),
        (("seconds", "draft", 1), True, ': seconds."draft"[1] must be a time in seconds, got true'),
        (("requests",), [], ": requests must be a list with at least one request, got []"),
        (("requests", 1), "x", ': requests[1] must be an object, got "x"'),
        (("requests", 1, "prompt"), [], ": requests[1].prompt must have at least one token, got []"),
        (("requests", 1, "prompt", 0), 99, ": requests[1].prompt[0] must be an id in tokens.ids, got 99"),
        (("requests", 1, "settings", "seed"), {}, ': requests[1].settings."seed" must be a text or a number, got {}'),
        (("requests", 1, "finish_reason"), 1, ": requests[1].finish_reason must be a text, got 1"),
        (("requests", 1, "steps"), {}, ": requests[1].steps must be a list, got {}"),
        ((*STEP, "step"), 0, ".steps[1].step must be an integer above 0 and below 2, the length of the lists in "),
        ((*STEP, "step"), 2, ".steps[1].step must be an integer above 0 and below 2, the length of the lists in "),
        ((*STEP, "context"), -1, ".steps[1].context must be an integer from 0, got -1"),
        ((*STEP, "tokens"), [], ".steps[1].tokens must have at least one node, got []"),
        ((*STEP, "tokens", 2), 99, ".steps[1].tokens[2] must be an id in tokens.ids or negative, got 99"),
        ((*STEP, "tokens", 2), None, ".steps[1].parents must have 3 elements, got 4"),
        ((*STEP, "parents", 0), 0, ".steps[1].parents[0] must be -1, got 0"),
        ((*STEP, "parents", 3), 3, ".steps[1].parents[3] must be the node before it or one of its ancestors, got 3"),
        ((*STEP, "parents"), [-1, 0, 0, 1], ".parents[3] must be the node before it or one of its ancestors, got 1"),
        ((*STEP, "parents", 1), "0", '.steps[1].parents[1] must be an integer, got "0"'),
        ((*STEP, "probabilities", 1), 1.5, ".probabilities[1] must be null or a number from 0 to 1, got 1.5"),
        ((*STEP, "probabilities", 1), 10**400, ".probabilities[1] must be null or a number from 0 to 1, got 1000"),
        ((*STEP, "emitted_probabilities"), [], ".emitted_probabilities must have 2 elements, got 0"),
        ((*STEP, "emitted", 0), -1, ".steps[1].emitted[0] must be an id in tokens.ids, got -1"),
        ((*STEP, "path"), [0, 2], ".steps[1].path must lead from the root from parent to child, got [0, 2]"),
        ((*STEP, "path"), [], ".steps[1].path must lead from the root from parent to child, got []"),
        ((*STEP, "path", 1), 4, ".steps[1].path[1] must be an integer from 0 to 3, got 4"),
        ((*STEP, "path"), [0], "path must have 2 nodes, as many as there are emitted tokens, or one more, got 1"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_damaged_traces(specdec, content, written, path, value, part):
    written.write_text(damaged(content, *path, value=value))
    complains(specdec("trace", written), "trace", f"{written}{part}" if part.startswith(":") else part)
    assert not written.with_suffix(".html").exists()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "must be a trace, got an empty file"),
        (b"hello", "must be a trace in JSON, got: "),
        (b"{} {}", "must be a trace in JSON, got: "),
        (b"\xff{}", "must be a trace, got no UTF-8 text: "),
        (b"[" * 200_000, "must be a trace, got brackets nested too deeply"),
        (b'{"format": 1%s}' % (b"0" * 5000), "must be a trace, got a number of too many digits"),
        (b"[]", "got other JSON"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_files_that_are_no_traces(specdec, written, data, part):
    written.write_bytes(data)
    complains(specdec("trace", written), "trace", f"{written} must be a trace", part)


def test_truncated_traces(specdec, content, written):
    whole = json.dumps(content)
    for length in (1, len(whole) // 3, len(whole) - 1):
        written.write_text(whole[:length])
        said = f"{written} must be a whole trace, got one that breaks off after {length} bytes"
        complains(specdec("trace", written), "trace", said)


def test_files_that_cannot_be_read_or_written(specdec, written, tmp_path):
    missing = tmp_path / "missing.json"
    complains(specdec("trace", missing), "trace", f"{missing} must be a readable file, got: no such file or directory")
    complains(specdec("trace", tmp_path, "--out", tmp_path / "x.html"), "trace", f"{tmp_path} must be a readable file")
    complains(
        specdec("trace", written, "--out", tmp_path), "trace", f"--out must name a file, got the folder {tmp_path}"
    )
    there = tmp_path / "no" / "x.html"
    complains(specdec("trace", written, "--out", there), "trace", "--out must name a file in an existing folder")
    said = f"--out must name another file than the trace, got {written}"
    complains(specdec("trace", written, "--out", written), "trace", said)
    complains(specdec("trace"), "trace", "missing", "(see specdec trace --help)")


# Together


@pytest.mark.parametrize(("drafter", "nodes"), [("independent", 4), ("eagle3-tree", 64)])
def test_a_generation(drafter, nodes, specdec, shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_BEAMS", 16)  # an untrained head is right somewhere in trees that are wide enough
    monkeypatch.setattr(engine, "_NODES", 64)
    path = tmp_path / "trace.json"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": item["prompt"], "seed": 3}) for item in PROMPTS[:3]))
    options = ("--batch-file", prompts, "--max-batch", 2, "--max-new-tokens", 24, "--temperature", 0.8)
    plain = specdec("generate", *options)
    figures = tmp_path / "figures.json"
    drafted = ("--drafter", drafter, "--num-draft", 3, "--trace", path, "--json", figures)
    result = specdec("generate", *options, *drafted)
    assert result.exit_code == 0, result.stderr
    outputs = [json.loads(line) for line in result.stdout.splitlines()]
    assert [o["text"] for o in outputs] == [json.loads(line)["text"] for line in plain.stdout.splitlines()]
    trace, statistics = read_trace(path), json.loads(figures.read_text())["statistics"]
    assert trace["info"]["drafter"] == drafter and trace["info"]["model"] == "pystdlib-target"
    texts = dict(zip(trace["tokens"]["ids"], trace["tokens"]["texts"], strict=True))
    for request, output, item in zip(trace["requests"], outputs, PROMPTS, strict=False):
        emitted = [token for step in request["steps"] for token in step["emitted"]]
        assert emitted == output["tokens"] and len(request["steps"]) == output["steps"]
        assert request["finish_reason"] == output["finish_reason"] and request["settings"]["seed"] == 3
        assert "".join(map(texts.get, request["prompt"])) == item["prompt"]
        length = len(request["prompt"])
        for step in request["steps"]:
            assert step["context"] == length - 1 and len(step["tokens"]) <= nodes
            assert all(step["tokens"][n] == token for n, token in zip(step["path"][1:], step["emitted"], strict=False))
            length += len(step["emitted"])
            assert all(0 < p <= 1 for p in step["emitted_probabilities"])
    steps = [step for request in trace["requests"] for step in request["steps"]]
    taken = [min(len(step["path"]) - 1, len(step["emitted"])) for step in steps]
    assert statistics["accepted"] == [sum(n > depth for n in taken) for depth in range(3)]
    branched = [step["path"] for step in steps if step["path"] != list(range(len(step["path"])))]
    assert (len(branched) > 2) == (drafter == "eagle3-tree")
    assert len(trace["seconds"]["target"]) == statistics["steps"] and min(trace["seconds"]["target"]) > 0
    assert specdec("trace", path).exit_code == 0


def test_plain_decoding(specdec, shipped, tmp_path):
    path = tmp_path / "trace.json"
    result = specdec("generate", "--prompt", SOURCE, "--max-new-tokens", 8, "--trace", path)
    (request,) = read_trace(path)["requests"]
    assert result.exit_code == 0 and all(step["parents"] == [-1] for step in request["steps"])
    assert sum(len(step["emitted"]) for step in request["steps"]) <= 8


def test_a_trace_that_cannot_be_written(specdec, shipped):
    said = "--trace must name a file in an existing folder, got no/x.json"
    complains(specdec("generate", "--prompt", "x", "--trace", "no/x.json"), "generate", said)
