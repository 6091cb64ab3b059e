"""``head-gating export FOLDER``: a compact model in the format of another runtime."""

import argparse
from pathlib import Path

from gating.commands.model_folder import find_model
from gating.commands.quantized_evaluation import compare_accuracy
from gating.compact.hub import find_folder
from gating.serving.formats import FORMATS, export_compact

__all__ = ["HELP", "add_arguments", "run"]

HELP = "export a compact model for another runtime, and check it there"
_FORMATS = "\n".join(f"  {name:12}{row.summary}" for name, row in FORMATS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"formats:\n{_FORMATS}"
    parser.add_argument("folder", help="folder of a compact model or a finished run, or a name on the hub")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="onnx", metavar="FORMAT", help="one of those below; onnx by default"
    )
    parser.add_argument("--output", help="place of the export; FOLDER-FORMAT or FOLDER.gguf if left out")
    parser.add_argument("--overwrite", action="store_true", help="overwrite an earlier export")
    parser.add_argument(
        "--dtype",
        help="type of the weights; gguf: f32, f16 (default), bf16, q8_0; onnx-genai: f32 (default), int8, int4; "
        "openvino: f32 (default), f16",
    )
    parser.add_argument("--int8", action="store_true", help="onnx: weights of 8 bits, with the accuracy measured")
    parser.add_argument("--tokenizer-from", metavar="FILE", help="gguf: copy the tokenizer of the dense model's GGUF")
    parser.add_argument("--pre-tokenizer", metavar="NAME", help="gguf: llama.cpp's name of the pre-tokenizer")


def run(arguments: argparse.Namespace) -> None:
    """Export a compact model, and print its contents and the check."""
    place = str(find_model(arguments.folder)[0] or arguments.folder)
    source = find_folder(place, revision=arguments.revision)
    # Of user/name, the export lies in the current folder.
    name = place.rstrip("/") if source == Path(place) else Path(place).name
    report = export_compact(
        source,
        arguments.output or f"{name}{FORMATS[arguments.format].ending}",
        format=arguments.format,
        overwrite=arguments.overwrite,
        dtype=arguments.dtype,
        int8=arguments.int8,
        tokenizer_from=arguments.tokenizer_from,
        pre_tokenizer=arguments.pre_tokenizer,
    )
    print("\n".join((f"{report.path}: {report.megabytes:,.1f} MB", *report.sentences)))
    if arguments.int8:
        print("\n".join(compare_accuracy(arguments.folder, report.path)))
