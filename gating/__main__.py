"""The command line: ``head-gating train``, ``inspect`` and ``export``; the same as ``python -m gating``."""

import argparse
import importlib.util
import runpy
import sys
from contextlib import suppress
from pathlib import Path

from gating.compact.formats import FORMATS
from gating.errors import InputError, UserError, explain
from gating.tracking.redaction import redact_output

__all__ = ["main"]


def main() -> None:
    """Run a command of this package."""
    if sys.argv[1:2] == ["train"]:
        # Hydra parses the other arguments.
        sys.argv = ["head-gating train", *sys.argv[2:]]
        runpy.run_path(str(_train_script()), run_name="__main__")
        return
    arguments = _parser().parse_args()
    redact_output()
    try:
        _COMMANDS[arguments.command](arguments)
    except (UserError, OSError) as error:
        sys.exit(f"error: {explain(error)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="head-gating", description="Remove attention heads and feed-forward neurons that are not needed."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="fine-tune with gates, remove heads, export: head-gating train --help")
    inspect = commands.add_parser("inspect", help="show which heads and neurons a model has, and its sizes")
    inspect.add_argument("folder", help="folder of a compact model, or of any model of transformers")
    export = commands.add_parser("export", help="export a compact model for another runtime, and check it there")
    export.add_argument("folder", help="folder of a compact model")
    export.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="onnx (default) or torch.export")
    export.add_argument("--output", help="folder for the export; FOLDER-FORMAT if left out")
    export.add_argument("--overwrite", action="store_true", help="overwrite an earlier export")
    return parser


def _inspect(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from gating.compact.load import load_compact
    from gating.discovery.probe import make_probe
    from gating.pruning.measure import count_macs, weight_megabytes
    from gating.pruning.prune_report import num_parameters
    from gating.report.tables import kept_heads_table, kept_neurons_table
    from gating.structure.blocks import iter_attention_blocks
    from gating.structure.feed_forward import iter_feed_forward_blocks

    model = load_compact(arguments.folder)
    console = Console()
    counts = []
    if heads := list(iter_attention_blocks(model)):
        console.print(kept_heads_table([(block.name, block.head_ids, block.num_heads_before) for block in heads]))
        counts.append(f"{sum(b.num_heads for b in heads)} of {sum(b.num_heads_before for b in heads)} heads")
    if neurons := list(iter_feed_forward_blocks(model)):
        console.print(kept_neurons_table([(block.name, block.num_neurons, block.width_before) for block in neurons]))
        counts.append(f"{sum(b.num_neurons for b in neurons):,} of {sum(b.width_before for b in neurons):,} neurons")
    console.print(
        f"{type(model).__name__}: {', '.join(counts)}, {num_parameters(model):,} parameters",
        highlight=False,
        soft_wrap=True,
    )
    # The inputs of some models cannot be made from their configuration.
    with suppress(InputError):
        example = make_probe(model, batch_size=1, length=128)
        tokens = example.get("input_ids")
        of = "example" if tokens is None else f"example of {tokens.numel()} tokens"
        console.print(
            f"{count_macs(model, example) / 1e6:,.1f} million multiply-accumulates for an {of}", highlight=False
        )
    console.print(f"{weight_megabytes(model):,.1f} MB of weights in {arguments.folder}", highlight=False)


def _export(arguments: argparse.Namespace) -> None:
    from gating.compact.export import export_runtime

    folder = arguments.output or f"{arguments.folder.rstrip('/')}-{arguments.format}"
    report = export_runtime(arguments.folder, folder, format=arguments.format, overwrite=arguments.overwrite)
    inputs = ", ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in report.inputs.items())
    print(f"{report.folder}: {report.megabytes:,.1f} MB with the inputs {inputs}")
    print(f"Checked on {report.checked}: its outputs differ from the model's by {report.max_difference:.1e}")
    for refused in report.refused:
        print(f"It rejects {refused}, which the model accepts")
    for name in report.left_out:
        print(f"The tokenizer or processor also makes {name}, which the export does not accept: leave that out")


def _train_script() -> Path:
    """Return the path of train.py: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "train.py" if importlib.util.find_spec("gating.train") else here.parent / "train.py"


_COMMANDS = {"inspect": _inspect, "export": _export}

if __name__ == "__main__":
    main()
