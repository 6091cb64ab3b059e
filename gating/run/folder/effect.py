"""Settings by their effect: on the results of a run, on those of a dense one, and on the data that is evaluated."""

from pathlib import Path
from typing import Any, Literal

__all__ = ["OF_COMMAND", "has_effect", "shown_value"]

# Settings of one command, not of a run.
OF_COMMAND = ("output_dir", "overwrite", "resume", "ckpt_path", "phase", "optimized_metric", "push_to_hub", "sweep")
# Settings that name a file or folder of data.
_FILES = ("data.train", "data.validation", "data.test", "data.path")
# Settings and groups of settings, by what they have no effect on.
_WITHOUT_EFFECT = {
    # These may differ between a run and the command that resumes it.
    "results": (
        *(*OF_COMMAND, "paths", "logger", "callbacks", "keep_checkpoints", "exports", "model.base_model"),
        *("data.num_workers", "data.allow_changed", "data.about", "latency.max_seconds", "trainer.max_time"),
    ),
    "dense run": ("objective", "gates", "convergence", "recovery", "optimizer.gate_lr", "optimizer.multiplier_lr"),
    # Where these change what is evaluated, as under a limit of batches or in blocks of a text, its counts differ.
    "examples": ("data.batch_size", "data.eval_batch_size", "data.num_workers", "data.max_length", "data.stride"),
}


def has_effect(name: str, *, on: Literal["results", "dense run", "examples"]) -> bool:
    """Return whether a setting, by its dotted name, changes the results of a run, of a dense run, or its examples."""
    return not any(f"{name}.".startswith(f"{other}.") for other in _WITHOUT_EFFECT[on])


def shown_value(name: str, value: Any) -> Any:
    """Return the value of a setting in a comparison: the same file of data may lie elsewhere on another machine."""
    if name in _FILES and isinstance(value, list):
        return [shown_value(name, one) for one in value]
    return Path(value).name if name in _FILES and isinstance(value, str) else value
