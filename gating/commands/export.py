"""``head-gating export FOLDER``: a compact model in the format of another runtime."""

import argparse
from pathlib import Path

from gating.commands.model_folder import find_model
from gating.compact.hub import find_folder
from gating.serving.graphs.export import export_runtime
from gating.serving.graphs.formats import FORMATS

__all__ = ["HELP", "add_arguments", "run"]

HELP = "export a compact model for another runtime, and check it there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("folder", help="folder of a compact model or a finished run, or a name on the hub")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="onnx (default) or torch.export")
    parser.add_argument("--output", help="folder for the export; FOLDER-FORMAT or NAME-FORMAT if left out")
    parser.add_argument("--overwrite", action="store_true", help="overwrite an earlier export")


def run(arguments: argparse.Namespace) -> None:
    """Export a compact model, and print its inputs and the check."""
    place = str(find_model(arguments.folder)[0] or arguments.folder)
    source = find_folder(place, revision=arguments.revision)
    # Of user/name, the export lies in the current folder.
    name = place.rstrip("/") if source == Path(place) else Path(place).name
    folder = arguments.output or f"{name}-{arguments.format}"
    report = export_runtime(source, folder, format=arguments.format, overwrite=arguments.overwrite)
    inputs = ", ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in report.inputs.items())
    print(f"{report.folder}: {report.megabytes:,.1f} MB with the inputs {inputs}")
    print(f"Checked on {report.checked}: its outputs differ from the model's by {report.max_difference:.1e}")
    for refused in report.refused:
        print(f"It rejects {refused}, which the model accepts")
    for name in report.left_out:
        print(f"The tokenizer or processor also makes {name}, which the export does not accept: leave that out")
