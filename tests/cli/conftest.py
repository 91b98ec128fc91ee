"""A tiny model of random weights in the layout of the shipped ones, and the command line run within the process."""

import json

import pytest
import torch
import typer.testing

from python_ref.models import ModelConfig, Transformer
from python_ref.models.checkpoint import save_model
from python_ref.models.dflash_checkpoint import save_dflash
from python_ref.models.eagle3_checkpoint import save_eagle3
from python_ref.training import dflash, eagle3
from python_ref.training.corpus import SourceFile
from python_ref.training.recipes import DFlashRecipe, Eagle3Recipe, Recipe
from python_ref.training.tokenizer import train_tokenizer
from python_ref.training.train import initialize
from specdec_kernels.cli import engine
from specdec_kernels.cli.main import app

TINY = Recipe("tiny", 32, 2, 2, 1, 64, tokens=0, head_dim=16, vocab_size=300)
TINY_BLOCKS = DFlashRecipe(
    "tiny", 32, 1, 2, 1, 48, tokens=0, head_dim=16, vocab_size=300, block_size=8, target_layers=2, mask_token_id=299
)
TINY_HEAD = Eagle3Recipe("tiny", 32, 1, 2, 1, 48, tokens=0, head_dim=16, vocab_size=300, draft_vocab_size=200)
SOURCE = """class Stack:
    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()
"""
PROMPTS = [
    {"file": f"stack{i}.py", "line": i + 1, "prompt": SOURCE.replace("item", f"item{i}")[: 90 + 7 * i]}
    for i in range(5)
]


def save_tiny(model, directory, tokenizer, **config):
    save_model(model, TINY.config() | config, directory, torch.float32)
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """What is this small gains nothing from threads, and threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def assets(tmp_path_factory):
    """``pystdlib-target``, ``pystdlib-draft``, which nearly agrees with it, an untrained head, and ``prompts.json``."""
    folder = tmp_path_factory.mktemp("assets")
    tokenizer = train_tokenizer([SourceFile("stack.py", SOURCE)], TINY.vocab_size)
    model = Transformer(ModelConfig.from_dict(TINY.config())).requires_grad_(False)
    initialize(model, seed=0)
    model.model.norm.weight.fill_(12.0)  # a law with opinions
    save_tiny(model, folder / engine.TARGET, tokenizer)
    head = eagle3.build(TINY_HEAD, model, torch.tensor(tokenizer.encode(SOURCE).ids))
    save_eagle3(head, TINY_HEAD.config(), folder / engine.HEAD, torch.float32)
    save_dflash(dflash.build(TINY_BLOCKS, model), TINY_BLOCKS.config(), folder / engine.BLOCKS, torch.float32)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.05 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    save_tiny(model, folder / engine.DRAFT, tokenizer)
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    return folder


@pytest.fixture
def shipped(assets, monkeypatch):
    """The tiny models in the place of the shipped ones."""
    monkeypatch.setattr(engine, "ASSETS", assets)
    return assets


@pytest.fixture
def specdec():
    """``specdec("generate", "--prompt", "x")`` gives exit code, standard output and standard error."""
    runner = typer.testing.CliRunner()

    def run(*arguments, stdin=None):
        return runner.invoke(app, [str(argument) for argument in arguments], input=stdin, prog_name="specdec")

    return run
