"""The model itself with every gate at 1, the teacher of its gates: no second model is in memory or trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gating.gates import HeadGates
from gating.proof.outputs import evaluating

__all__ = ["OpenTeacher"]


class OpenTeacher(nn.Module):
    """The dense model that a model with gates on frozen weights still is.

    Its outputs are those of the model with all gates at 1, without adapters and dropout, and without a gradient. Call
    it before the pass of the gates that learn from it: gradient checkpointing computes activations of the last pass
    again.

    Example:
        >>> from gating import ExactBudget, Search, Teacher, inject_gates
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = LlamaForCausalLM(config).requires_grad_(False)
        >>> gates = inject_gates(model)
        >>> teacher, search = Teacher(OpenTeacher(model, gates)), Search(gates, ExactBudget(num_heads=3))
        >>> optimizer = torch.optim.AdamW(gates.parameters(), lr=0.1, weight_decay=0.0)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, 3]])}
        >>> for step in range(20):
        ...     search.update(step / 20)
        ...     answers = teacher(batch)
        ...     outputs = model(**batch)
        ...     loss = teacher.loss(outputs.loss, outputs, batch, answers=answers)
        ...     search.add_penalty(loss).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> search.kept().sum().item()
        3
    """

    def __init__(self, model: nn.Module, gates: HeadGates) -> None:
        """Make a model with gates, whose weights are frozen, a teacher of these gates."""
        super().__init__()
        # Not a submodule: the modes and the parameters of the model are not the teacher's to change.
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_gates", gates)

    @property
    def config(self) -> Any:
        """Configuration of the model, which says how it takes targets."""
        return getattr(self.__dict__["_model"], "config", None)

    @property
    def opened(self) -> nn.Module:
        """The model, whose class says at which positions its labels are."""
        model: nn.Module = self.__dict__["_model"]
        return model

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        """Return the outputs of the dense model for keyword arguments of the model."""
        model: nn.Module = self.__dict__["_model"]
        gates: HeadGates = self.__dict__["_gates"]
        with _evaluated(model), gates.fixed_at(torch.ones_like(gates.log_alpha)):
            return model(**inputs)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Take dropout and adapters out of a model inside of a ``with`` block."""
    # Layers of PEFT, which the core does not import; models of transformers have a method of that name.
    adapted: list[Any] = [module for module in model.modules() if getattr(module, "disable_adapters", None) is False]
    for layer in adapted:
        layer.enable_adapters(False)
    try:
        with evaluating(model):
            yield
    finally:
        for layer in adapted:
            layer.enable_adapters(True)
