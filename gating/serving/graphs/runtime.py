"""An exported graph as a module: in ONNX Runtime or OpenVINO, with or without a key-value cache."""

import importlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils.generic import ModelOutput

from gating.errors import InputError, loading

# Shape of each input of a graph; None for dynamic sizes.
_Axes = Mapping[str, Sequence[int | None]]

# Beginnings of the names that transformers gives to a cache, which goes into a graph and comes out of it.
_STATE, _NEXT_STATE = "input.", "output."
_ROWS = "beam_idx"
# Number of tokens of a prompt that are read at once: the logits of all tokens take memory.
_PIECE = 512
# Without these, OpenVINO rounds to 16 bits on some processors, and the cache to 8.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def find_graph(folder: str | os.PathLike[str]) -> Path:
    """Return the file of the graph in the folder of an export."""
    found = [*Path(folder).rglob("model.onnx"), *Path(folder).rglob("openvino_model.xml")]
    if not found:
        raise InputError(f"{folder} has no graph, such as model.onnx: export the model again.")
    return found[0]


class _OnnxSession:
    """A graph in ONNX Runtime; its cache goes in and comes out with each call."""

    def __init__(self, path: Path, num_threads: int | None) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # Errors; warnings are about constants that the optimizer leaves.
        options.intra_op_num_threads = num_threads or 0
        self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [given.name for given in self._session.get_outputs()]
        inputs = {given.name: given for given in self._session.get_inputs()}
        self._states = {name: inputs.pop(name) for name in list(inputs) if name.startswith(_STATE)}
        # ONNX may give a fixed size as a text.
        self.axes: _Axes = {
            name: [int(size) if str(size).isdigit() else None for size in given.shape] for name, given in inputs.items()
        }
        self._cache: dict[str, Any] = {}

    def start(self, rows: int) -> None:
        """Empty the cache, for a number of texts."""
        self._cache = {}
        for name, given in self._states.items():
            sizes = [int(size) if str(size).isdigit() else 0 for size in given.shape]
            # Windows count their tokens in integers.
            kind = np.int64 if "int64" in given.type else np.float32
            self._cache[name] = np.zeros([rows, *sizes[1:]][: len(sizes)], kind)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs by name, and keep the cache."""
        outputs = dict(zip(self._outputs, self._session.run(None, {**inputs, **self._cache}), strict=True))
        states = [name for name in outputs if name.startswith(_NEXT_STATE)]
        self._cache |= {_STATE + name.removeprefix(_NEXT_STATE): outputs.pop(name) for name in states}
        return outputs


@cache
def _openvino_core() -> Any:
    """Return OpenVINO's runtime, one for the life of the process.

    On processors with AMX, it gives the thread a larger stack for signals, which goes with it: the next signal with a
    handler, such as the end of a loader process, would then be a segmentation fault.
    """
    return importlib.import_module("openvino").Core()


class _OpenVinoSession:
    """A graph in OpenVINO on the CPU, which keeps its cache as state."""

    def __init__(self, path: Path, num_threads: int | None) -> None:
        options = _EXACT | ({} if num_threads is None else {"INFERENCE_NUM_THREADS": num_threads})
        compiled = _openvino_core().compile_model(str(path), "CPU", options)
        self._request = compiled.create_infer_request()
        self._outputs = [port.any_name for port in compiled.outputs]
        self.axes: _Axes = {
            port.any_name: [None if size.is_dynamic else size.get_length() for size in port.partial_shape]
            for port in compiled.inputs
        }

    def start(self, rows: int) -> None:
        """Empty the cache."""
        self._request.reset_state()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs by name."""
        outputs = self._request.infer(dict(inputs))
        return {name: outputs[number].copy() for number, name in enumerate(self._outputs)}


class GraphModel(nn.Module):
    """An exported graph as a module, to be evaluated by code that evaluates models of transformers.

    Attributes:
        config: Configuration of the model.
        device: The CPU.
        inputs: The axes of each input, without a cache: a number for a fixed one, a name for a dynamic one.
    """

    device = torch.device("cpu")

    def __init__(
        self, config: PreTrainedConfig, folder: str | os.PathLike[str], *, num_threads: int | None = None
    ) -> None:
        """Load the graph in the folder of an export; ``num_threads`` is by default that of the runtime."""
        super().__init__()
        self.config = config
        path = find_graph(folder)
        with loading(str(path), remedy="Export the model again."):
            session = _OnnxSession if path.suffix == ".onnx" else _OpenVinoSession
            self._session: Any = session(path, num_threads)
        self.inputs: dict[str, tuple[int | str, ...]] = {
            name: tuple(
                size or (("batch", "length")[axis] if axis < 2 else f"size {axis}") for axis, size in enumerate(sizes)
            )
            for name, sizes in self._session.axes.items()
        }

    def forward(self, **inputs: Tensor) -> Any:
        """Return the outputs of the graph by name, such as ``logits``, of a decoder without a cached text before.

        Inputs that the graph has not, such as labels, are ignored; masks of tokens default to 1 everywhere, token types
        to 0, and positions to those of real tokens, as in the model.
        """
        given = {name: tensor.cpu().numpy() for name, tensor in inputs.items() if isinstance(tensor, Tensor)}
        self._session.start(len(next(iter(given.values()))))
        outputs = self._session.run({name: self._value(name, given) for name in self.inputs})
        return ModelOutput((name, torch.from_numpy(output)) for name, output in outputs.items())

    def _value(self, name: str, inputs: Mapping[str, Any]) -> Any:
        if name in inputs:
            return inputs[name]
        ids = inputs.get("decoder_input_ids" if name.startswith("decoder_") else "input_ids")
        if ids is not None and name == _ROWS:
            return np.arange(len(ids), dtype=np.int32)
        if ids is not None and name == "position_ids":
            return _positions(self._value("attention_mask", inputs))
        if ids is None or not name.endswith(("attention_mask", "token_type_ids")):
            raise InputError(f"The graph takes {name}, which the batch of {', '.join(inputs)} does not hold.")
        return np.ones_like(ids) if name.endswith("attention_mask") else np.zeros_like(ids)

    def write(self, prompts: Sequence[Sequence[int]], count: int, *, pad_token_id: int) -> list[list[int]]:
        """Return ``count`` tokens with the largest logits after each prompt, which are padded on the left."""
        longest = max(map(len, prompts))
        tokens = np.array([[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self._session.start(len(prompts))
        steps = []
        for _ in range(count):
            begin, positions = mask.shape[1] - tokens.shape[1], _positions(mask)
            for start in range(begin, mask.shape[1], _PIECE):
                end = min(start + _PIECE, mask.shape[1])
                given = {
                    "input_ids": tokens[:, start - begin : end - begin],
                    "attention_mask": mask[:, :end],
                    "position_ids": positions[:, start:end],
                }
                logits = self._session.run({name: self._value(name, given) for name in self.inputs})["logits"]
            tokens = logits[:, -1:].argmax(-1)
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
            steps.append(tokens[:, 0])
        written: list[list[int]] = np.stack(steps, axis=1).tolist()
        return written


def _positions(mask: Any) -> Any:
    """Return the positions of real tokens, as ``generate`` computes them from a mask."""
    return np.maximum(mask.cumsum(-1) - 1, 0)
