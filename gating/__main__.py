"""The command line: ``head-gating train`` and the commands of ``gating.commands``; also as ``python -m gating``."""

import argparse
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path

import gating
from gating.distributed import limit_spinning
from gating.errors import UserError, explain
from gating.serving.formats import FORMATS
from gating.tracking.redaction import redact_output
from gating.training.signals import stop_on_signals


def main() -> None:
    """Run a command of this package."""
    limit_spinning()
    if sys.argv[1:2] == ["train"]:
        # Hydra parses the other arguments.
        sys.argv = ["head-gating train", *sys.argv[2:]]
        runpy.run_path(str(_train_script()), run_name="__main__")
        return
    parser = _parser()
    arguments, more = parser.parse_known_args()
    # argparse ends the list of settings at the first option.
    if more and hasattr(arguments, "settings") and all("=" in one and one[0] != "-" for one in more):
        arguments.settings, more = [*arguments.settings, *more], []
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    redact_output()
    try:
        # Temporary folders are removed at a signal, too.
        with stop_on_signals():
            # Its module imports torch.
            importlib.import_module(f"gating.commands.{arguments.command}").run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "gating").startswith("gating"):
            raise
        extra = "embeddings" if error.name == "sentence_transformers" else "train"
        sys.exit(f"error: {error.name} is missing: pip install 'head-gating[{extra}]'")
    except (UserError, OSError) as error:
        sys.exit(f"error: {explain(error)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="head-gating", description="Remove attention heads and feed-forward neurons that are not needed."
    )
    parser.add_argument("--version", action="version", version=f"head-gating {gating.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="fine-tune with gates, remove heads, export: head-gating train --help")
    for name, (purpose, add_arguments) in COMMANDS.items():
        described = f"{purpose[0].upper()}{purpose[1:]}."
        add_arguments(commands.add_parser(name, help=purpose, description=described))
    return parser


def _train_script() -> Path:
    """Return the path of train.py: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "train.py" if importlib.util.find_spec("gating.train") else here.parent / "train.py"


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


def _curve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a fine-tuned model or of a finished run, or a name on the hub")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="settings of data, task, trainer, latency and seed as in head-gating train, such as data=files "
        "data.train=train.tsv; by default those of the run that made the model",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--keep", nargs="+", type=float, help="shares of the cost that sizes keep (0.9 to 0.3)")
    sizes.add_argument("--speedup", nargs="+", type=float, help="speed-ups of the sizes instead")
    parser.add_argument("--int8", action="store_true", help="score and time 8-bit weights in ONNX Runtime, too")
    parser.add_argument("--max-drop", type=float, default=1.0, help="largest accepted loss of validation score (1.0)")
    parser.add_argument("--output", help="folder of the curve, by default NAME-curve in the current folder")
    parser.add_argument("--overwrite", action="store_true", help="rename an earlier curve, and begin anew")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


# Purpose of each command, as the end of a sentence, and the function that adds its arguments to a parser. Its module in
# ``gating.commands`` has its name, a function ``run`` of the parsed arguments, and takes seconds to import.
COMMANDS = {
    "inspect": ("show which heads and neurons a model has, and its sizes", _inspect_arguments),
    "evaluate": ("evaluate a compact or dense model on a data set", _evaluate_arguments),
    "export": ("export a compact model for another runtime, and check it there", _export_arguments),
    "curve": ("show what smaller sizes of a fine-tuned model cost, without training", _curve_arguments),
    "compare": ("compare finished runs, and recommend the fastest that loses little", _compare_arguments),
}


if __name__ == "__main__":
    main()
