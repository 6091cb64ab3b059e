"""Bad sizes, overrides and model folders of whole runs."""

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from omegaconf import DictConfig

import train
from gating.data.text.tokens import load_tokenizer
from gating.distributed.launch import check_devices
from gating.models.meta_model import make_meta_model
from gating.models.sources import Pretrained
from gating.run.build import build_objects, build_phase
from gating.run.settings import read_settings
from gating.tasks.sequence_classification import SequenceClassification
from tests.support.bad_input.cases import (
    NASTY_VALUES,
    RefusedError,
    place,
    write,
)
from tests.support.tiny_run import compose_settings

# Sizes of data and batches, in whole runs.


@st.composite
def sizes(draw: st.DrawFn) -> tuple[dict[str, int], list[str]]:
    rows = {"train": draw(st.integers(1, 5)), "validation": draw(st.integers(0, 3)), "test": draw(st.integers(0, 2))}
    choices = {
        "data.batch_size": [1, 2, 3, 100, 0],
        "data.eval_batch_size": [1, 2, 100],
        "trainer.max_steps": [1, 2, 3],
        "trainer.accumulate_grad_batches": [1, 2, 50],
        "trainer.limit_train_batches": [1.0, 1, 0.01],
        "trainer.limit_val_batches": [1.0, 0, 0.3],
        "trainer.val_check_interval": [1.0, 1, 7],
        "recovery": [0, 0.25, 0.9],
        "data.test": ["null", "file", "file"],
    }
    return rows, [f"{name}={draw(st.sampled_from(values))}" for name, values in choices.items()]


def try_sizes(case: tuple[dict[str, int], list[str]]) -> None:
    rows, overrides = case
    files = {
        split: write(f"{split}.tsv", ("text\tlabel\n" + "".join(f"word{i}\t{i % 2}\n" for i in range(size))).encode())
        for split, size in rows.items()
    }
    given = [f"data.{split}={path}" for split, path in files.items()]
    output = Path(tempfile.mkdtemp(dir=place())) / "out"
    try:
        train.run(settings_of([*given, *(x for x in overrides if x != "data.test=file"), f"output_dir={output}"]))
        assert json.loads((output / "metrics.json").read_text())["num_heads"] == 4
    except Exception:
        assert not output.exists(), "something was written before the input was known to be bad"
        raise
    finally:
        shutil.rmtree(output.parent)


def settings_of(overrides: list[str]) -> DictConfig:
    """Compose the settings of a run of two steps."""
    common = ["model=pretrained", f"model.name={place() / 'model'}", "data=files", "logger=csv", "callbacks=none"]
    common += [f"data.{split}={place() / split}.tsv" for split in ("train", "validation", "test")]
    common += ["data.batch_size=8", "trainer.max_steps=2", "trainer.accelerator=cpu", "objective.num_heads=4"]
    return compose_settings([*common, *overrides])


# Overrides of the command line.


@functools.cache
def setting_names() -> list[str]:
    names: list[str] = []

    def collect(table: Mapping[str, Any], prefix: str) -> None:
        for name, value in table.items():
            names.append(f"{prefix}{name}")
            if isinstance(value, Mapping):
                collect(value, f"{prefix}{name}.")

    collect(settings_of([]), "")  # type: ignore[arg-type]
    return sorted(names)


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    found = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(setting_names()))
        prefix = draw(st.sampled_from(["", "", "", "+", "++", "~"]))
        changed = draw(st.sampled_from([name, name, name, name[:-1], f"{name}x", f"{name}.x", name.upper()]))
        value = draw(st.sampled_from([*NASTY_VALUES, "1", "0.5", "none", "'a b'", "${seed}", "${nowhere}", "???", "4"]))
        found.append(f"{prefix}{changed}" + ("" if prefix == "~" else f"={spell(value)}"))
    return found


def spell(value: Any) -> str:
    """Write a value as on the command line."""
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, (list, dict))
        else (json.dumps(value).replace('"', ""))
    )


def try_overrides(case: list[str]) -> None:
    try:
        cfg = settings_of(case)
    except Exception as error:
        raise RefusedError(error) from error
    settings = read_settings(cfg)
    check_devices(settings.trainer)
    build_objects(settings)
    build_phase(settings)


# Folders of models that are not compact.


def try_model(case: tuple[str, str, float, Any]) -> None:
    name, how, where, value = case
    folder = Path(shutil.copytree(place() / "model", Path(tempfile.mkdtemp(dir=place())) / "model"))
    path = folder / name
    size = path.stat().st_size
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: int(where * size)])
    elif how == "noise":
        path.write_bytes(bytes(range(256)) * 3)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif name == "config.json":
        config = json.loads(path.read_text())
        config[sorted(config)[int(where * len(config))]] = value
        path.write_text(json.dumps(config))
    try:
        source = Pretrained(str(folder))
        make_meta_model(source, SequenceClassification.auto_class)
        load_tokenizer(source)
        model = source.load(SequenceClassification.auto_class)
        assert sum(parameter.numel() for parameter in model.parameters()) < 10**6
    finally:
        shutil.rmtree(folder.parent)


MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
HOWS = ["delete", "cut", "cut", "noise", "folder", "value", "value", "value"]
# Sizes that a model of this would need are no matter of a sentence but of the machine.
MODEL_VALUES = [value for value in NASTY_VALUES if not (isinstance(value, int) and value > 100)]
