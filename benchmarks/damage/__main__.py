"""Damage folders of compact models in many ways, load them, and write the table of docs/reliability.md.

    python -m benchmarks.damage              300 cases; two minutes
    python -m benchmarks.damage --cases 50   fewer; nothing is written

Each case is a family, a damage and a seed. The folder is loaded with ``load_compact``, which has to give the model that
was saved or one clear sentence, and, unless the damage is in the code of the folder, through remote code, which may
end in any error, but not in another model. Wrong models, tracebacks, crashes and hangs are FAIL.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

import gating
from benchmarks import records
from benchmarks.damage.damages import DAMAGES, damage
from benchmarks.damage.outcome import load_outcome
from benchmarks.measuring import ROOT
from benchmarks.page import replace_table
from gating.proof.outputs import forward_outputs
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES

__all__ = ["Row", "main", "run_cases"]

Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results" / "damage.jsonl"
PAGE = ROOT / "docs" / "reliability.md"
# Family, Auto class for remote code, and whether its weights are in several files.
SUBJECTS = [
    ("bert", "AutoModelForSequenceClassification", False),
    ("llama", "AutoModelForCausalLM", False),
    ("t5", "AutoModelForSeq2SeqLM", False),
    ("gpt2", "AutoModelForCausalLM", True),
    ("vit", "AutoModelForImageClassification", False),
]


@dataclass(frozen=True)
class Subject:
    """A compact model, its folder, the folder of another one, and its outputs."""

    family: str
    auto_class: str
    folder: Path
    other: Path
    answers: list[Tensor]


def main(arguments: list[str] | None = None) -> None:
    """Run the cases, record them and rewrite the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damage", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, help="how many folders to damage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for row in run_cases(range(options.seed, options.seed + options.cases)):
        rows.append(row)
        if row["outcome"] == "FAIL":
            print(json.dumps(row, indent=2))
    for (route, outcome), count in sorted(Counter((row["route"], row["outcome"]) for row in rows).items()):
        print(f"{route}: {count} times {outcome}")
    if options.cases == parser.get_default("cases"):
        records.write(RESULTS, rows)
        replace_table(PAGE, "damage", table(rows))
    sys.exit(1 if any(row["outcome"] == "FAIL" for row in rows) else 0)


def run_cases(seeds: range, *, remote: bool = True) -> Iterator[Row]:
    """Yield the outcome of each case; a seed is one damaged folder.

    Args:
        seeds: The cases. Families and damages take turns.
        remote: Whether to load through remote code, too.
    """
    with tempfile.TemporaryDirectory() as scratch:
        subjects = [make_subject(Path(scratch) / family, family, *rest) for family, *rest in SUBJECTS]
        for seed in seeds:
            name = list(DAMAGES)[seed % len(DAMAGES)]
            subject = random.Random(seed).choice(subjects)
            for route, load in routes(subject, remote=remote):
                # A folder for each: pipes and links are no matter for copying.
                place = Path(tempfile.mkdtemp(dir=scratch))
                folder = Path(shutil.copytree(subject.folder, place / "compact"))
                damage(name, folder, subject.other, seed=seed)
                if route != "load_compact" and code_of(folder) != code_of(subject.folder):
                    continue
                found = load_outcome(load, folder, answer, subject.answers, sentence=route == "load_compact")
                yield {"seed": seed, "family": subject.family, "damage": name, "route": route, **found}
                shutil.rmtree(place)


def routes(subject: Subject, *, remote: bool) -> Iterator[tuple[str, Callable[[Path], PreTrainedModel]]]:
    """Yield the ways to load a folder."""
    yield "load_compact", gating.load_compact
    if remote:
        auto_class = getattr(transformers, subject.auto_class)
        yield "remote code", lambda folder: auto_class.from_pretrained(folder, trust_remote_code=True)


def make_subject(place: Path, family: str, auto_class: str, in_parts: bool) -> Subject:
    """Save two compact models of a family, with as many heads each."""
    for number, name in enumerate(("folder", "other")):
        model = FAMILIES[family].build(seed=number)
        blocks = gating.find_attention_blocks(model)
        group = blocks[0].num_heads // blocks[0].num_key_value_heads
        emptied = blocks[0].name
        heads = {block.name: range(number * group, (number + 1) * group) for block in blocks[1:-1]}
        gating.prune_heads(model, heads | {emptied: range(blocks[0].num_heads)})
        gating.save_compact(model, place / name)
        if in_parts:
            (place / name / "model.safetensors").unlink()
            model.save_pretrained(place / name, max_shard_size="50KB")
        if name == "folder":
            answers = answer(model)
    return Subject(family, auto_class, place / "folder", place / "other", answers)


def answer(model: PreTrainedModel) -> list[Tensor]:
    """Return the outputs of a model on a batch."""
    return forward_outputs(model, make_probe(model))


def code_of(folder: Path) -> dict[str, bytes | None]:
    """Return the Python files of a folder; they are none any more where something else is in their place."""
    return {
        path.name: path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.glob("*.py")
    }


def table(rows: list[Row]) -> list[str]:
    """Return the table of the page: the outcomes of each damage."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in DAMAGES}
    for row in rows:
        counts[row["damage"]][f"{row['route']} {row['outcome']}"] += 1
    columns = {
        "damage": "damage",
        "load_compact correct model": "`load_compact`: the model that was saved",
        "load_compact sentence": "one sentence",
        "load_compact FAIL": "anything else",
        "remote code correct model": "remote code: the model that was saved",
        "remote code refused": "an error",
        "remote code FAIL": "anything else ",
    }
    shown = [{"damage": name, **{column: count[column] for column in columns}} for name, count in counts.items()]
    total = {column: sum(row[column] for row in shown) for column in columns if column != "damage"}
    shown = [{**row, "damage": name} for row, name in zip(shown, counts, strict=True)]
    folders = sum(row["route"] == "load_compact" for row in rows)
    heading = f"{folders} damaged folders of {len(SUBJECTS)} families, transformers {transformers.__version__}."
    return [heading, "", *records.markdown([*shown, {"damage": "all", **total}], columns).splitlines()]


if __name__ == "__main__":
    main()
