"""Try the head-gating that this Python has installed: six families, transformers' Trainer, and the command.

    python installed.py make FOLDER      prune six models, save each in FOLDER; a Trainer; 20 steps of head-gating train
    python installed.py load FOLDER...   load what was made in each FOLDER, with and without the package

Each part prints a line; the exit status is 1 after any failure. .ci/environments.py calls it.
"""

import json
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
GROUPED = {**SIZES, "num_key_value_heads": 2, "vocab_size": 60}
# Name -> model class, configuration, Auto class.
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("BertForSequenceClassification", {**SIZES, "vocab_size": 60}, "AutoModelForSequenceClassification"),
    "llama": ("LlamaForCausalLM", GROUPED, "AutoModelForCausalLM"),
    "qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}, "AutoModelForCausalLM"),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 60}, "AutoModelForCausalLM"),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 3, "num_heads": 4, "vocab_size": 60}
        | {"decoder_start_token_id": 0},
        "AutoModelForSeq2SeqLM",
    ),
    "vit": (
        "ViTForImageClassification",
        {**SIZES, "image_size": 32, "patch_size": 8},
        "AutoModelForImageClassification",
    ),
}
STEPS = 12


def batch_of(name: str, rows: int = 8) -> dict[str, Tensor]:
    """Return inputs of a family with labels, drawn anew."""
    tokens = torch.randint(3, 60, (rows, 10))
    if name == "vit":
        return {"pixel_values": torch.rand(rows, 3, 32, 32), "labels": torch.arange(rows) % 2}
    return {"input_ids": tokens, "labels": torch.arange(rows) % 2 if name == "bert" else tokens}


def logits_of(model: nn.Module, name: str) -> list[float]:
    """Return some outputs on a batch that is the same in every process."""
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(3, 60, (2, 10), generator=generator)}
    if name == "vit":
        batch = {"pixel_values": torch.rand(2, 3, 32, 32, generator=generator)}
    if name == "t5":
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        return list(model.eval()(**batch).logits.flatten()[:200].tolist())


def prune(name: str, folder: Path) -> None:
    """Train a tiny model with gates on heads and neurons, remove some three fifths of its cost, and save it."""
    import gating

    torch.manual_seed(0)
    class_name, options, _ = FAMILIES[name]
    dense = getattr(transformers, class_name)
    model = dense(dense.config_class(**options))
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=16)
    search = gating.Search(gates, gating.ExactBudget(keep=0.4))
    optimizer = torch.optim.AdamW(gating.parameter_groups(model, lr=1e-3, gates=gates, objective=search.objective))
    model.train()
    for step in range(STEPS):
        search.update(step / STEPS)
        search.add_penalty(model(**batch_of(name)).loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    search.update(1.0)
    report = gating.finalize(model, gates)
    assert report.after.num_parameters < report.before.num_parameters, report
    gating.save_compact(model, folder / name)
    (folder / f"{name}.json").write_text(json.dumps(logits_of(model, name)))


def train_with_trainer(folder: Path) -> None:
    """Search, remove and recover with transformers' Trainer, and keep exactly five heads."""
    import gating
    from gating.integrations import GatedTrainer

    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**FAMILIES["bert"][1]))
    data = [{key: value[0] for key, value in batch_of("bert", rows=1).items()} for _ in range(64)]
    args = transformers.TrainingArguments(str(folder / "trainer"), max_steps=20, report_to="none", use_cpu=True)
    trainer = GatedTrainer(model=model, args=args, train_dataset=data, num_heads=5)
    trainer.train_and_compact(folder / "from_trainer")
    kept = gating.load_compact(folder / "from_trainer")
    assert sum(block.num_heads for block in gating.find_attention_blocks(kept)) == 5


def train_with_command(folder: Path) -> None:
    """Run ``head-gating train`` on BBC News for 20 steps."""
    command = [str(Path(sysconfig.get_path("scripts")) / "head-gating"), "train", f"output_dir={folder / 'run'}"]
    command += ["trainer.max_steps=20", "trainer.limit_test_batches=4", "trainer.limit_val_batches=4"]
    command += ["data.max_length=32", "latency.max_seconds=2", "logger.mode=offline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads((folder / "run" / "metrics.json").read_text())["num_heads"] == 18


def load(folder: Path, name: str, *, alone: bool) -> None:
    """Load a folder, by transformers alone or by this package, and compare its outputs with those of its maker."""
    if alone:
        auto_class = getattr(transformers, FAMILIES[name][2])
        model = auto_class.from_pretrained(folder / name, trust_remote_code=True)
    else:
        import gating

        model = gating.load_compact(folder / name)
    expected = json.loads((folder / f"{name}.json").read_text())
    torch.testing.assert_close(torch.tensor(logits_of(model, name)), torch.tensor(expected), rtol=1e-3, atol=1e-4)


def attempt(title: str, action: Callable[..., None], *args: Any, **kwargs: Any) -> bool:
    """Print whether something succeeds; return whether it failed."""
    try:
        action(*args, **kwargs)
    except Exception as error:
        if " was saved with transformers " in str(error):
            print(f"  refused  {title}: {error}", flush=True)
            return False
        traceback.print_exc()
        print(f"  FAILED   {title}", flush=True)
        return True
    print(f"  passed   {title}", flush=True)
    return False


def main(what: str, *places: str) -> int:
    """Make or load, and return the number of failures."""
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    folders = [Path(place).resolve() for place in places]
    if what == "make":
        (folder,) = folders
        failed = sum(attempt(f"prune and save {name}", prune, name, folder) for name in FAMILIES)
        failed += attempt("transformers' Trainer", train_with_trainer, folder)
        return failed + attempt("head-gating train", train_with_command, folder)
    # First by transformers alone, while the package is not imported.
    pairs = [(folder, name) for folder in folders for name in FAMILIES]
    failed = sum(attempt(f"{one.name}/{name}, transformers alone", load, one, name, alone=True) for one, name in pairs)
    assert "gating" not in sys.modules
    return failed + sum(
        attempt(f"{one.name}/{name}, load_compact", load, one, name, alone=False) for one, name in pairs
    )


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
