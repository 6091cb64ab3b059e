"""The measurements of a run: metrics, sizes, work, latency, times."""

import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from gating.pruning.latency import LatencyComparison, margin
from gating.pruning.measure import cache_bytes_per_token, count_heads_by_kind, count_macs, weight_megabytes
from gating.pruning.prune_report import num_parameters, unproven_note
from gating.report.metadata import EvaluatedData
from gating.report.rows import CompactReport, latency_rows, size_rows
from gating.report.score import Score
from gating.storage.files import replacing_file
from gating.structure.layers import count_layers, count_units
from gating.units import UNITS

# Stages of a run at which the model is evaluated, which are prefixes of names in ``metrics.json``; a dense model is the
# teacher, or that of a dense run. Exports have their own names, and a prediction without a model is "baseline".
Stage = Literal["search", "removed", "compensated", "compact", "dense"]
# Prefixes of the splits in metric names, as in the logs.
_SPLITS = {"validation": "val", "test": "test"}
# Names in metrics.json of sizes other than numbers of units.
_SIZES = {"macs": "macs", "parameters": "num_parameters", "megabytes": "megabytes", "cache": "cache_bytes_per_token"}
_LATENCY = ("speedup{}", "latency_ms{}_before", "latency_ms{}", "speedup{}_error")


def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers of a run depend on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def machine() -> str:
    """Return the name of the GPU, or the architecture of the CPU and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU with {os.cpu_count()} cores"


@dataclass
class Summary:
    """The measurements of a run.

    Attributes:
        metrics: For each stage (``search``, ``removed``, ``compact``), the metrics by ``val/name`` and ``test/name``.
        earlier_seconds: Seconds of stages in earlier processes of a resumed run, up to the checkpoint it continues.
        sizes: Heads, neurons, layers, multiply-accumulates of an example, parameters, megabytes and bytes of the
            key-value cache for a token, of the dense and the compact model; only those that the dense model has, and
            layers only if some have left.
        kinds: Heads of each kind of attention in the dense and the compact model, if there are several kinds.
        search: Number of steps of the search, and the reason for its end.
        removal: ``unproven``: the blocks on which the outputs compared before and after it do not depend, if any.
        training: Step of the kept weights of the recovery or a dense run, and the reason for an early end.
        counts: Numbers of evaluated examples and of their targets, such as tokens, by ``num_examples/val`` and so on.
        parts: Sentences on splits of which a limit left out examples.
        dense_samples: Texts that the dense model wrote before the search, if its weights are frozen there.
        exports: Latencies of the dense and the compact model as exports, by their names, such as ``onnx-int8``.
    """

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    earlier_seconds: dict[str, float] = field(default_factory=dict)
    latency: LatencyComparison | None = None
    short_latency: LatencyComparison | None = None
    exports: dict[str, LatencyComparison] = field(default_factory=dict)
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    search: dict[str, int | str] = field(default_factory=dict)
    removal: dict[str, list[str]] = field(default_factory=dict)
    training: dict[str, int | str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dense_samples: list[dict[str, str]] = field(default_factory=list)
    # Start of each stage that is being timed.
    _started: dict[str, float] = field(default_factory=dict)

    @property
    def latencies(self) -> dict[str, LatencyComparison]:
        """The latencies that were measured.

        They are of the batch of the settings, of one short text under ``_short``, and of exports under ``_`` and their
        names.
        """
        found = {"": self.latency, "_short": self.short_latency}
        found |= {f"_{name}": times for name, times in self.exports.items()}
        return {batch: times for batch, times in found.items() if times is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements so far as plain values, for a checkpoint."""
        names = ("metrics", "titles", "search", "removal", "warnings", "dense_samples")
        return {name: getattr(self, name) for name in names} | {"earlier_seconds": self.all_seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the measurements of a checkpoint; its durations are those of earlier processes."""
        vars(self).update(state)

    def all_seconds(self) -> dict[str, float]:
        """Return the duration of each stage so far, over all processes of the run, in seconds."""
        now = time.perf_counter()
        running = {name: now - start for name, start in self._started.items()}
        parts = (self.earlier_seconds, self.seconds, running)
        return {name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(chain(*parts))}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the duration of a ``with`` block to the seconds of a stage, a phase or an operation."""
        self._started[name] = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - self._started.pop(name)

    def add_metrics(self, stage: str, title: str, split: str, values: Mapping[str, float]) -> None:
        """Record the metrics of a stage, an export or the baseline on a split."""
        self.titles[stage] = title
        named = {f"{_SPLITS[split]}/{metric}": value for metric, value in values.items()}
        self.metrics.setdefault(stage, {}).update(named)

    def score_of(self, stage: str, score: Score) -> float | None:
        """Return the validation score of a stage or an export; None without one."""
        return self.metrics.get(stage, {}).get(f"{_SPLITS['validation']}/{score.name}")

    def add_counts(self, split: str, num_examples: int, num_targets: int, *, is_part: bool) -> None:
        """Record how much of a split the final metrics are of."""
        name = _SPLITS[split]
        self.counts |= {f"num_examples/{name}": num_examples, f"num_targets/{name}": num_targets}
        if is_part:
            limit = f"trainer.limit_{name}_batches"
            self.parts.append(f"Of the {split} data, {num_examples:,} examples were evaluated ({limit}).")

    def doubt(self, score: Score) -> str | None:
        """Return a warning about the final value of a metric on validation or else test data, if there is cause."""
        final, baseline = self.metrics.get("compact", {}), self.metrics.get("baseline", {})
        for prefix in _SPLITS.values():
            if (name := f"{prefix}/{score.name}") in final:
                number = self.counts[f"num_targets/{prefix}"]
                doubt = score.doubt(final[name], baseline.get(name, math.nan), num_targets=number)
                return doubt and f"The {name} is {doubt}."
        return None

    def compare_models(self, dense: nn.Module, compact: nn.Module, batch: Mapping[str, Tensor] | None = None) -> None:
        """Record the sizes of two models; multiply-accumulates only if there is a batch to count them with."""
        layers = count_layers(dense), count_layers(compact)
        sizes = {
            **{unit: (count_units(dense, unit), count_units(compact, unit)) for unit in UNITS},
            **({} if layers[0] == layers[1] else {"layers": layers}),
            "macs": (0.0, 0.0) if batch is None else (count_macs(dense, batch), count_macs(compact, batch)),
            "parameters": (num_parameters(dense), num_parameters(compact)),
            "megabytes": (weight_megabytes(dense), weight_megabytes(compact)),
            "cache": (cache_bytes_per_token(dense), cache_bytes_per_token(compact)),
        }
        self.sizes = {name: numbers for name, numbers in sizes.items() if numbers[0] or name == "heads"}
        before, after = count_heads_by_kind(dense), count_heads_by_kind(compact)
        self.kinds = {kind: (before[kind], after.get(kind, 0)) for kind in before} if len(before) > 1 else {}

    def compact_report(self, score: Score, data: EvaluatedData | None = None) -> CompactReport:
        """Return the measurements as formatted tables, and the metrics of the compact model."""
        stages = []
        for stage, values in self.metrics.items():
            named = [f"{split}/{score.name}" for split in _SPLITS.values()]
            validation, test = (score.show_measured(values[name]) if name in values else "-" for name in named)
            stages.append((self.titles[stage], validation, test))
        return CompactReport(
            rows=[*size_rows(self.sizes, self.kinds), *latency_rows(self.latencies.values())],
            metrics=stages,
            metric_name=score.name,
            notes=self._notes(),
            warnings=self.warnings,
            data=data,
            scores=self._scores(),
        )

    def _scores(self) -> list[tuple[str, str, float]]:
        """Return the finite metrics of the compact model: split, name and value."""
        final = self.metrics.get("compact", {})
        return [
            (split, name.removeprefix(f"{prefix}/"), value)
            for split, prefix in _SPLITS.items()
            for name, value in final.items()
            if name.startswith(f"{prefix}/") and name != f"{prefix}/loss" and math.isfinite(value)
        ]

    def _notes(self) -> list[str]:
        note = unproven_note(self.removal.get("unproven", []))
        notes = [f"{note}."] if note else []
        if "compensated" in self.metrics:
            notes.append(
                "After the removal, output projections were solved to follow the dense model (compensate=true)."
            )
        if self.latency is not None:
            timings = [
                f"{times.words}: {times.repeats} repeats, {margin(times.error)}" for times in self.latencies.values()
            ]
            threads = f"{torch.get_num_threads()} thread(s), {machine()}"
            notes.append(f"Latency: medians of interleaved repeats ({'; '.join(timings)}), {threads}.")
            if "macs" in self.sizes:
                notes[-1] += f" Multiply-accumulates: of one example of {self.latency.words}."
        return [*notes, *self.parts]

    def flat(self) -> dict[str, float]:
        """Return all numbers by the names in ``metrics.json``."""
        numbers: dict[str, float] = {}
        for size, (before, after) in self.sizes.items():
            name = _SIZES.get(size, f"num_{size}")
            numbers |= {f"{name}_before": before, name: after}
        for kind, (before, after) in self.kinds.items():
            numbers |= {f"num_heads_before/{kind}": before, f"num_heads/{kind}": after}
        for batch, times in self.latencies.items():
            values = (times.speedup, 1e3 * times.before, 1e3 * times.after, times.error)
            numbers |= {name.format(batch): value for name, value in zip(_LATENCY, values, strict=True)}
        final = self.metrics.get("compact", {})
        numbers |= final
        renamed = {} if self.search else {"compact": "dense"}
        stages = {renamed.get(stage, stage): values for stage, values in self.metrics.items()}
        numbers |= {f"{stage}/{name}": value for stage, values in stages.items() for name, value in values.items()}
        seconds = {f"seconds/{stage}": seconds for stage, seconds in self.all_seconds().items()}
        return numbers | self.counts | seconds

    def timed_batches(self) -> dict[str, str]:
        """Return the timed batches by their names in ``metrics.json``: shapes, and the words for the measurements."""
        return {
            f"latency_{name}{batch}": value
            for batch, times in self.latencies.items()
            for name, value in (("batch", times.batch), ("words", times.words))
        }

    def write(self, path: Path, *, score: Score, seed: int) -> None:
        """Save numbers, main metric with its format, seed and versions as JSON; NaN, as of constant labels, as null."""
        about = {
            "format": 1,  # gating.run.folder refuses others.
            "metric": score.name,
            "score": {name: value for name, value in asdict(score).items() if name != "name"},
            "seed": seed,
            "baseline": self.titles.get("baseline", "none").removeprefix("baseline: "),
            "warnings": self.warnings,
            "machine": machine(),
            "threads": torch.get_num_threads(),
            **self.timed_batches(),
            **{f"version/{name}": version for name, version in versions().items()},
        }
        with replacing_file(path) as new:
            numbers = {name: value if math.isfinite(value) else None for name, value in self.flat().items()}
            new.write_text(
                json.dumps(numbers | self.search | self.removal | self.training | about, indent=2) + "\n",
                encoding="utf-8",
            )
