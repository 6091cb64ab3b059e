"""Models and folders that several tests share.

Nothing here needs a network: models are small, random and built from configurations.
"""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

# Before transformers, wandb and torch are imported: they read these once.
_SCRATCH = Path(tempfile.mkdtemp(prefix="head-gating-tests-"))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_MODULES_CACHE": str(_SCRATCH / "modules"),
    "WANDB_MODE": "offline",
    "WANDB_DATA_DIR": str(_SCRATCH / "wandb-data"),
    "TOKENIZERS_PARALLELISM": "false",
}
(_SCRATCH / "wandb-data").mkdir()
# In the background, or under nohup, they are ignored, and so they would be in the runs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import copy  # noqa: E402
import re  # noqa: E402
from collections.abc import Callable, Iterable, Iterator  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import lru_cache  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import BertTokenizerFast, PreTrainedModel  # noqa: E402

import gating  # noqa: E402
from gating.families import registry as families  # noqa: E402
from tests.support.fresh_process import answers_of_fresh_process  # noqa: E402
from tests.support.quick_runs import DRAWING, TIMING  # noqa: E402
from tests.support.tiny_models import (  # noqa: E402
    FAMILIES,
    NUM_HEADS,
    NUM_LAYERS,
    VOCABULARY,
    batch_for,
    build,
    build_bert_base,
    logits_of,
)

# Two threads that share a busy machine wait for each other longer than they compute.
torch.set_num_threads(1)


# Folders with whole runs in this process, whose models are timed at the end.
_WITH_RUNS = {"commands", "data", "docs", "integrations", "models", "run", "tasks", "tracking", "training"}


@pytest.fixture(scope="module", autouse=True)
def _quick_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draw nothing in runs, but in tests/report, and time models with few passes, but in tests of the latency."""
    folder = request.path.parent.name
    is_timed_quickly = folder in _WITH_RUNS and "latency" not in request.path.stem
    with pytest.MonkeyPatch.context() as patch:
        for shortcut in [*(DRAWING if folder != "report" else []), *(TIMING if is_timed_quickly else [])]:
            patch.setattr(*shortcut)
        yield


@pytest.fixture(autouse=True)
def _registered_specs() -> Iterator[None]:
    """Forget the layouts that a test has registered: other tests, also of pages, use the same names of classes."""
    before = {unit: dict(rows) for unit, rows in families._REGISTERED.items()}
    yield
    if before != families._REGISTERED:
        families._REGISTERED.update(before)
        families._find_row.cache_clear()


TEXT_CLASS = "AutoModelForSequenceClassification"


@pytest.fixture(scope="session")
def _built() -> dict[str, PreTrainedModel]:
    return {family: build(family) for family in FAMILIES}


@pytest.fixture
def make_model(_built: dict[str, PreTrainedModel]) -> Callable[[str], PreTrainedModel]:
    """Return a function from the name of a family to a fresh random model of it."""
    return lambda family: copy.deepcopy(_built[family])


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, make_model: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """Return a model of each family in turn."""
    return make_model(request.param)


@pytest.fixture
def bert(make_model: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """Return a BERT, for tests that do not depend on the family."""
    return make_model("bert")


@pytest.fixture
def gates(bert: PreTrainedModel) -> gating.HeadGates:
    """Return gates on all heads of the BERT."""
    return gating.inject_gates(bert)


@pytest.fixture
def pruned(bert: PreTrainedModel) -> PreTrainedModel:
    """Return the BERT with an uneven, an emptied and a whole layer."""
    gating.prune_heads(bert, {0: [1], 1: range(4)})
    return bert


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    """Return a BERT tokenizer of a few words."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY), encoding="utf-8")
    return BertTokenizerFast(str(path), model_max_length=40)


@dataclass(frozen=True)
class Saved:
    """A model, its folder, a batch, and its logits on that batch."""

    model: PreTrainedModel
    folder: Path
    batch: dict[str, Tensor]
    logits: Tensor


# By name: family and heads to prune. Uneven, with a whole and an emptied layer; then only such layers.
SAVED: dict[str, tuple[str, dict[int, Iterable[int]]]] = {
    **{family: (family, {0: [1], 1: range(NUM_HEADS)}) for family in FAMILIES},
    "whole-or-emptied": ("bert", {0: range(NUM_HEADS), 2: range(NUM_HEADS)}),
    "all-emptied": ("distilbert", {layer: range(NUM_HEADS) for layer in range(NUM_LAYERS)}),
    "whole": ("bert", {}),
}


@pytest.fixture(scope="session")
def saved(
    _built: dict[str, PreTrainedModel], tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Saved]:
    """Save a compact model of every family, and some special ones. Copy a folder before you change it."""
    place = tmp_path_factory.mktemp("saved")
    found = {}
    for name, (family, heads) in SAVED.items():
        model = copy.deepcopy(_built[family])
        gating.prune_heads(model, heads)
        folder = gating.save_compact(model, place / name, tokenizer=None if family == "vit" else tokenizer)
        batch = batch_for(model)
        found[name] = Saved(model, folder, batch, logits_of(model, batch))
    return found


@pytest.fixture
def folder(saved: dict[str, Saved], tmp_path: Path) -> Path:
    """Return the folder of a saved BERT that a test may damage."""
    return Path(shutil.copytree(saved["bert"].folder, tmp_path / "compact"))


@pytest.fixture(scope="session")
def bert_base(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return a BERT of the real size (few words) with uneven, emptied and whole layers."""
    model = build_bert_base()
    generator = torch.Generator().manual_seed(7)
    heads = {layer: [h for h in range(12) if torch.rand((), generator=generator) < 0.6] for layer in range(12)}
    gating.prune_heads(model, heads | {3: range(12), 8: range(12), 5: []})
    batch = batch_for(model)
    folder = gating.save_compact(model, tmp_path_factory.mktemp("base") / "compact")
    return Saved(model, folder, batch, logits_of(model, batch))


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Return the settings of a tiny run, with its model and data. A test that changes a file restores it."""
    from tests.support.tiny_run import make_inputs

    folder = tmp_path_factory.mktemp("inputs")
    settings = make_inputs(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield settings
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="session")
def inputs(tiny_inputs: list[str]) -> list[str]:
    """Return the settings of a tiny run, to which modules may add others."""
    return tiny_inputs


@pytest.fixture(scope="session")
def whole(tiny_inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny run that nobody interrupted. Copy it before you change it."""
    from tests.support.interruptions import run_in

    folder = tmp_path_factory.mktemp("whole") / "run"
    run_in(folder, tiny_inputs)
    return folder


TEXTS = ["the cat sat on the mat", "a fast dog ran home"]


@pytest.fixture(scope="session")
def fresh_answers(
    saved: dict[str, Saved], bert_base: Saved, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> dict[str, dict[str, dict]]:
    """Load all saved models in two fresh processes: ``remote`` without this package, ``local`` with it.

    The workers of pytest-xdist share the outputs of these processes, since their models are equal.
    """
    again = tmp_path_factory.mktemp("again")
    if worker_id == "master":
        return _answers_of_fresh_processes(saved, bert_base, again)
    path = tmp_path_factory.getbasetemp().parent / "fresh-answers.pt"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            torch.save(_answers_of_fresh_processes(saved, bert_base, again), path)
        return torch.load(path)


def _answers_of_fresh_processes(saved: dict[str, Saved], bert_base: Saved, again: Path) -> dict[str, dict[str, dict]]:
    answers = {}
    for kind in ("remote", "local"):
        jobs = {
            name: {
                "folder": str(one.folder),
                "batch": one.batch,
                "auto_class": "AutoModelForImageClassification" if name == "vit" else TEXT_CLASS,
                "save_again": str(again / f"{name}-{kind}"),
                "texts": TEXTS if name in ("bert", "distilbert") else None,
            }
            for name, one in saved.items()
        }
        jobs["base model"] = {
            "folder": jobs["bert"]["folder"],
            "batch": jobs["bert"]["batch"],
            "auto_class": "AutoModel",
        }
        jobs["bert-base"] = {"folder": str(bert_base.folder), "batch": bert_base.batch, "auto_class": TEXT_CLASS}
        answers[kind] = answers_of_fresh_process(jobs, with_package=kind == "local")
    return answers


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that removes the rows of some attention classes from the registry, for one test."""

    def forget_classes(*names: str) -> None:
        rows = {
            pattern: row
            for pattern, row in families._SHIPPED.items()
            if not any(re.fullmatch(pattern, name) for name in names)
        }
        monkeypatch.setattr(families, "_SHIPPED", rows)
        monkeypatch.setattr(families, "_find_row", lru_cache(families._find_row.__wrapped__))

    return forget_classes
