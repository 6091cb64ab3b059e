"""Methods and data sets of the comparison, as settings of train.py."""

import re
from pathlib import Path
from typing import NamedTuple


class Ask(NamedTuple):
    """A way to ask a method for a size: the setting of train.py, and the number in tables."""

    setting: str
    title: str


HEADS = Ask("objective.num_heads={:g}", "{:g} heads")
SHARE = Ask("objective.keep={:g}", "{:g} of the cost")
SPEEDUP = Ask("objective.speedup={:g}", "{:g}x")
LAYERS = Ask("+model.config.num_hidden_layers={:g}", "{:g} layers")


class Method(NamedTuple):
    """A way to make a model smaller.

    Attributes:
        name: Its name in results.
        settings: The settings of train.py.
        title: Its name in tables.
        ask: The way to ask for a size; None if it is run once, not for each number.
    """

    name: str
    settings: tuple[str, ...]
    title: str
    ask: Ask | None = HEADS

    def settings_for(self, number: float | None) -> list[str]:
        """Return the settings that ask for a number of heads or layers, or for a speed-up."""
        asked = [] if number is None or self.ask is None else [self.ask.setting.format(number)]
        return [*self.settings, *asked]


_BOTH, _KEPT = "gates.units=[heads,neurons]", "heads and neurons"
# Stands for the folder of the whole model, fine-tuned densely with the same data, seed and steps.
DENSE = "THE_DENSE_MODEL"
_TAUGHT = ("distillation=logits", f"distillation.teacher={DENSE}")
_TUNED = ("objective=budget", _BOTH, f"model.name={DENSE}")

# Ends the names of methods whose models have 8-bit weights (benchmarks.compare.kept).
INT8 = "_int8"

_JOINT = "fine_tuning=0 distillation=none"
_RANKED = "fine_tuning=0.67 recovery=0.33"
_HIDDEN = "distillation=hidden"
# What a run does with its steps, a name that ends those of methods -> the settings, and the title.
PLANS = {
    "restart": (f"{_JOINT} recovery=0.25", "a search from the start, and a recovery with a new schedule"),
    "none": (f"{_JOINT} recovery=0 convergence=null", "a search from the start, no recovery"),
    "through": (f"{_JOINT} recovery=0 scheduler.restart=false", "a search from the start, removal, and on"),
    "itself": (
        "fine_tuning=0.5 recovery=0.125 distillation=hidden",
        "1/2 dense, a search that learns from it, and a recovery",
    ),
    "learned": (
        "fine_tuning=0.5 recovery=0.25 distillation=hidden gates.group_size=8",
        "1/2 dense, a short search, and a recovery",
    ),
    "frozen": (
        "fine_tuning=0.5 recovery=0.25 distillation=hidden gates.group_size=8 objective=deterministic "
        "optimizer.freeze=search compensate=true",
        "1/2 dense, gates on frozen weights, solved, and a recovery",
    ),
    "ranked": (f"{_RANKED} {_HIDDEN} compensate=false", "2/3 dense, ranked, and a recovery"),
    "solved50": ("fine_tuning=0.5 recovery=0.5 distillation=hidden", "1/2 dense, ranked, solved, and a recovery"),
    "solved67": (f"{_RANKED} {_HIDDEN}", "2/3 dense, ranked, solved, and a recovery"),
    "solved80": ("fine_tuning=0.8 recovery=0.2 distillation=hidden", "4/5 dense, ranked, solved, and a recovery"),
    "logits": (f"{_RANKED} distillation=logits", "2/3 dense, without hidden states"),
    "labels": (f"{_RANKED} distillation=none", "2/3 dense, without a teacher"),
    "answers": (f"{_RANKED} {_HIDDEN} distillation.weight=1.0", "2/3 dense, without labels"),
    "tokens": (f"{_RANKED} {_HIDDEN} objective=fisher objective.ranking.per=token", "2/3 dense, ranked per token"),
    "groups": (f"{_RANKED} {_HIDDEN} gates.group_size=64", "2/3 dense, groups of 64 neurons"),
}
# Other ways to choose what closes, and their titles.
RIVALS = {
    "lagrangian": "Lagrangian (CoFi, 2022)",
    "topk": "differentiable subset, Gumbel (Li et al. 2021)",
    "importance": "importance (Michel et al. 2019)",
    "magnitude": "magnitude",
    "random": "random",
}

METHODS = {
    method.name: method
    for method in (
        Method("none", ("objective=none",), "dense", ask=None),
        # Heads alone end at about one and a half times the speed, so that they are asked for by number.
        Method("heads", ("objective=budget", "gates.units=heads"), "heads alone"),
        Method("neurons", ("objective=budget", "gates.units=neurons"), "neurons alone", ask=SPEEDUP),
        Method("both", ("objective=budget", _BOTH), _KEPT, ask=SPEEDUP),
        *(
            Method(name, (f"objective={name}", _BOTH), f"{_KEPT}, {title}", ask=SPEEDUP)
            for name, title in RIVALS.items()
        ),
        Method("layers", ("objective=none",), "first layers", ask=LAYERS),
        Method("both_taught", ("objective=budget", _BOTH, *_TAUGHT), f"{_KEPT}, with a teacher", ask=SPEEDUP),
        Method("both_tuned", _TUNED, f"{_KEPT}, fine-tuned first", ask=SPEEDUP),
        Method("both_tuned_taught", (*_TUNED, *_TAUGHT), f"{_KEPT}, fine-tuned first, with a teacher", ask=SPEEDUP),
        Method("layers_taught", ("objective=none", *_TAUGHT), "first layers, with the same teacher", ask=LAYERS),
        Method(f"none{INT8}", (), "dense, int8 in ONNX Runtime", ask=None),
        Method(f"both{INT8}", (), f"{_KEPT}, int8 in ONNX Runtime", ask=SPEEDUP),
        *(
            Method(
                f"{units}_{name}",
                (gates, *settings.split()),
                # What heads alone have by default.
                kept if (units, name) == ("heads", "through") else f"{kept} ({title})",
                ask=ask,
            )
            for units, kept, gates, ask in (
                ("heads", "heads alone", "gates.units=heads", HEADS),
                ("both", _KEPT, _BOTH, SHARE),
            )
            for name, (settings, title) in PLANS.items()
        ),
    )
}


class Data(NamedTuple):
    """A data set: its name in results, and the settings of train.py."""

    name: str
    settings: tuple[str, ...]


def read_method(name: str) -> Method:
    """Return the method with a name.

    Raises:
        ValueError: There is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
    if name.endswith(INT8):
        raise ValueError(f"{name} is no run of its own: python -m benchmarks.compare.kept makes it from a kept one")
    return METHODS[name]


def read_data(text: str) -> Data:
    """Read a data set of the command line: a folder with a file for each split, or ``NAME:SETTING SETTING ...``.

    Raises:
        ValueError: The folder does not exist, or lacks a file.
    """
    if re.match(r"\w+:\S+=", text):
        name, _, settings = text.partition(":")
        return Data(name, tuple(settings.split()))
    folder = Path(text).expanduser().resolve()
    settings = ["data=files"]
    for split in ("train", "validation", "test"):
        files = sorted(folder.glob(f"{split}.*")) if folder.is_dir() else []
        if not files:
            raise ValueError(
                f"{text} is no data set: a folder needs the files train, validation and test (tsv, csv, ...)"
            )
        settings.append(f"data.{split}={files[0]}")
    return Data(folder.name, tuple(settings))
