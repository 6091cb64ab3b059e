"""Units of a fine-tuned model ranked by the Fisher information of their gates, with labels or without."""

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
# Share of the cost that each round of a ranking closes: what others do is known only when it is closed.
_SHARE_PER_ROUND = 0.05
# Batches are sorted by length: each round has some of all lengths, one of so many.
_STRIDE = 8
# Share of the loss of equal guesses above which a model has learned nothing.
_GUESS = 0.9
# Names of targets in batches, and of logits in outputs.
_TARGETS, _LOGITS = ("labels", "start_positions"), ("logits", "start_logits", "end_logits")

# Returns one vector for each example of a batch, ``[batch, width]``, from the outputs of the model.
Embed = Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor]


def ranking_objective(model: nn.Module, **budget: Any) -> IterativePruning:
    """Return the objective that ranks the units of a model, of which the lowest close in rounds.

    The budget is that of :class:`~gating.objectives.ExactBudget`: the smallest one that is chosen for later. Where a model predicts something for each token, the
    derivative of each token is squared, else that of each example.
    """
    is_of_tokens = getattr(model, "can_generate", bool)() or "ForTokenClassification" in type(model).__name__
    per: Literal["example", "token"] = "token" if is_of_tokens else "example"
    schedule = BudgetSchedule(start=0.0, end=1.0)
    return IterativePruning(Fisher(per=per), share_per_round=_SHARE_PER_ROUND, schedule=schedule, **budget)


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
    """Measure the Fisher information of a model's gates for an objective, which then chooses for any larger budget.

    The lowest units close in rounds, each with the next batches: without them, others count for more than before.
    Targets are labels of the batches. Without labels, they are drawn from the predictions of the dense model, which
    gives the true Fisher information (Kunstner et al. 2019, arXiv 1905.12558). For embeddings, a random projection of
    each stands for the loss, whose expected squares are those of the Gauss-Newton matrix. A model whose loss is that of
    guessing is a warning.

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
    order = [batch for first in range(_STRIDE) for batch in batches[first::_STRIDE]]
    losses: list[tuple[float, float]] = []
    try:
        with evaluating(model), torch.enable_grad():
            for number, batch in enumerate(order):
                search.update(number / len(order))
                if embed is not None:
                    project(embed(model(**batch), batch), generator).backward()
                    continue
                has_labels, dense = any(name in batch for name in _TARGETS), list[Tensor]()
                if not has_labels:
                    with gates.fixed_at(torch.ones_like(gates.log_alpha)), torch.no_grad():
                        dense = _logits_of(model(**batch))
                outputs = model(**batch)
                logits = _logits_of(outputs)
                loss = outputs["loss"] if has_labels else _sampled_loss(logits, dense, batch, generator, problem=problem)
                if bool((gates.values() == 1).all()):
                    losses.append((float(loss.detach()), _loss_of_guessing(logits, batch)))
                # A sum over examples, which batches of any size make the same.
                (loss * num_rows(batch)).backward()
    finally:
        unfreeze(model, names)
    own, guess = (sum(found) / max(1, len(losses)) for found in (zip(*losses, strict=True) if losses else ((), ())))
    if guess and own > _GUESS * guess:
        warnings.warn(
            f"The model has a loss of {own:.2f} on these data, and guessing one of {guess:.2f}: it is not fine-tuned "
            "for them, so the ranking means little.",
            stacklevel=3,
        )


def project(embeddings: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the sum of random projections of normalized embeddings, ``[batch, width]``: a scalar to rank units by."""
    directions = torch.randn(embeddings.shape, generator=generator).to(embeddings)
    return (functional.normalize(embeddings.float(), dim=-1) * directions).sum()


def _logits_of(outputs: Any) -> list[Tensor]:
    return [outputs[name] for name in _LOGITS if outputs.get(name) is not None]


def _loss_of_guessing(logits: Sequence[Tensor], batch: Mapping[str, Any]) -> float:
    """Return the mean loss of equal guesses; 0 where there are no classes."""
    targets = [batch[name] for name in _TARGETS if name in batch]
    classes = logits[0].shape[-1] if logits and not any(one.is_floating_point() for one in targets) else 1
    return math.log(classes)


def _sampled_loss(
    logits: Sequence[Tensor],
    dense: Sequence[Tensor],
    batch: Mapping[str, Any],
    generator: torch.Generator,
    *,
    problem: str | None,
) -> Tensor:
    """Return the mean loss of labels that are drawn from the predictions of the dense model, ``[..., classes]`` each."""
    losses = []
    for own, other in zip(logits, dense, strict=True):
        flat, expected = own.float().flatten(0, -2), other.float().flatten(0, -2).cpu()
        if flat.shape[-1] == 1:
            # Of a regression, the noise of a normal distribution around the prediction.
            losses.append((flat * torch.randn(flat.shape, generator=generator).to(flat)).mean())
        elif problem == "multi_label_classification":
            are_there = torch.bernoulli(expected.sigmoid(), generator=generator).to(flat)
            losses.append(functional.binary_cross_entropy_with_logits(flat, are_there))
        else:
            drawn = torch.multinomial(expected.softmax(-1), 1, generator=generator).flatten().to(flat.device)
            mask = batch.get("attention_mask")
            if isinstance(mask, Tensor) and mask.shape == own.shape[:-1]:
                drawn = drawn.masked_fill(mask.flatten() == 0, IGNORED)
            losses.append(functional.cross_entropy(flat, drawn, ignore_index=IGNORED))
    return torch.stack(losses).mean()
