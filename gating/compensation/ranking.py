"""Units of a fine-tuned model ranked by the Fisher information of their gates, with labels or without."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gating.compensation.tokens import IGNORED, num_rows
from gating.gates import HeadGates, inject_gates
from gating.gates.attachment import freeze, unfreeze
from gating.objectives import BudgetSchedule, ExactBudget, Fisher, IterativePruning, KeepsBudget
from gating.objectives.search import Search
from gating.proof.outputs import evaluating
from gating.pruning.finalize import FinalizeReport, finalize
from gating.pruning.latency import CopyTimer, describe_batch
from gating.pruning.latency_costs import kept_for_speedup
from gating.pruning.measure import measure_macs

# Groups of neurons: without training of weights, the smaller, the better.
GROUP_SIZE = 8
# Share of the cost that each round of a ranking closes: what others do is known only when it is closed.
_SHARE_PER_ROUND = 0.05
# Batches are sorted by length: each round has some of all lengths, one of so many.
_STRIDE = 8
# Share of the loss of equal guesses above which a model has learned nothing.
_GUESS = 0.9
# Share of the time that is left which each timed choice of gates may take.
_SHARE_OF_CHOICE = 0.3
# Names of targets in batches, and of logits in outputs.
_TARGETS, _LOGITS = ("labels", "start_positions"), ("logits", "start_logits", "end_logits")

# Returns one vector for each example of a batch, ``[batch, width]``, from the outputs of the model.
Embed = Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor]


def rank_units(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    *,
    embed: Embed | None = None,
    gate_options: Mapping[str, Any] = MappingProxyType({}),
    **budget: Any,
) -> HeadGates:
    """Rank the heads and neurons of a fine-tuned model by Fisher information per cost.

    The lowest units close in rounds, each with the next batches: without them, others count for more than before.
    Targets are labels of the batches. Without labels, they are drawn from the predictions of the dense model, which
    gives the true Fisher information (Kunstner et al. 2019, arXiv 1905.12558). For embeddings, a random projection of
    each stands for the loss, whose expected squares are those of the Gauss-Newton matrix. Where a model predicts
    something for each token, the derivative of each token is squared, else that of each example. A model whose loss is
    that of guessing is a warning.

    Args:
        model: The model, fine-tuned; in evaluation mode and without gradients of its weights meanwhile.
        batches: Keyword arguments of the model, with labels or without, sorted by length.
        embed: Function of outputs and batch that returns embeddings, for a model of embeddings.
        gate_options: Arguments of :func:`gating.inject_gates`; by default heads, and neurons in groups of 8.
        budget: The smallest budget that will be chosen, as for :class:`~gating.ExactBudget`.

    Returns:
        Gates without the model, whose ``log_alpha`` is the order: ``ExactBudget(keep=0.5).kept(gates)`` chooses.
    """
    gates, generator = _inject(model, gate_options), torch.Generator().manual_seed(0)
    losses: list[tuple[float, float]] = []

    def loss_of(batch: Mapping[str, Any]) -> Tensor:
        is_whole = bool((gates.values() == 1).all())
        if embed is not None:
            return project(embed(model(**batch), batch), generator)
        loss, guess = _loss(model, gates, batch, generator)
        losses.extend([(float(loss.detach()), guess)] * is_whole)
        return loss * num_rows(batch)

    try:
        gates.set_macs(measure_macs(model, gates, gates.blocks(model), without_targets(batches[len(batches) // 2])))
        gates.log_alpha.data.copy_(order_gates(model, gates, batches, ExactBudget(**budget), loss_of=loss_of))
    finally:
        gates.remove()
    _warn_of_guessing(losses)
    return gates


def order_gates(
    model: nn.Module,
    gates: HeadGates,
    batches: Sequence[Mapping[str, Any]],
    objective: KeepsBudget,
    *,
    loss_of: Callable[[Mapping[str, Any]], Tensor],
) -> Tensor:
    """Return the order of the gates of a fine-tuned model, ``[num_gates]``, by rounds that close the lowest ones.

    Args:
        model: The model, with the gates on it; in evaluation mode and without gradients of its weights meanwhile.
        gates: The gates, with the multiply-accumulates of their units.
        batches: Batches sorted by length; each round takes the next ones, of all lengths.
        objective: The smallest budget that will be chosen, and a ranking, if it has one; else Fisher information.
        loss_of: Function of a batch that returns the sum of the losses of its examples, a scalar.
    """
    ranking = getattr(objective, "ranking", None) or _fisher_of(model)
    rounds = IterativePruning(ranking, share_per_round=_SHARE_PER_ROUND, schedule=BudgetSchedule(start=0.0, end=1.0))
    rounds.share_budget(objective)
    order = [batch for first in range(_STRIDE) for batch in batches[first::_STRIDE]]
    names, search = freeze(model), Search(gates, rounds)
    try:
        with evaluating(model), torch.enable_grad():
            for number, batch in enumerate(order):
                search.update(number / len(order))
                loss_of(batch).backward()
        return rounds.order(gates)
    finally:
        unfreeze(model, names)


def search_in_order(gates: HeadGates, objective: KeepsBudget, order: Tensor) -> Search:
    """Return a search that has ended: it chooses by the order of the gates, ``[num_gates]``, for a budget."""
    chooser = ExactBudget()
    chooser.share_budget(objective)
    search = Search(gates, chooser)
    search.update(1.0)
    gates.log_alpha.data.copy_(order)
    return search


def _inject(model: nn.Module, gate_options: Mapping[str, Any]) -> HeadGates:
    return inject_gates(model, **{"units": ["heads", "neurons"], "group_size": GROUP_SIZE, **gate_options})


def _fisher_of(model: nn.Module) -> Fisher:
    is_of_tokens = getattr(model, "can_generate", bool)() or "ForTokenClassification" in type(model).__name__
    return Fisher(per="token" if is_of_tokens else "example")


def _warn_of_guessing(losses: Sequence[tuple[float, float]]) -> None:
    """Warn of a model whose mean loss is about the one of guessing; pairs are those of batches with open gates."""
    own, guess = (sum(found) / max(1, len(losses)) for found in (zip(*losses, strict=True) if losses else ((), ())))
    if guess and own > _GUESS * guess:
        warnings.warn(
            f"The model has a loss of {own:.2f} on these data, and guessing one of {guess:.2f}: it is not fine-tuned "
            "for them, so the ranking means little.",
            stacklevel=4,
        )


def remove_chosen(
    model: nn.Module,
    kept: Tensor,
    *,
    gate_options: Mapping[str, Any] = MappingProxyType({}),
    probe: Mapping[str, Any] | None = None,
) -> FinalizeReport:
    """Remove the units of all gates but the kept ones, ``[num_gates]``, in place, with the proof of ``finalize``.

    The options are those of :func:`rank_units`.
    """
    gates = _inject(model, gate_options)
    # The gates have decided nothing: their values are those of the choice.
    with gates.fixed_at(kept.float()):
        return finalize(model, gates, kept=kept, probe=probe)


def kept_at_speedup(
    model: nn.Module, gates: HeadGates, batch: Mapping[str, Tensor], *, speedup: float, seconds: float
) -> Tensor:
    """Return the ranked gates of a model that stay for a speed-up, ``[num_gates]``; copies of the model are timed."""
    print(f"Copies are timed until one is {speedup} times as fast: {describe_batch(batch)} ...", flush=True)
    timer = CopyTimer(model, batch, seconds=seconds)
    measure = partial(timer.try_choice, gates, share=_SHARE_OF_CHOICE)
    choose = lambda share: ExactBudget(keep=share).kept(gates)  # noqa: E731
    kept = kept_for_speedup(choose, measure, speedup=speedup, keep=1 / speedup)
    timer.print_closest(speedup)
    return kept


def without_targets(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model without labels."""
    return {name: one for name, one in batch.items() if name not in (*_TARGETS, "end_positions")}


def project(embeddings: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the sum of random projections of normalized embeddings, ``[batch, width]``: a scalar to rank units by."""
    directions = torch.randn(embeddings.shape, generator=generator).to(embeddings)
    return (functional.normalize(embeddings.float(), dim=-1) * directions).sum()


def _loss(
    model: nn.Module, gates: HeadGates, batch: Mapping[str, Any], generator: torch.Generator
) -> tuple[Tensor, float]:
    """Return the mean loss of a batch, and the one of equal guesses; 0 where there are no classes."""
    targets = [batch[name] for name in _TARGETS if name in batch]
    dense = list[Tensor]()
    if not targets:
        with gates.fixed_at(torch.ones_like(gates.log_alpha)), torch.no_grad():
            dense = _logits_of(model(**batch))
    outputs = model(**batch)
    logits = _logits_of(outputs)
    classes = logits[0].shape[-1] if logits and not any(one.is_floating_point() for one in targets) else 1
    loss = outputs["loss"] if targets else _sampled_loss(model, logits, dense, batch, generator)
    return loss, math.log(classes)


def sampled_loss(model: nn.Module, gates: HeadGates, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Return the mean loss of a batch without labels, of labels that are drawn from the dense model's predictions."""
    return _loss(model, gates, batch, generator)[0]


def _logits_of(outputs: Any) -> list[Tensor]:
    return [outputs[name] for name in _LOGITS if outputs.get(name) is not None]


def _sampled_loss(
    model: nn.Module,
    logits: Sequence[Tensor],
    dense: Sequence[Tensor],
    batch: Mapping[str, Any],
    generator: torch.Generator,
) -> Tensor:
    """Return the mean loss of labels that are drawn from the dense model's predictions, ``[..., classes]`` each."""
    losses, problem = [], getattr(getattr(model, "config", None), "problem_type", None)
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
