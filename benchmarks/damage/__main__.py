"""Damage folders of compact models in many ways and load them.

    python -m benchmarks.damage              300 cases; two minutes
    python -m benchmarks.damage --cases 50   fewer; nothing is written

Each case is a family, a damage and a seed. The folder is loaded with ``load_compact``, which has to give the model that
was saved or one clear sentence, and, unless the damage is in the code of the folder, through remote code, which may
end in any error, but not in another model. Wrong models, tracebacks, crashes and hangs are FAIL. Needs Linux.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

import gating
from benchmarks import records
from benchmarks.census.models import build
from benchmarks.census.settings import SIZES
from benchmarks.damage.damages import DAMAGES, damage
from benchmarks.measuring import RESULTS
from gating.errors import is_input_error
from gating.proof.outputs import forward_outputs
from gating.proof.probe import make_probe

Row = dict[str, Any]
Load = Callable[[Path], PreTrainedModel]

OUTPUT = RESULTS / "damage.jsonl"
_CASES = 300
_GIGABYTES = 4
# Model type, class, Auto class for remote code, and whether its weights are in several files.
SUBJECTS = [
    ("bert", "BertForSequenceClassification", "AutoModelForSequenceClassification", False),
    ("llama", "LlamaForCausalLM", "AutoModelForCausalLM", False),
    ("t5", "T5ForConditionalGeneration", "AutoModelForSeq2SeqLM", False),
    ("gpt2", "GPT2LMHeadModel", "AutoModelForCausalLM", True),
    ("vit", "ViTForImageClassification", "AutoModelForImageClassification", False),
]


class Subject(NamedTuple):
    """A compact model, its folder, the folder of another one, and its outputs."""

    family: str
    auto_class: str
    folder: Path
    other: Path
    answers: list[Tensor]


def main(arguments: list[str] | None = None) -> None:
    """Run the cases and record them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damage", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=_CASES, help="how many folders to damage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = list(run_cases(range(options.seed, options.seed + options.cases)))
    failures = [row for row in rows if row["outcome"] == "FAIL"]
    for row in failures:
        print(json.dumps(row, indent=2))
    for (route, outcome), count in sorted(Counter((row["route"], row["outcome"]) for row in rows).items()):
        print(f"{route}: {count} times {outcome}")
    if options.cases == _CASES:
        records.write(OUTPUT, rows)
    sys.exit(1 if failures else 0)


def run_cases(seeds: range) -> Iterator[Row]:
    """Yield the outcomes of each case; a seed is one damaged folder, and families and damages take turns."""
    with tempfile.TemporaryDirectory() as scratch:
        subjects = [make_subject(Path(scratch) / subject[0], *subject) for subject in SUBJECTS]
        for seed in seeds:
            name = list(DAMAGES)[seed % len(DAMAGES)]
            subject = random.Random(seed).choice(subjects)
            for route in ("load_compact", "remote code"):
                # A folder for each: pipes and links are no matter for copying.
                place = Path(tempfile.mkdtemp(dir=scratch))
                folder = Path(shutil.copytree(subject.folder, place / "compact"))
                damage(name, folder, subject.other, seed=seed)
                if route == "load_compact" or code_of(folder) == code_of(subject.folder):
                    found = load_outcome(route, folder, subject)
                    case = {"seed": seed, "family": subject.family, "damage": name, "route": route}
                    yield {**case, **found, "transformers": transformers.__version__}
                shutil.rmtree(place)


def make_subject(place: Path, family: str, class_name: str, auto_class: str, in_parts: bool) -> Subject:
    """Save two compact models of a family, with as many heads each."""
    for number, name in enumerate(("other", "folder")):
        model = build(family, SIZES[0]._replace(layers=3), class_name=class_name, seed=number)
        first, *blocks = gating.find_attention_blocks(model)
        group = first.num_heads // first.num_key_value_heads
        heads = {block.name: range(number * group, (number + 1) * group) for block in blocks[:-1]}
        gating.prune_heads(model, heads | {first.name: range(first.num_heads)})
        gating.save_compact(model, place / name)
        if in_parts:
            (place / name / "model.safetensors").unlink()
            model.save_pretrained(place / name, max_shard_size="50KB")
    return Subject(family, auto_class, place / "folder", place / "other", answer(model))


def answer(model: PreTrainedModel) -> list[Tensor]:
    """Return the outputs of a model on a batch."""
    return forward_outputs(model, make_probe(model))


def code_of(folder: Path) -> dict[str, bytes | None]:
    """Return the Python files of a folder; they are none any more where something else is in their place."""
    is_plain = {path: path.is_file() and not path.is_symlink() for path in folder.glob("*.py")}
    return {path.name: path.read_bytes() if plain else None for path, plain in is_plain.items()}


def load_outcome(route: str, folder: Path, subject: Subject, *, timeout_s: float = 30) -> Row:
    """Load a folder in a process of its own, which may crash, hang or run out of memory, and return the outcome.

    Returns:
        ``outcome``: ``correct model``, ``sentence``, ``refused`` or ``FAIL``; ``why``: the message; ``seconds``.
    """
    start = time.perf_counter()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _limit_child()
            os.write(send, json.dumps(_try(route, folder, subject)).encode())
        os._exit(0)
    os.close(send)
    text = b""
    while select.select([receive], [], [], max(0.0, start + timeout_s - time.perf_counter()))[0]:
        chunk = os.read(receive, 65536)
        if not chunk:
            break
        text += chunk
    else:
        os.kill(child, signal.SIGKILL)
    os.close(receive)
    _, status = os.waitpid(child, 0)
    found = json.loads(text) if text else {"outcome": "FAIL", "why": f"the process ended with status {status}"}
    return {**found, "seconds": round(time.perf_counter() - start, 3)}


def _limit_child() -> None:
    """Limit the memory of this process, and let it print nothing."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + _GIGABYTES * 2**30,) * 2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _try(route: str, folder: Path, subject: Subject) -> Row:
    try:
        if route == "load_compact":
            answers = answer(gating.load_compact(folder))
        else:
            auto_class = getattr(transformers, subject.auto_class)
            answers = answer(auto_class.from_pretrained(folder, trust_remote_code=True))
    except Exception as error:
        why = str(error).replace(str(folder.parent), "...")
        if route != "load_compact":
            return {"outcome": "refused", "why": f"{type(error).__name__}: {why[:200]}"}
        if is_input_error(error) and "\n" not in why and 20 < len(why) < 700 and why.endswith("."):
            return {"outcome": "sentence", "why": why}
        return {"outcome": "FAIL", "why": "".join(traceback.format_exception(error))[-2000:]}
    # The same bits and the same operations in the same process: equal, not close.
    same = len(answers) == len(subject.answers) and all(map(torch.equal, answers, subject.answers))
    return {"outcome": "correct model", "why": ""} if same else {"outcome": "FAIL", "why": "another model"}


def table(rows: list[Row]) -> list[str]:
    """Return the table of the page: the outcomes of each damage."""
    columns = {
        "damage": "damage",
        "load_compact correct model": "`load_compact`: the model that was saved",
        "load_compact sentence": "one sentence",
        "load_compact FAIL": "anything else",
        "remote code correct model": "remote code: the model that was saved",
        "remote code refused": "an error",
        "remote code FAIL": "anything else ",
    }
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*DAMAGES, "all")}
    for row in rows:
        for name in (row["damage"], "all"):
            counts[name][f"{row['route']} {row['outcome']}"] += 1
    shown = [{**{column: count[column] for column in columns}, "damage": name} for name, count in counts.items()]
    folders = sum(row["route"] == "load_compact" for row in rows)
    heading = f"{folders} damaged folders of {len(SUBJECTS)} families, transformers {rows[0]['transformers']}."
    return [heading, "", records.markdown(shown, columns)]


if __name__ == "__main__":
    main()
