"""A model folder and data files small enough that a whole run takes seconds."""

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, LlamaConfig, LlamaForCausalLM

from gating.run.settings import read_settings
from tests.support.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"word{i}" for i in range(40)]
# Settings of a tiny run: 12 steps, with 4 of the 12 heads at the end.
FEW_STEPS = (
    "data.batch_size=8",
    "trainer.max_steps=12",
    "recovery=0.25",
    "trainer.val_check_interval=4",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "optimizer.lr=1e-3",
    "latency.max_seconds=1",
    "objective.num_heads=4",
)


def make_model_folder(folder: Path, *, seed: int = 0) -> Path:
    """Save a random BERT with 3 layers of 4 heads, and a tokenizer of 40 words."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=45, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_llama_folder(folder: Path, *, num_layers: int) -> Path:
    """Save a random LLaMA with layers of 4 heads and 256 neurons, and the same tokenizer."""
    make_model_folder(folder)
    (folder / "model.safetensors").unlink()
    config = LlamaConfig(
        vocab_size=45, hidden_size=32, intermediate_size=256, num_hidden_layers=num_layers, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_table(path: Path, *, rows: int, seed: int, labels: tuple[str, ...] = ("first", "second")) -> Path:
    """Write a table in which the first word decides the label."""
    rng = random.Random(seed)
    lines = ["text\tlabel"]
    for number in range(rows):
        label = labels[number % len(labels)]
        words = rng.choices(WORDS[len(labels) :], k=rng.randint(2, 9))
        lines.append(f"{WORDS[number % len(labels)]} {' '.join(words)}\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_inputs(folder: Path) -> list[str]:
    """Write model and data, and return the settings that use them."""
    model = make_model_folder(folder / "model")
    files = {
        split: write_table(folder / f"{split}.tsv", rows=rows, seed=seed)
        for seed, (split, rows) in enumerate({"train": 64, "validation": 16, "test": 16}.items())
    }
    return [
        "model=pretrained",
        f"model.name={model}",
        "data=files",
        *(f"data.{split}={path}" for split, path in files.items()),
        *FEW_STEPS,
    ]


def compose_settings(overrides: list[str]) -> DictConfig:
    """Compose a configuration as the command line does."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=overrides)


def checked_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the settings of a command as plain values, checked as the command does."""
    return read_settings(compose_settings(list(overrides)), overrides).model_dump()


def run_command(
    overrides: list[str], *, cwd: Path, python: Sequence[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run train.py as a user does, in a folder of its own; by the warm Python unless another is given."""
    command = [*(python or warm_python()), str(ROOT / "train.py"), *overrides]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
