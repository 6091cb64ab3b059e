"""A kind of bad input, the outcome of a case, and the model and data that cases need."""

import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from hypothesis import strategies as st

from gating.data.sources import Examples
from gating.data.text.tokens import load_tokenizer
from gating.errors import explain, is_input_error
from gating.models.meta_model import make_meta_model
from gating.models.sources import Pretrained
from gating.tasks.sequence_classification import SequenceClassification
from tests.support.tiny_run import make_inputs

NASTY_NUMBERS = [0, 1, -1, 2, 3, 5, 12, 13, 10**9, 2**63, 10**30, 0.5, -0.5, 1.0, 1.5, 1e-9, 1e300, math.nan, math.inf]
NASTY_VALUES = [*NASTY_NUMBERS, None, True, False, "", "x", "null", "-1", [], [1], ["x"], {}, {"x": 1}]


@dataclass(frozen=True)
class Area:
    """A kind of input.

    Attributes:
        cases: Strategy of cases.
        attempt: Uses a case, and checks the result.
        cost: How long a case takes, relative to others; the tests try fewer of the expensive ones.
    """

    cases: st.SearchStrategy[Any]
    attempt: Callable[[Any], None]
    cost: int = 1


class RefusedError(Exception):
    """Settings that Hydra refuses; train.py prints the reason in one sentence, see run/test_train_refused.py."""


def outcome(area: Area, case: Any) -> str:
    """Try a case; return ``result`` or ``sentence``, and fail on anything else."""
    try:
        area.attempt(case)
    except AssertionError:
        raise
    except RefusedError as refused:
        assert len(explain(refused)) > 10  # noqa: PT017
        return "sentence"
    except Exception as error:
        if not is_input_error(error):
            raise
        sentence = explain(error)
        assert "\n" not in sentence
        assert 10 < len(sentence) < 1500, sentence
        return "sentence"
    return "result"


@functools.cache
def place() -> Path:
    """Return a folder with a tiny model and data files, which stays until the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="bad-input-")
    _kept.append(folder)
    make_inputs(Path(folder.name))
    return Path(folder.name)


_kept: list[Any] = []


def write(name: str, content: bytes) -> str:
    """Write a file of which nothing is known yet: readers remember files by name and time."""
    path = Path(tempfile.mkdtemp(dir=place())) / name
    path.write_bytes(content)
    return str(path)


@functools.cache
def parts() -> tuple[Any, Any]:
    """Return a tokenizer and a model without weights."""
    source = Pretrained(str(place() / "model"))
    return load_tokenizer(source), make_meta_model(source, SequenceClassification.auto_class)


def prepare(splits: Mapping[str, datasets.Dataset], **settings: Any) -> Any:
    """Prepare data as a run does, and check the result."""
    tokenizer, meta_model = parts()
    prepared = SequenceClassification().prepare(
        Examples(datasets.DatasetDict(splits)), tokenizer, meta_model, **settings
    )
    num_classes = len(prepared.config["id2label"])
    for name, table in prepared.splits.items():
        assert len(table) == len(splits[name])
        assert all(0 <= label < num_classes for label in table["labels"])
        assert all(0 < len(ids) <= settings.get("max_length", 128) for ids in table["input_ids"])
    batch = prepared.collate(
        [prepared.splits["train"][index] for index in range(min(4, len(prepared.splits["train"])))]
    )
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    return prepared
