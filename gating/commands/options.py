"""Options of the commands, apart from the modules that run them, which take seconds to import."""

import argparse
from pathlib import Path

from gating.serving.formats import FORMATS


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder of a finished run or of any model of transformers, or a hub name")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder of a model or a finished run, or the name of a model on the hub")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="settings of data, task, trainer, latency and seed as in head-gating train, such as data=files "
        "data.test=test.tsv; by default those of the run that made the folder",
    )
    parser.add_argument("--split", choices=("validation", "test"), help="data to evaluate on; test if there is one")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    shown = "\n".join(f"  {name:12}{row.summary}" for name, row in FORMATS.items())
    parser.epilog = f"formats:\n{shown}"
    parser.add_argument("folder", help="folder of a compact model or a finished run, or a name on the hub")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="onnx", metavar="FORMAT", help="one of those below; onnx by default"
    )
    parser.add_argument("--output", help="place of the export, by default beside the model: compact-onnx-int8")
    parser.add_argument("--overwrite", action="store_true", help="rename what is in its place")
    parser.add_argument(
        "--dtype",
        help="gguf: type of the weights, f32, f16 (default), bf16 or q8_0",
    )
    parser.add_argument("--int8", action="store_true", help="onnx, openvino: 8-bit weights, with the accuracy measured")
    parser.add_argument("--tokenizer-from", metavar="FILE", help="gguf: copy the tokenizer of the dense model's GGUF")
    parser.add_argument("--pre-tokenizer", metavar="NAME", help="gguf: llama.cpp's name of the pre-tokenizer")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished runs or of sweeps")
    parser.add_argument(
        "--max-drop",
        type=float,
        default=1.0,
        help="largest accepted loss of validation score against the dense run: points, or the unit of the score (1.0)",
    )
    parser.add_argument("--output", type=Path, help="file for the figure, such as tradeoff.png; also pdf or svg")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of the figure")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON instead of a table")


# Purpose of each command, as the end of a sentence, and the function that adds its arguments to a parser. Its module in
# this folder has its name, and a function ``run`` of the parsed arguments.
COMMANDS = {
    "inspect": ("show which heads and neurons a model has, and its sizes", _inspect_arguments),
    "evaluate": ("evaluate a compact or dense model on a data set", _evaluate_arguments),
    "export": ("export a compact model for another runtime, and check it there", _export_arguments),
    "compare": ("compare finished runs, and recommend the fastest that loses little", _compare_arguments),
}
