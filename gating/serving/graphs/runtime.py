"""An exported graph with the interface of the model that it was exported from."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from gating.errors import InputError, loading
from gating.serving.graphs.exporters import of_transformers

__all__ = ["GraphModel"]


class GraphModel(nn.Module):
    """An exported ONNX graph as a module, to be evaluated by code that evaluates models of transformers.

    Attributes:
        config: Configuration of the model.
        device: The CPU.
    """

    device = torch.device("cpu")

    def __init__(self, config: PreTrainedConfig, folder: str | os.PathLike[str]) -> None:
        """Load a graph.

        Raises:
            ValueError: The graph cannot be loaded.
        """
        super().__init__()
        self.config = config
        with loading(str(folder), remedy="Export the model again."):
            self._exported = of_transformers().ExportedModel.from_pretrained(folder, device="cpu")
            (runner,) = self._exported.runners.values()
        self._names = [given.name for given in runner.session.get_inputs()]

    def forward(self, **inputs: Tensor) -> Any:
        """Run the graph.

        Args:
            **inputs: Inputs of the model. Others, such as labels, are ignored; masks of tokens default to 1 everywhere,
                and token types to 0, as in the model.

        Returns:
            The outputs by name, such as ``logits`` of shape ``(batch, ...)``.

        Raises:
            ValueError: An input of the graph is missing.
        """
        return self._exported(**{name: self._value(name, inputs) for name in self._names})

    def _value(self, name: str, inputs: dict[str, Tensor]) -> Tensor:
        if name in inputs:
            return inputs[name]
        ids = inputs.get("decoder_input_ids" if name.startswith("decoder_") else "input_ids")
        if ids is None or not name.endswith(("attention_mask", "token_type_ids")):
            raise InputError(f"The graph takes {name}, which the batch of {', '.join(inputs)} does not hold.")
        return torch.ones_like(ids) if name.endswith("attention_mask") else torch.zeros_like(ids)
