"""``head-gating export FOLDER``: a compact model in the format of another runtime."""

import argparse
from pathlib import Path

from gating.commands.model_folder import find_model
from gating.commands.quantized_evaluation import compare_accuracy
from gating.compact.load import find_folder
from gating.serving.formats import FORMATS, export_compact

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> None:
    """Export a compact model, and print its contents and the check."""
    place = str(find_model(arguments.folder)[0] or arguments.folder)
    source = find_folder(place, revision=arguments.revision)
    # The export of user/name lies in the current folder.
    name = place.rstrip("/") if source == Path(place) else Path(place).name
    report = export_compact(
        source,
        arguments.output or f"{name}{FORMATS[arguments.format].ending or f'-{arguments.format}'}",
        format=arguments.format,
        overwrite=arguments.overwrite,
        dtype=arguments.dtype,
        int8=arguments.int8,
        tokenizer_from=arguments.tokenizer_from,
        pre_tokenizer=arguments.pre_tokenizer,
    )
    print("\n".join((f"{report.path}: {report.megabytes:,.1f} MB", *report.sentences)))
    if arguments.int8:
        print(compare_accuracy(arguments.folder, report.path))
