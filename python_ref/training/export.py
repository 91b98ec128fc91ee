"""From a finished training to the files that ship: weights, tokenizer, prompts, licence, and a card with figures."""

from __future__ import annotations

import json
import platform
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..models import load_model, load_tokenizer
from ..models.dflash_checkpoint import load_dflash
from ..models.eagle3_checkpoint import load_eagle3
from . import clock, corpus
from .data import Encoded
from .evaluate import bits_per_byte, block_acceptance, chain_acceptance, tokens_per_step
from .recipes import CONTEXT, RECIPES, DFlashRecipe, Eagle3Recipe, Recipe
from .tokenizer import END_OF_TEXT
from .train import exported_step, is_finished

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_TEMPLATES = Path(__file__).resolve().parent / "cards"
_DRAFTS = 4
_NODES = 16
_NEW = 128
# Models that read the hidden states of their target.
_HEADS = (Eagle3Recipe, DFlashRecipe)


def prompt_tokens(tokenizer: Tokenizer, prompts: list[dict[str, Any]]) -> list[Tensor]:
    """The tokens of each prompt, int64 ``[P]``."""
    return [torch.tensor(tokenizer.encode(prompt["prompt"]).ids) for prompt in prompts]


def prompt_files(tokenizer: Tokenizer, prompts: list[dict[str, Any]]) -> list[tuple[Tensor, int]]:
    """The prompts in the form of held-out files: tokens after an end-of-text, and the length in bytes."""
    end = torch.tensor([tokenizer.token_to_id(END_OF_TEXT)])
    tokens = prompt_tokens(tokenizer, prompts)
    sizes = [len(prompt["prompt"].encode()) for prompt in prompts]
    return [(torch.cat((end, ids)), size) for ids, size in zip(tokens, sizes, strict=True)]


def prompt_batch(tokenizer: Tokenizer, prompts: list[dict[str, Any]]) -> Tensor:
    """The prompts cut to the length of the shortest, int64 ``[B, P]``."""
    tokens = prompt_tokens(tokenizer, prompts)
    shortest = min(map(len, tokens))
    return torch.stack([ids[:shortest] for ids in tokens])


def evaluate(recipe: Recipe, data: Encoded, assets: Path, device: str) -> dict[str, Any]:
    """Scores of a shipped model: bits per byte of the held-out files and of the prompts; tokens per step of a drafter.

    Of a drafter that reads the target, which is no model of text, the tokens per step and the acceptance of each draft;
    of one that drafts blocks also the tokens per step with trees.
    Weights are those of the 16-bit file, arithmetic is float32.
    """
    prompts = json.loads((assets / "prompts.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(assets / (recipe.teacher or recipe.name))
    model = _load(recipe, assets, device)
    scores: dict[str, Any] = {}
    if not isinstance(recipe, _HEADS):
        scores["held_out_bits_per_byte"] = bits_per_byte(model, data.held_out, CONTEXT)
        scores["prompts_bits_per_byte"] = bits_per_byte(model, prompt_files(tokenizer, prompts), CONTEXT)
    if recipe.teacher:
        target = load_model(assets / recipe.teacher, dtype=torch.float32, device=device)
        batch = prompt_batch(tokenizer, prompts)
        for label, temperature in (("greedy", 0.0), ("sampled", 0.8)):
            options: dict[str, Any] = {"temperature": temperature, "new": _NEW}
            shares: list[float] | None = None
            if isinstance(recipe, DFlashRecipe):
                score, shares = block_acceptance(target, model, batch, **options)
                tree, _ = block_acceptance(target, model, batch, nodes=_NODES, **options)
                scores[f"tree_tokens_per_step_{label}"] = tree
            elif isinstance(recipe, Eagle3Recipe):
                score, shares = chain_acceptance(target, model, batch, drafts=_DRAFTS, **options)
            else:
                score = tokens_per_step(target, model, batch, drafts=_DRAFTS, **options)
            if shares is not None:
                scores[f"acceptance_{label}"] = [round(share, 3) for share in shares]
            scores[f"tokens_per_step_{label}"] = score
    return {name: round(score, 3) if isinstance(score, float) else score for name, score in scores.items()}


def export(recipe: Recipe, folder: Path, assets: Path, data: Encoded, device: str) -> dict[str, Any]:
    """Write the files of one model and what all models share; returns the scores on its card."""
    place = assets / recipe.name
    place.mkdir(parents=True, exist_ok=True)
    for file in sorted((folder / recipe.name / "export").iterdir()):
        shutil.copy(file, place / file.name)
    if not isinstance(recipe, _HEADS):  # they have the tokenizer of their target
        shutil.copy(folder / "tokenizer.json", place / "tokenizer.json")
    train, held_out = corpus.read()
    prompts = corpus.prompts(held_out)
    text = json.dumps(prompts, indent=1, ensure_ascii=False)
    (assets / "prompts.json").write_text(text + "\n", encoding="utf-8")
    shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt", assets / "LICENSE-PSF.txt")
    scores = evaluate(recipe, data, assets, device)
    facts = _facts(recipe, folder, data, _load(recipe, assets, "cpu"), train, held_out)
    if recipe.teacher:
        count, length = prompt_batch(load_tokenizer(assets / recipe.teacher), prompts).shape
        facts["scored"] = f"{count} shipped prompts cut to {length} tokens, {_NEW} new ones each"
    if isinstance(recipe, DFlashRecipe):
        facts["time"] = clock.section(clock.RESULTS, recipe.block_size, _NODES)
    shown = {name: ", ".join(map(str, score)) if isinstance(score, list) else score for name, score in scores.items()}
    card = (_TEMPLATES / f"{recipe.name}.md").read_text(encoding="utf-8")
    card = card.format_map(facts | shown)
    if not is_finished(recipe, folder):
        card += f"\n## Unfinished\n\nThese weights had {exported_step(recipe, folder)} of {recipe.steps} steps.\n"
    (place / "README.md").write_text(card, encoding="utf-8")
    return scores


def made_by(name: str, records: list[dict[str, Any]]) -> dict[str, str]:
    """On what a model was trained, and by which commands, as far as its log says so.

    Args:
        name: of the model.
        records: lines of its log, in order; slices may have run in different ways.
    """
    ways = [record for record in records if "device" in record]

    def machine(way: dict[str, Any]) -> str:
        where = f"{way['threads']} threads of the CPU" if way["device"] == "cpu" else way["device"]
        return f"on {where}" + (", products in bfloat16" if way["autocast"] else "")

    def command(way: dict[str, Any]) -> str:
        options = f"--device {way['device']} --{'' if way['autocast'] else 'no-'}bfloat16"
        return f"`python -m python_ref.training train {name} {options}{'' if way['compiled'] else ' --eager'}`"

    machines, commands = (list(dict.fromkeys(map(said, ways))) for said in (machine, command))
    return {
        "machine": f" {' and '.join(machines)}" if ways else "",
        "command": f"; this one was made by {' and '.join(commands)}" if ways else "",
    }


def _load(recipe: Recipe, assets: Path, device: str) -> Any:
    """A shipped model in float32."""
    if not isinstance(recipe, _HEADS):
        return load_model(assets / recipe.name, dtype=torch.float32, device=device)
    assert recipe.teacher is not None
    target = load_model(assets / recipe.teacher, dtype=torch.float32, device=device)
    load: Any = load_dflash if isinstance(recipe, DFlashRecipe) else load_eagle3
    return load(assets / recipe.name, target)


def _facts(
    recipe: Recipe,
    folder: Path,
    data: Encoded,
    model: nn.Module,
    train: list[corpus.SourceFile],
    held_out: list[corpus.SourceFile],
) -> dict[str, Any]:
    """What the cards say of recipe and data."""
    lines = (folder / recipe.name / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    seconds = sum(record.get("seconds", 0) for record in records)
    return {
        **vars(recipe),
        "steps": recipe.steps,
        "context": CONTEXT,
        "drafts": _DRAFTS,
        "nodes": _NODES,
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        "python": platform.python_version(),
        "fingerprint": corpus.fingerprint(train + held_out),
        "train_files": len(train),
        "train_bytes": f"{sum(len(f.text.encode()) for f in train) / 1e6:.2f}",
        "train_tokens": f"{len(data.stream) / 1e6:.2f}",
        "held_out_files": len(held_out),
        "held_out_bytes": f"{sum(len(f.text.encode()) for f in held_out) / 1e6:.2f}",
        "epochs": f"{recipe.tokens / (len(data.stream) + recipe.generated):.1f}",
        "minutes": round(seconds / 60),
        **made_by(recipe.name, records),
        "names": ", ".join(f"`{name}`" for name in RECIPES),
    }
