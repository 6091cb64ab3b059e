"""The runtimes that run a model, with the commands that export or serve it."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

from gating.report.results import Runtime
from gating.serving.formats import FORMATS

__all__ = ["find_runtimes"]


def find_runtimes(
    model: PreTrainedModel, folder: Path, *, compact: Path | None = None, exports: Mapping[str, Path] | None = None
) -> list[Runtime]:
    """Return the runtimes of serving, with a command or the reason for which they do not run a model.

    Nothing is exported: an export is checked when it is written.

    Args:
        model: The model, compact or dense.
        folder: Folder of its run, or its own, for the commands.
        compact: Its own folder if that is a stock model, which vLLM serves as it is.
        exports: Places of exports by their names, such as ``onnx-int8``; those that exist are named with their runtime.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> [runtime.name for runtime in find_runtimes(model, Path("run")) if runtime.command]
        ['ONNX Runtime', 'OpenVINO']
    """
    command = f"head-gating export {shlex.quote(str(folder))} --format "
    is_decoder = bool(model.can_generate()) and not model.config.is_encoder_decoder
    is_decoder = is_decoder and model.main_input_name == "input_ids"
    runtimes = []
    for format, row in FORMATS.items():
        places = [place for name, place in (exports or {}).items() if name.partition("-")[0] == format]
        if reason := row.reason_against(model) if is_decoder else "It runs decoders." * row.only_decoders:
            runtimes.append(Runtime(row.runtime, "", reason))
        elif made := tuple(place for place in places if place.exists()):
            runtimes.append(Runtime(row.runtime, "", exports=made))
        elif format == "vllm" and compact is not None:
            from gating.serving.vllm import serve_stock

            runtimes.append(Runtime(row.runtime, serve_stock(model, compact)))
        else:
            runtimes.append(Runtime(row.runtime, f"{command}{format}"))
    return runtimes
