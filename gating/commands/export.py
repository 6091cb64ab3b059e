"""``head-gating export FOLDER``: a compact model in the format of another runtime."""

import argparse
from pathlib import Path

from gating.compact.files import find_folder
from gating.errors import InputError, UserError, explain
from gating.run.folder import find_model
from gating.serving.formats import FORMATS, export_compact


def run(arguments: argparse.Namespace) -> None:
    """Export a compact model, and print its contents and the check."""
    place = str(find_model(arguments.folder)[0] or arguments.folder)
    source = find_folder(place, revision=arguments.revision)
    # The export of user/name lies in the current folder.
    name = place.rstrip("/") if source == Path(place) else Path(place).name
    ending = FORMATS[arguments.format].ending or f"-{arguments.format}{'-int8' if arguments.int8 else ''}"
    print(f"Exporting to {FORMATS[arguments.format].runtime} ...", flush=True)
    options = ("overwrite", "dtype", "int8", "tokenizer_from", "pre_tokenizer")
    given = {option: getattr(arguments, option) for option in options}
    report = export_compact(source, arguments.output or f"{name}{ending}", format=arguments.format, **given)
    print("\n".join((f"{report.path}: {report.megabytes:,.1f} MB", *report.sentences)))
    kind = "int8" if arguments.int8 else arguments.dtype
    if kind in ("int8", "q8_0"):
        try:  # The export is written.
            print(compare_accuracy(arguments.folder, report.path, kind=kind))
        except (UserError, OSError, ImportError) as error:
            print(f"The accuracy with 8-bit weights was not measured: measure it before use. {explain(error)}")


def compare_accuracy(folder: str, exported: Path, *, kind: str = "int8") -> str:
    """Return the validation metric of a model of a run and that of its 8-bit export, and a warning of a loss."""
    place, run_folder = find_model(folder)
    if place is None or run_folder is None:
        raise InputError(f"{folder} is not in the folder of a run, which has data: export the run's own folder.")
    # Other exports need neither Hydra nor Lightning.
    from gating.commands.evaluate import evaluation_settings, load_evaluation, load_split
    from gating.run.build import build_objects
    from gating.run.exports import describe_loss, read_export
    from gating.tracking.verbosity import quiet_libraries

    quiet_libraries()
    settings = evaluation_settings(str(place), (), run_folder=run_folder, split="validation")
    objects = build_objects(settings)
    examples, split = load_split(settings, objects, "validation")
    objects, model, data = load_evaluation(settings, objects, place, examples, split=split)
    score = data.prepared.score
    # A graph only predicts the next token: metrics that need generated text are left out.
    floats, integers = (
        data.evaluate(
            module, split, task=objects.task, metrics=data.prepared.metrics, title=f"{split}, {weights} weights"
        )
        for weights, module in (("float", model), ("8-bit", read_export(model, exported, kind=kind)))
    )
    before, after = floats.metrics[score.name], integers.metrics[score.name]
    warning = describe_loss(score, before, after, name=exported.name)
    sentence = (
        f"{split} {score.name}: {score.show(before)} with float weights, {score.show(after)} with 8-bit weights "
        f"({score.change(after, before):+.2f}{score.points}) on {integers.count()[0]:,} examples"
    )
    return sentence if warning is None else f"{sentence}\nwarning: {warning}"
