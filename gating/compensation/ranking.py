"""Units of a fine-tuned model ranked once, by the Fisher information of their gates, with labels or without."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gating.compensation.tokens import IGNORED, num_rows
from gating.gates import HeadGates
from gating.gates.attachment import freeze, unfreeze
from gating.objectives import BudgetSchedule, Fisher, IterativePruning
from gating.objectives.search import Search
from gating.proof.outputs import evaluating
from gating.pruning.finalize import FinalizeReport, finalize

# Groups of neurons: without training of weights, the smaller, the better.
GROUP_SIZE = 8
# Share of the loss of equal guesses above which a model has learned nothing.
_GUESS = 0.9
# Names of targets in batches, and of logits in outputs.
_TARGETS, _LOGITS = ("labels", "start_positions"), ("logits", "start_logits", "end_logits")

# Returns one vector for each example of a batch, ``[batch, width]``, from the outputs of the model.
Embed = Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor]


def ranking_objective(model: nn.Module, **budget: Any) -> IterativePruning:
    """Return the objective that ranks the units of a model in one round, at the end.

    The budget is that of :class:`~gating.objectives.ExactBudget`. Where a model predicts something for each token, the
    derivative of each token is squared, else that of each example.
    """
    is_of_tokens = getattr(model, "can_generate", bool)() or "ForTokenClassification" in type(model).__name__
    per: Literal["example", "token"] = "token" if is_of_tokens else "example"
    schedule = BudgetSchedule(start=0.0, end=1.0)
    return IterativePruning(Fisher(per=per), share_per_round=1.0, schedule=schedule, **budget)


def remove_chosen(
    model: nn.Module, gates: HeadGates, kept: Tensor, *, probe: Mapping[str, Any] | None = None
) -> FinalizeReport:
    """Remove the units of all gates but the kept ones, ``[num_gates]``, in place, with the proof of ``finalize``."""
    # The gates have decided nothing: their values are those of the choice.
    with gates.fixed_at(kept.float()):
        return finalize(model, gates, kept=kept, probe=probe)


def rank_units(
    model: nn.Module,
    gates: HeadGates,
    objective: IterativePruning,
    batches: Sequence[Mapping[str, Any]],
    *,
    embed: Embed | None = None,
) -> None:
    """Measure the Fisher information of a model's gates for an objective, which then chooses for any budget.

    Targets are labels of the batches. Without labels, they are drawn from the model's own predictions, which gives the
    true Fisher information (Kunstner et al. 2019, arXiv 1905.12558). For embeddings, a random projection of each stands
    for the loss, whose expected squares are those of the Gauss-Newton matrix. A model whose loss is that of guessing is
    a warning.

    Args:
        model: The model with the gates, fine-tuned; in evaluation mode and without gradients of its weights meanwhile.
        gates: Its gates.
        objective: An objective of :func:`ranking_objective`.
        batches: Keyword arguments of the model, with labels or without.
        embed: Function of outputs and batch that returns embeddings, for a model of embeddings.
    """
    search = Search(gates, objective)
    names, generator = freeze(model), torch.Generator().manual_seed(0)
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    loss, guess = 0.0, 0.0
    try:
        with evaluating(model), torch.enable_grad():
            for number, batch in enumerate(batches):
                search.update(number / len(batches))
                outputs = model(**batch)
                if embed is not None:
                    project(embed(outputs, batch), generator).backward()
                    continue
                own, equal = _loss(outputs, batch, generator, problem=problem)
                loss, guess = loss + float(own.detach()), guess + equal
                # A sum over examples, which batches of any size make the same.
                (own * num_rows(batch)).backward()
    finally:
        unfreeze(model, names)
    if guess and loss > _GUESS * guess:
        warnings.warn(
            f"The model has a loss of {loss / len(batches):.2f} on these data, and guessing one of "
            f"{guess / len(batches):.2f}: it is not fine-tuned for them, so the ranking means little.",
            stacklevel=3,
        )


def project(embeddings: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the sum of random projections of normalized embeddings, ``[batch, width]``: a scalar to rank units by."""
    directions = torch.randn(embeddings.shape, generator=generator).to(embeddings)
    return (functional.normalize(embeddings.float(), dim=-1) * directions).sum()


def _loss(
    outputs: Any, batch: Mapping[str, Any], generator: torch.Generator, *, problem: str | None
) -> tuple[Tensor, float]:
    """Return the mean loss of a batch, and that of equal guesses; 0 where there are no classes."""
    logits: list[Tensor] = [outputs[name] for name in _LOGITS if outputs.get(name) is not None]
    classes = logits[0].shape[-1] if logits else 1
    guess = math.log(classes) if classes > 1 else 0.0
    if any(name in batch for name in _TARGETS):
        is_of_classes = not batch[next(name for name in _TARGETS if name in batch)].is_floating_point()
        return outputs["loss"], guess if is_of_classes else 0.0
    return torch.stack([_sampled_loss(one, batch, generator, problem=problem) for one in logits]).mean(), guess


def _sampled_loss(
    logits: Tensor, batch: Mapping[str, Any], generator: torch.Generator, *, problem: str | None
) -> Tensor:
    """Return the loss of labels that are drawn from the model's own predictions, ``[..., classes]``."""
    flat = logits.float().flatten(0, -2)
    if flat.shape[-1] == 1:
        # Of a regression, the noise of a normal distribution around the prediction.
        return (flat * torch.randn(flat.shape, generator=generator).to(flat)).mean()
    if problem == "multi_label_classification":
        are_there = torch.bernoulli(flat.detach().sigmoid().cpu(), generator=generator).to(flat.device)
        return functional.binary_cross_entropy_with_logits(flat, are_there)
    drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator).flatten().to(flat.device)
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == logits.shape[:-1]:
        drawn = drawn.masked_fill(mask.flatten() == 0, IGNORED)
    return functional.cross_entropy(flat, drawn, ignore_index=IGNORED)
