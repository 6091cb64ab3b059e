"""The accuracy of an exported model with 8-bit weights, beside that of its model with float weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gating.commands.model_folder import find_model
from gating.errors import InputError, explain, is_input_error, missing_extra
from gating.serving.graphs.runtime import GraphModel

if TYPE_CHECKING:
    from gating.report.score import Score

__all__ = ["compare_accuracy"]


def compare_accuracy(
    folder: str, exported: str | Path, overrides: Sequence[str] = (), *, split: str | None = "validation"
) -> tuple[str, ...]:
    """Measure the metric of a model on the data of its run, and that of its export with 8-bit weights.

    Args:
        folder: Folder of a finished run or of its compact model, as given to the export.
        exported: Folder that :func:`gating.export_onnx` wrote with ``int8=True``.
        overrides: Settings of data, task, trainer and seed as in ``head-gating evaluate``; by default those of the run.
        split: ``validation`` or ``test``; None for test if the data has it.

    Returns:
        A sentence with both values and their difference, or with the reason why they were not measured, and how to
        measure them.
    """
    try:
        return (_compare(folder, Path(exported), overrides, split=split),)
    except ModuleNotFoundError as error:
        reason = missing_extra("A measurement", missing=error.name)
    except Exception as error:
        # The export is written: what prevents the measurement is not a failure of the command.
        if not is_input_error(error):
            raise
        reason = explain(error)
    return (f"The accuracy with 8-bit weights was not measured. {reason}",)


def _compare(folder: str, exported: Path, overrides: Sequence[str], *, split: str | None) -> str:
    place, run_folder = find_model(folder)
    if place is None or (run_folder is None and not overrides):
        raise InputError(
            f"{folder} is not in the folder of a run, which has data: export the run's own folder, or compare labels "
            "with the predictions of both models."
        )
    # Other exports need neither Hydra nor Lightning.
    from gating.commands.evaluated_data import limit_of, load_evaluation
    from gating.commands.evaluation_settings import evaluation_settings
    from gating.run.settings.options import naming_settings
    from gating.tracking.verbosity import quiet_libraries

    quiet_libraries()
    settings, only = evaluation_settings(str(place), overrides, run_folder=run_folder, split=split)
    with naming_settings(settings.values):
        objects, model, data, split = load_evaluation(settings, place, split=split, only=only, folder=folder)
        score = data.prepared.score
        # A graph only predicts the next token: metrics that need generated text are left out.
        (floats, _), (integers, tally) = (
            data.evaluate(module, split, task=objects.task, metrics=data.prepared.metrics)
            for module in (model, GraphModel(model.config, exported))
        )
        limit = limit_of(settings, data, split)
    examples = f"{tally.count()[0]:,} examples" + (f" ({limit})" if limit else "")
    return _sentence(score, floats[score.name], integers[score.name], split=split, examples=examples)


def _sentence(score: "Score", floats: float, integers: float, *, split: str, examples: str) -> str:
    if not math.isfinite(score.scale * (integers - floats)):
        return f"{split} {score.name} is not finite on {examples}, so that it does not tell what 8-bit weights cost."
    change = score.scale * (integers - floats)
    unit = " points" if score.unit.strip() == "%" else score.unit
    return (
        f"{split} {score.name}: {score.show(floats)} with float weights, {score.show(integers)} with 8-bit weights "
        f"({change:+.2f}{unit}) on {examples}"
    )
