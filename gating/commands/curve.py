"""``head-gating curve MODEL``: sizes of a fine-tuned model without training, and the score and speed of each."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.commands.evaluate import evaluation_settings, load_evaluation, local_model
from gating.compact.files import read_config
from gating.compensation.compensate import compensate
from gating.compensation.ranking import GROUP_SIZE, kept_at_speedup, rank_units, remove_chosen
from gating.compensation.tokens import RANKED, RANKED_POSITIONS, SOLVED_POSITIONS
from gating.data.examples import TARGETS, Examples, model_inputs
from gating.data.labels import LABEL_COLUMNS
from gating.distributed.launch import check_devices
from gating.errors import InputError
from gating.gates import HeadGates, create_gates
from gating.objectives import ExactBudget
from gating.proof.outputs import evaluating
from gating.pruning.latency import CopyTimer, LatencyComparison, describe_batch, time_pass
from gating.pruning.prune_report import num_parameters
from gating.report.curve import Curve, CurvePoint
from gating.report.metadata import describe_data
from gating.report.score import Score
from gating.report.summary import machine
from gating.run.build import RunObjects, build_objects
from gating.run.data import RunData, load_examples
from gating.run.folder import find_model
from gating.run.settings import Settings
from gating.serving.formats import check_packages
from gating.serving.graphs.graph_export import export_onnx
from gating.serving.graphs.runtime import GraphModel
from gating.storage.files import check_free, move_aside, read_table
from gating.storage.identity import folder_digests, table_digests
from gating.structure.layers import count_units, iter_blocks
from gating.tasks import Embedding, SequenceClassification
from gating.tracking.verbosity import quiet_libraries

# Sizes that are made if none are asked for.
KEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
# Half of the examples of gating.prune are solved on: the curve is at most a little worse than what its commands make.
_SOLVED = 512
# Seconds of the timings of a size, and of those that look for a speed-up.
_SECONDS, _SECONDS_OF_SEARCH = 5.0, 20.0
# Passes of the dense model that take as long as the compensation of a size, and as the ranking.
_PASSES, _PASSES_OF_RANKING = 5, 4


def run(arguments: argparse.Namespace) -> None:
    """Make the sizes of a curve that are not there yet, write the curve, and print it."""
    quiet_libraries()
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        curve, folder = make_curve(arguments)
    if arguments.json:
        print(json.dumps(curve.as_json(), indent=2))
        return
    console = Console()
    console.print(curve.table())
    for line in [*curve.conclusion(), *curve.notes, f"The page is {folder / 'index.html'}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def make_curve(arguments: argparse.Namespace) -> tuple[Curve, Path]:
    """Return the curve of a command, and its folder, which has those of its sizes that an earlier command has made."""
    subject = _Subject.load(arguments.model, arguments.settings, has_int8=arguments.int8)
    folder = Path(arguments.output or f"{Path(arguments.model).name}-curve")
    about = subject.identity()
    stored = read_table(folder / "curve.json") if (folder / "curve.json").is_file() else None
    if stored is not None and (arguments.overwrite or stored["about"] != about):
        if not arguments.overwrite:
            raise InputError(f"{folder} has the curve of another model or data: give --output or --overwrite.")
        move_aside(folder)
        stored = None
    if stored is None:
        check_free(folder, overwrite=False)
    curve = subject.begin(stored, max_drop=arguments.max_drop)
    known = {(point.asked, point.target): point for point in curve.points}
    wanted = [("speedup", one) for one in arguments.speedup or ()] or [("keep", one) for one in arguments.keep or KEEP]
    _check_sizes(wanted)
    missing = [one for one in wanted if one not in known]
    curve.points = [known[one] for one in wanted if one in known]
    print(subject.estimate(len(missing), has_ranking=(folder / _RANKING).is_file()), flush=True)
    if missing:
        shares = [1 / target if kind == "speedup" else target for kind, target in wanted]
        maker = _Maker.of(subject, folder / _RANKING, smallest=min(shares))
        for number, (kind, target) in enumerate(missing, 1):
            print(f"Size {number} of {len(missing)}: {kind}={target:g} ...", flush=True)
            curve.points.append(maker.make(kind, target))
            # After each: an interrupted command goes on.
            curve.write(folder, about=about)
    curve.write(folder, about=about)
    return curve, folder


_RANKING = "ranking.safetensors"


def _check_sizes(wanted: Sequence[tuple[str, float]]) -> None:
    for kind, target in wanted:
        if not (0 < target < 1 if kind == "keep" else target > 1):
            says = "a share of the cost below 1, such as 0.5" if kind == "keep" else "a number above 1, such as 2"
            raise InputError(f"--{kind} {target:g} is no size of a smaller model: give {says}.")


@dataclass(frozen=True)
class _Subject:
    """The dense model of a curve, and the data that it is ranked, compensated and scored with."""

    name: str
    overrides: Sequence[str]
    settings: Settings
    objects: RunObjects
    model: PreTrainedModel
    data: RunData
    place: Path
    has_labels: bool
    has_int8: bool

    @classmethod
    def load(cls, name: str, overrides: Sequence[str], *, has_int8: bool = False) -> "_Subject":
        """Load model and data by the settings of the run that made the model, and those of the command."""
        if has_int8:
            check_packages("onnx")
        place, run_folder = find_model(name)
        settings = evaluation_settings(str(place or name), overrides, run_folder=run_folder, split="train")
        device = check_devices(settings.trainer).root
        if settings.task["_target_"].endswith(".Embedding"):
            # The dense model is the one that sizes are compared with.
            settings = settings.model_copy(update={"task": {**settings.task, "teacher": str(place or name)}})
        objects = build_objects(settings)
        place = local_model(name, place)
        examples = _needed(load_examples(settings, objects), seed=settings.seed)
        loaded = partial(load_evaluation, settings, objects, place, split="validation", has_train=True)
        has_labels = not isinstance(objects.task, SequenceClassification) or _has_labels(settings, examples)
        if not has_labels:
            # The score is the agreement with the dense model: its own classes are the labels.
            config: Any = read_config(place)
            names = [str(name) for _, name in sorted(config.get("id2label", {"0": "0", "1": "1"}).items())]
            first = {
                split: [names[row % len(names)] for row in range(len(table))]
                for split, table in examples.splits.items()
            }
            _, model, data = loaded(_with_labels(examples, first))
            model.to(device)  # type: ignore[arg-type]
            found = {split: [names[one] for one in _predict(model, data, split)] for split in examples.splits}
            examples = _with_labels(examples, found)
        objects, model, data = loaded(examples)
        model.to(device)  # type: ignore[arg-type]
        return cls(name, overrides, settings, objects, model.eval(), data, place, has_labels, has_int8)

    @property
    def score(self) -> Score:
        """The validation score; of a classifier without labels, the agreement with the dense model."""
        prepared = self.data.prepared
        score = prepared.final_score or prepared.score
        return score if self.has_labels else replace(score, name="agreement")

    def evaluate(self, model: nn.Module) -> float:
        """Return the validation score of a model or of a graph, which generates no texts."""
        prepared = self.data.prepared
        metrics = prepared.all_metrics if isinstance(model, PreTrainedModel) else prepared.metrics
        found = self.data.evaluate(
            model, "validation", task=self.objects.task, metrics=metrics, title="scoring: validation"
        )
        return found.metrics[(prepared.final_score or prepared.score).name]

    def identity(self) -> dict[str, Any]:
        """Return the identity of the sizes: hashes of the files of the model and of the data, and the settings."""
        splits = self.data.prepared.splits
        return {
            "model": folder_digests(self.place),
            "data": {split: table_digests(splits[split]) for split in ("train", "validation")},
            "trainer": self.settings.trainer,
            "latency": self.settings.model_dump()["latency"],
            "threads": torch.get_num_threads(),
            **({"int8": True} if self.has_int8 else {}),
        }

    @cached_property
    def timed_batch(self) -> dict[str, Tensor]:
        """The batch that is timed, as in a run."""
        latency = self.objects.latency
        batch = self.data.module.timing_batch(latency.length, size=latency.batch_size)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def estimate(self, number: int, *, has_ranking: bool) -> str:
        """Return how many minutes some sizes take, from a pass of the model."""
        batches = self.data.num_evaluated["validation"] * self.data.module.eval_batch_size
        with evaluating(self.model):
            seconds = min(time_pass(self.model, self.timed_batch) for _ in range(2)) / self.objects.latency.batch_size
        train = min(_SOLVED, len(self.data.prepared.splits["train"]))
        one = seconds * (_PASSES * train + batches) + _SECONDS
        first = 0 if has_ranking else seconds * (_PASSES_OF_RANKING * min(RANKED, train) + batches)
        minutes = (number * one + first) / 60
        return (
            f"{self.name}: {number} size(s) to make, about {max(1, round(minutes))} minute(s). An interrupted command "
            "goes on when it is given again."
        )

    def begin(self, stored: Mapping[str, Any] | None, *, max_drop: float) -> Curve:
        """Return the curve with the sizes that are stored, and the dense model, which is scored if it is not."""
        kept = None if stored is None else CurvePoint(**stored["dense"])
        dense = kept or self.point("keep", 1.0, self.model, None, seconds=0.0)
        data = self.settings.data
        title = f"{self.name} on {describe_data(data).name}"
        points = [] if stored is None else [CurvePoint(**point) for point in stored["points"]]
        batch = describe_batch(self.timed_batch, length=str(self.objects.latency.length))
        notes = [f"Speed-ups: {batch}, {torch.get_num_threads()} thread(s), {machine()}."]
        if not self.has_labels:
            notes.append("Without labels, the score is the share of texts with the class of the dense model.")
        return Curve(title, self.score, dense, points, max_drop, self._commands(), notes)

    def _commands(self) -> dict[str, str]:
        settings = " ".join(map(shlex.quote, self.overrides)) or "<the data and the task of the run>"
        model = f"model.name={shlex.quote(str(self.place))}"
        units = "'gates.units=[heads,neurons]' objective.keep={keep}"
        return {
            "Without training": f"python train.py experiment=untrained {model} objective.keep={{keep}} {settings}",
            "In Python": "gating.prune(model, data, keep={keep}, train=False, tokenizer=tokenizer)",
            "With training": f"python train.py {model} {units} {settings}",
        }

    def point(
        self, asked: str, target: float, model: PreTrainedModel, latency: LatencyComparison | None, *, seconds: float
    ) -> CurvePoint:
        """Return the measurements of a size, or of the dense model, which has no latency of its own."""
        return CurvePoint(
            asked=asked,
            target=target,
            keep=target,
            heads=count_units(model, "heads"),
            neurons=count_units(model, "neurons"),
            parameters=num_parameters(model),
            value=self.evaluate(model),
            speedup=1.0 if latency is None else latency.speedup,
            error=0.0 if latency is None else latency.error,
            seconds=seconds,
            **self._measure_int8(model),
        )

    def _measure_int8(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the score of a model with 8-bit weights in ONNX Runtime, and its speed-up over the dense one there."""
        if not self.has_int8:
            return {}
        if model is self.model:
            return {"int8": self.evaluate(self._dense_graph), "int8_speedup": 1.0}
        graph, batch = self._graph(model), {name: tensor.cpu() for name, tensor in self.timed_batch.items()}
        speedup = CopyTimer(self._dense_graph, batch, seconds=_SECONDS).time(graph).speedup
        return {"int8": self.evaluate(graph), "int8_speedup": speedup}

    def _graph(self, model: PreTrainedModel) -> GraphModel:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            place = Path(folder) / "int8"
            export_onnx(model, place, tokenizer=self.data.processor, int8=True)
            return GraphModel(model.config, place, num_threads=torch.get_num_threads())

    @cached_property
    def _dense_graph(self) -> GraphModel:
        return self._graph(self.model)


def _needed(examples: Examples, *, seed: int) -> Examples:
    """Return the examples that a curve takes: some for training, and those for validation."""
    train, most = examples.splits["train"], RANKED + _SOLVED
    if len(train) > most:
        train = train.select(np.sort(np.random.default_rng(seed).choice(len(train), most, replace=False)))
    return replace(examples, splits=DatasetDict({"train": train, "validation": examples.splits["validation"]}))


def _has_labels(settings: Settings, examples: Examples) -> bool:
    named = settings.data.get("label_column")
    return bool(named) or any(name in examples.splits["train"].column_names for name in LABEL_COLUMNS)


def _with_labels(examples: Examples, labels: Mapping[str, Sequence[str]]) -> Examples:
    splits = {split: table.add_column(LABEL_COLUMNS[0], labels[split]) for split, table in examples.splits.items()}
    return replace(examples, splits=DatasetDict(splits))


@torch.no_grad()
def _predict(model: PreTrainedModel, data: RunData, split: str) -> list[int]:
    """Return the class of each row of a split, in its order."""
    table, collate, found = data.prepared.splits[split], data.prepared.collate, list[int]()
    for start in range(0, len(table), data.module.eval_batch_size):
        rows = range(start, min(start + data.module.eval_batch_size, len(table)))
        batch = model_inputs(collate([table[row] for row in rows]))
        on_device = {name: tensor.to(model.device) for name, tensor in batch.items() if name not in TARGETS}
        found += model(**on_device).logits.argmax(-1).tolist()
    return found


@dataclass(frozen=True)
class _Maker:
    """The ranking of a curve's model, by which its sizes are made."""

    subject: _Subject
    gates: HeadGates
    options: Mapping[str, Any]
    solved: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, subject: _Subject, stored: Path, *, smallest: float) -> "_Maker":
        """Rank the units of the model down to a share, or take the ranking of an earlier command."""
        model, task = subject.model, subject.objects.task
        widest = max(sum(block.slot_widths) for block in iter_blocks(model))
        units = ["heads", *["neurons"] * bool(count_units(model, "neurons"))]
        options: dict[str, Any] = {"gate_options": {"units": units, "group_size": GROUP_SIZE}}

        def sample(number: int, positions: int, skip: int = 0) -> list[dict[str, Any]]:
            found = subject.data.module.sample_batches(number, skip=skip, most=positions * widest)
            return [{name: one.to(model.device) for name, one in model_inputs(batch).items()} for batch in found]

        known = load_file(stored) if stored.is_file() else {}
        if float(known.get("smallest", 1.0)) <= smallest:
            gates = create_gates(model, **options["gate_options"])
            gates.set_macs(known["macs"])
            gates.log_alpha.data.copy_(known["order"])
        else:
            print("Ranking heads and neurons ...", flush=True)
            embed = task.embed if isinstance(task, Embedding) else None
            gates = rank_units(model, sample(RANKED, RANKED_POSITIONS), embed=embed, keep=smallest, **options)
            stored.parent.mkdir(parents=True, exist_ok=True)
            macs, order = gates.macs_per_gate, gates.log_alpha.detach()
            save_file({"smallest": torch.tensor(smallest), "macs": macs, "order": order.cpu()}, stored)
        return cls(subject, gates, options, sample(_SOLVED, SOLVED_POSITIONS, skip=RANKED))

    def make(self, kind: str, target: float) -> CurvePoint:
        """Return one size: its units removed, compensated, scored and timed."""
        started, model, batch = time.perf_counter(), self.subject.model, self.subject.timed_batch
        if kind == "keep":
            kept = ExactBudget(keep=target).kept(self.gates)
        else:
            kept = kept_at_speedup(model, self.gates, batch, speedup=target, seconds=_SECONDS_OF_SEARCH)
        compact = deepcopy(model)
        remove_chosen(compact, kept, probe=batch, **self.options)
        report = compensate(compact, model, self.solved)
        latency = CopyTimer(model, batch, seconds=_SECONDS).time(compact)
        point = self.subject.point(kind, target, compact, latency, seconds=0.0)
        macs = self.gates.macs_per_gate
        share = float(macs[kept.cpu()].sum() / macs.sum())
        before, after = report.outputs
        print(f"The outputs miss the dense ones by {before:.3f} after the removal, {after:.3f} after the compensation.")
        return replace(point, keep=target if kind == "keep" else round(share, 3), seconds=time.perf_counter() - started)
