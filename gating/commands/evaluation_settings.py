"""Settings of an evaluation: those of the run that made the model, and those of the command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from gating.errors import InputError, explain, is_input_error
from gating.run.command import open_tables
from gating.run.folder import stored_settings
from gating.run.settings import Settings
from gating.run.settings.options import names_given, read_options
from gating.run.settings.read import read_settings
from gating.run.settings.recall import with_recalled
from gating.run.settings.settings import as_plain

__all__ = ["PLACES", "evaluation_settings"]

# Groups that an evaluation reads, in addition to the seed, with which missing splits are drawn.
_GROUPS = ("data", "task", "trainer", "latency")
_LIMITS = ("limit_val_batches", "limit_test_batches")
# An evaluation reads these settings of the trainer; the last are always those of one device.
_OF_TRAINER = ("accelerator", *_LIMITS, "devices", "num_nodes", "strategy")
_FILES, _TEXT = "gating.data.sources.load_files", "gating.data.text_files.load_text"
_SENTENCES, _EMBEDDING = "gating.data.sentences.load_sentences", "gating.tasks.Embedding"
# These settings say where data is. Overriding only these does not select another source.
PLACES = ("train", "validation", "test", "path", "name")


def evaluation_settings(
    model: str, overrides: Sequence[str], *, run_folder: Path | None, split: str | None
) -> tuple[Settings, str | None]:
    """Return the settings of an evaluation, and the name of the split if the command gives a single file.

    Raises:
        InputError: A setting cannot be used, or there is no data.
    """
    conf = _conf_folder()
    groups = {folder.name for folder in conf.iterdir() if folder.is_dir()}
    chosen = {override.partition("=")[0] for override in overrides}
    # The options of the run's groups are not known to Hydra.
    added = [f"++{o}" if run_folder and o.partition(".")[0] in {*_GROUPS} - chosen else o for o in overrides]
    values = _compose(open_tables(added, conf=conf), conf)
    names = names_given(overrides, read_options(conf))
    for name in names:
        if name.partition(".")[0] not in (*_GROUPS, "seed"):
            raise InputError(
                f"{name} has no effect on an evaluation, which takes data, task, trainer, latency and seed."
            )
    for name in (override.lstrip("+~").partition("=")[0] for override in overrides):
        if name.startswith("trainer.") and name.removeprefix("trainer.") not in _OF_TRAINER:
            raise InputError(
                f"{name} has no effect on an evaluation, which takes of the trainer accelerator and "
                f"{' and '.join(_LIMITS)}. Leave it out."
            )
    if run_folder is None and not any(name.partition(".")[0] == "data" for name in names):
        if not Path(model).is_dir():
            raise InputError(
                f"There is no folder {model}: give the folder of a run or a model, or, for a model of this name on the "
                "hub, also its data with data=..., such as data=files."
            )
        raise InputError(f"{model} is not in the folder of a run, which has data: give data=..., such as data=files.")
    if run_folder is not None:
        recalled = _recall({**values, "resume": str(run_folder)}, overrides, conf=conf, run_folder=run_folder)
        values |= {name: recalled[name] for name in (*_GROUPS, "seed")}
        # Data are evaluated whole, also where the run looked at a part of its own.
        values["trainer"] |= {name: 1.0 for name in _LIMITS if f"trainer.{name}" not in names}
        if not {"data", "data.path", "data.name"}.isdisjoint(names):
            values["data"] |= _whole_splits(values["data"], given=names)
    if values["task"].get("_target_") == _EMBEDDING:
        # Nothing is trained, and data of any kind are evaluated.
        values["task"] |= {"loss": None, "negations": 0}
        revision = "main" if "task.teacher" in names else values["task"].get("teacher_revision", "main")
        if values["task"].get("teacher") is None:
            # The model that is evaluated is not the one that it learned from.
            before = {} if run_folder is None else stored_settings(run_folder)["model"]
            values["task"]["teacher"] = before.get("name") or "none"
            revision = before.get("revision", "main")
        if "task.teacher_revision" not in names:
            values["task"]["teacher_revision"] = revision
    only = _take_single_file(values["data"], split, given=names)
    # One device evaluates, since batches of several processes are padded otherwise; no steps bound the examples.
    values["trainer"] |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": -1}
    values["model"] = {"_target_": "gating.models.pretrained.Pretrained", "name": model}
    return read_settings(values, groups=groups), only


def _recall(composed: dict[str, Any], overrides: Sequence[str], *, conf: Path, run_folder: Path) -> dict[str, Any]:
    """Return the settings of a run, except those of the command.

    An option of data that names the run's own source says where other data is, and changes nothing else.
    """
    data, options = composed["data"], read_options(conf)
    is_same = stored_settings(run_folder)["data"].get("_target_") == data.get("_target_")
    others = [line for line in overrides if not (is_same and names_given([line], options) == ["data"])]
    places = {name: value for name, value in data.items() if name in PLACES} if len(others) < len(overrides) else {}
    try:
        recalled = with_recalled(composed, others, conf=conf)
        return {**recalled, "data": {**recalled["data"], **places}}
    except InputError as error:
        # Settings that are not trusted are repeated in this command.
        remedy = str(error).replace(f"python train.py resume={run_folder} ", f"head-gating evaluate {run_folder} ")
        raise InputError(remedy) from error


def _whole_splits(data: Mapping[str, Any], *, given: Sequence[str]) -> dict[str, str]:
    """Return the names of splits of which the run took a part, such as ``test[:100]`` of its own data."""
    named = {f"{split}_split": split for split in ("validation", "test")}
    return {
        name: split
        for name, split in named.items()
        if str(data.get(name)).startswith(f"{split}[") and f"data.{name}" not in given and "+" not in data[name]
    }


def _conf_folder() -> Path:
    """Return the folder of the settings: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def _compose(overrides: Sequence[str], conf: Path) -> dict[str, Any]:
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            return as_plain(compose("config", overrides=list(overrides)))
    except Exception as error:  # Hydra raises errors of many classes about settings.
        if is_input_error(error):
            raise
        raise InputError(explain(error)) from error


def _take_single_file(data: dict[str, Any], split: str | None, *, given: Sequence[str]) -> str | None:
    """Let the one file that a command gives be read whole, as the training data; return the split that it is."""
    if data.get("_target_") not in (_FILES, _TEXT, _SENTENCES) or "data.train" in given:
        return None
    files = [name for name in ("validation", "test") if f"data.{name}" in given and data.get(name) is not None]
    split = split or (files[-1] if files else "test")
    if split in files:
        # The training file of texts without validation data would be divided.
        data.update(train=data[split], validation=data[split] if data["_target_"] == _TEXT else None, test=None)
        return split
    if data.get("train") == "???":
        raise InputError(f"Give the file to evaluate on with data.{split}=FILE.")
    return None
