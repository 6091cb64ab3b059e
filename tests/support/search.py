"""Searches without a trainer, and every objective that has a budget."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import gating
from gating.training.optimizers import AdamW
from tests.support.tiny_models import batch_for

RIVALS: dict[str, Callable[..., Any]] = {
    "budget": gating.ExactBudget,
    "lagrangian": gating.Lagrangian,
    "gumbel": gating.TopK,
    "straight_through": lambda **arguments: gating.TopK(variant="straight_through", **arguments),
    "importance": lambda **arguments: gating.IterativePruning(gating.Importance(), **arguments),
    "fisher": lambda **arguments: gating.IterativePruning(gating.Fisher(), **arguments),
    "deterministic": gating.DeterministicBudget,
    "magnitude": lambda **arguments: gating.IterativePruning(gating.Magnitude(), **arguments),
    "random": lambda **arguments: gating.IterativePruning(gating.RandomOrder(seed=3), **arguments),
}


class Search:
    """A search: weights, gates and multipliers in one optimizer, noise from the step's number."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Any,
        *,
        steps: int,
        batch: Mapping[str, Tensor] | None = None,
        lr: float = 1e-3,
        **settings: Any,
    ) -> None:
        """Put gates on a model and attach the objective.

        Args:
            model: The model; a classifier of three classes unless a batch is given.
            objective: The objective.
            steps: Number of steps of the whole search.
            batch: Batch of all steps; without labels, the loss is the mean square of the logits.
            lr: Learning rate of the weights.
            settings: Arguments of ``inject_gates``.
        """
        self.model, self.objective, self.steps = model.train(), objective, steps
        self.gates = gating.inject_gates(model, **settings)
        objective.attach(self.gates)
        self.optimizer = AdamW(lr=lr).build(model, gates=self.gates, objective=objective)
        self.batch = batch or batch_for(model) | {"labels": torch.tensor([0, 2])}

    def run(self, first: int, last: int) -> "Search":
        """Train from a step to another."""
        for step in range(first, last):
            torch.manual_seed(step)
            self.objective.update(self.gates, step / self.steps)
            self.optimizer.zero_grad()
            outputs = self.model(**self.batch)
            loss = outputs.loss if "labels" in self.batch else outputs.logits.square().mean()
            (loss + self.objective.penalty(self.gates)).backward()
            self.optimizer.step()
        return self

    def kept(self) -> Tensor:
        """End the search, and return the mask of the gates to keep."""
        self.objective.update(self.gates, 1.0)
        kept: Tensor = self.objective.kept(self.gates)
        return kept

    def state(self) -> list[dict[str, Any]]:
        """Return copies of the states of model, objective and optimizer."""
        return copy.deepcopy([part.state_dict() for part in (self.model, self.objective, self.optimizer)])

    def load(self, state: list[dict[str, Any]]) -> "Search":
        """Load states from :meth:`state`."""
        for part, its in zip((self.model, self.objective, self.optimizer), state, strict=True):
            part.load_state_dict(its)
        return self


def build_bert_on_meta() -> PreTrainedModel:
    """Return a BERT of 3 layers with 4 heads and 48 neurons."""
    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    return BertForSequenceClassification(config)
