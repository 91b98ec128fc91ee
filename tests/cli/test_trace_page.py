"""The page of a trace in a real browser, where there is one: what it draws, and what keys and clicks do."""

import json
import re
import shutil
import subprocess

import pytest

from specdec_kernels.cli.trace import make_page

from .traces import hostile_trace

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# Drives the page as a person would, and leaves what it saw on the root of the document.
DRIVER = """
<script>
const seen = {};
const wait = (time = 50) => new Promise((done) => setTimeout(done, time));
const place = () => document.getElementById("count").textContent;
const nodes = () => document.querySelectorAll("#tree .node").length;
const press = async (key, options = {}) => {
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...options }));
  await wait();
};
addEventListener("load", async () => {
  await wait();
  seen.start = [place(), nodes()];
  await press("ArrowRight");
  seen.right = [place(), nodes(), document.getElementById("next").disabled];
  await press("ArrowRight");
  seen.end = place();
  await press("Home");
  seen.home = place();
  await press("End");
  seen.last = place();
  await press("ArrowLeft", { shiftKey: true });
  seen.far = place();
  document.querySelectorAll("#tree .node")[1].dispatchEvent(new MouseEvent("click", { bubbles: true }));
  seen.inspect = document.getElementById("inspect").textContent;
  document.getElementById("table-fold").open = true;
  await wait();
  seen.table = document.querySelectorAll("#table tbody tr").length;
  const slider = document.getElementById("slider");
  slider.value = 1;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  await wait();
  seen.slider = [place(), location.hash];
  document.querySelector("#text [data-step='0']").click();
  await wait();
  seen.token = place();
  await press(" ");
  seen.playing = document.getElementById("play").getAttribute("aria-label");
  await wait(1500);
  seen.played = [place(), document.getElementById("play").getAttribute("aria-label")];
  document.querySelectorAll("#tabs [role=tab]")[1].click();
  await wait();
  seen.tab = [place(), nodes(), document.querySelectorAll("#tabs [aria-selected=true]").length];
  await wait(400);
  seen.hash = location.hash;
  document.documentElement.dataset.seen = JSON.stringify(seen);
});
</script>
</body>
"""


@pytest.fixture
def content():
    return hostile_trace()


@pytest.fixture(scope="session")
def browser():
    """The first that runs: some systems have a program of that name which only says how to install one."""
    for program in filter(None, map(shutil.which, BROWSERS)):
        if subprocess.run([program, "--version"], capture_output=True, timeout=60).returncode == 0:
            return program
    pytest.skip(f"none of {', '.join(BROWSERS)} is installed")


@pytest.fixture
def browse(browser, tmp_path):
    """The document of a page when it has come to rest."""

    def run(page, place="", size="1280,900", healthy=True):
        path = tmp_path / "page.html"
        path.write_text(page)
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={size}", "--virtual-time-budget=8000", "--dump-dom", f"{path.as_uri()}{place}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=180)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        document = done.stdout.decode()
        root = re.search(r"<html[^>]*>", document)[0]
        assert ('data-ready="true"' in root) == healthy, document[:2000]
        assert ("data-error" not in root) == healthy and "data-hacked" not in root, root
        return document

    return run


def groups(document):
    """Fates of the nodes of the tree, by what they are called in the trace."""
    tree = re.search(r'<svg id="tree".*?</svg>', document, re.DOTALL)[0]
    return re.findall(r'<g class="node (\w+)" data-node="(-?\d+)"', tree)


def text_of(markup):
    return re.sub(r"<[^>]*>", "", markup)


def test_the_first_step(browse, content):
    document = browse(make_page(content))
    assert groups(document) == [
        ("root", "0"), ("declined", "1"), ("unreached", "2"), ("accepted", "3"), ("own", "-1"),
    ]  # fmt: skip
    text = re.search(r'<div class="text" id="text".*?</div>', document, re.DOTALL)[0]
    assert re.findall(r'class="token (\w+)(?: now)?"', text) == ["prompt", "prompt", "draft", "own"]
    shown = text_of(text)
    assert "&lt;!--&lt;script&gt;" in shown and "{{data}}" in shown and r"\x00\x1b[2J\x7f\r" in shown, shown
    assert r"\u202e" in document and "\u202e" not in document.replace(data_of(document), "")
    figures = re.search(r'<dl class="figures".*?</dl>', document, re.DOTALL)[0]
    assert re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", figures) == [
        ("tokens per step", "1.50"), ("tokens", "6"), ("steps", "4"), ("drafts per step", "2.0"), ("drafts accepted", "25%"),
    ]  # fmt: skip
    columns = re.search(r'<div[^>]*id="depths".*?</section>', document, re.DOTALL)[0]
    assert re.findall(r'class="value">([^<]*)', columns) == ["100%", "0%"]


def data_of(document):
    return re.search(r'<script type="application/json" id="trace">(.*?)</script>', document, re.DOTALL)[1]


def test_a_place_in_the_address(browse, content):
    document = browse(make_page(content), "#2/2")
    assert groups(document) == [("root", "0"), ("declined", "1"), ("own", "-1")]
    assert re.search(r'<output[^>]*id="count"[^>]*><b>2</b> / 2<', document)


def test_keys_and_clicks(browse, content):
    page = re.sub(r"<meta http-equiv[^>]*>", "", make_page(content)).replace("</body>", DRIVER)
    root = re.search(r"<html[^>]*>", browse(page))[0]
    seen = json.loads(re.search(r'data-seen="([^"]*)"', root)[1].replace("&quot;", '"'))
    assert seen["start"] == ["1 / 2", 5] and seen["right"] == ["2 / 2", 5, True]
    assert (seen["end"], seen["home"], seen["last"], seen["far"]) == ("2 / 2", "1 / 2", "2 / 2", "1 / 2")
    assert "node 1 \u00b7 id 2 \u00b7 depth 1 \u00b7 probability 0.125" in seen["inspect"]
    assert "declined" in seen["inspect"]
    assert seen["table"] == 5 and seen["slider"][0] == "2 / 2" and seen["token"] == "1 / 2"
    assert seen["playing"] == "Pause" and seen["played"] == ["2 / 2", "Play"]
    assert seen["tab"] == ["1 / 2", 3, 1] and seen["hash"] == "#2/1"


def test_large_and_strange_traces(browse, content):
    """Very many steps, a chain and a star of a thousand nodes, tokens that are none, no probabilities, and no steps."""
    chain = list(range(-1, 999))
    star = [-1] + [0] * 999
    steps = []
    for number in range(3000):
        parents = {0: chain, 1: star}.get(number, [-1, 0])
        path = [0, 1]
        steps.append(
            {
                "step": number, "context": number, "tokens": [1] + [number % 9 - 1] * (len(parents) - 1),
                "parents": parents, "probabilities": [None] * len(parents), "path": path,
                "emitted": [1, 2], "emitted_probabilities": [None, 0],
            }
        )  # fmt: skip
    content["seconds"] = {}
    content["requests"][0]["steps"] = steps
    content["requests"][1]["steps"] = []
    page = make_page(content)
    assert len(groups(browse(page, size="390,800"))) == 1001
    assert len(groups(browse(page, "#1/2"))) == 1001
    assert len(groups(browse(page, "#1/3000"))) == 3
    without = browse(page, "#2/1")
    assert groups(without) == [] and 'class="token' not in without.split('id="text"')[1].split("</div>")[0]


def test_a_page_says_what_is_wrong_with_it(browse, content):
    page = make_page(content)
    document = browse(page.replace(data_of(page), "{}"), healthy=False)
    assert "This page could not draw its trace: " in text_of(document) and "data-ready" not in document.split(">")[1]
