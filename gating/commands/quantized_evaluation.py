"""The accuracy of an exported model with 8-bit weights, beside that of its model with float weights."""

import math
from pathlib import Path

from gating.commands.model_folder import find_model
from gating.errors import InputError, explain, is_input_error, missing_extra
from gating.serving.graphs.runtime import GraphModel

__all__ = ["compare_accuracy"]


def compare_accuracy(folder: str, exported: Path) -> str:
    """Return a sentence with the metric of a model on the validation data of its run, and that of its 8-bit export.

    The sentence has the reason, and the remedy, where they cannot be measured.

    Args:
        folder: Folder of a finished run or of its compact model, as given to the export.
        exported: Folder that :func:`gating.export_onnx` wrote with ``int8=True``.
    """
    try:
        return _compare(folder, exported)
    except ModuleNotFoundError as error:
        reason = missing_extra("A measurement", missing=error.name)
    except Exception as error:
        # The export is written: what prevents the measurement is not a failure of the command.
        if not is_input_error(error):
            raise
        reason = explain(error)
    return f"The accuracy with 8-bit weights was not measured. {reason}"


def _compare(folder: str, exported: Path) -> str:
    place, run_folder = find_model(folder)
    if place is None or run_folder is None:
        raise InputError(
            f"{folder} is not in the folder of a run, which has data: export the run's own folder, or compare labels "
            "with the predictions of both models."
        )
    # Other exports need neither Hydra nor Lightning.
    from gating.commands.evaluated_data import load_evaluation
    from gating.commands.evaluation_settings import evaluation_settings
    from gating.run.build import build_objects, naming_settings
    from gating.tracking.verbosity import quiet_libraries

    quiet_libraries()
    settings, only = evaluation_settings(str(place), (), run_folder=run_folder, split="validation")
    with naming_settings(settings.values):
        objects, model, data, split = load_evaluation(
            settings, build_objects(settings), place, split="validation", only=only, folder=folder
        )
        score = data.prepared.score
        # A graph only predicts the next token: metrics that need generated text are left out.
        (floats, _), (integers, tally) = (
            data.evaluate(module, split, task=objects.task, metrics=data.prepared.metrics)
            for module in (model, GraphModel(model.config, exported))
        )
    where = f"on {tally.count()[0]:,} examples"
    before, after = floats[score.name], integers[score.name]
    change = score.scale * (after - before)
    if not math.isfinite(change):
        return f"{split} {score.name} is not finite {where}, so that it does not tell what 8-bit weights cost."
    unit = " points" if score.unit.strip() == "%" else score.unit
    return (
        f"{split} {score.name}: {score.show(before)} with float weights, {score.show(after)} with 8-bit weights "
        f"({change:+.2f}{unit}) {where}"
    )
