"""Positions of a batch that count: no padding, and a tenth of the examples held out."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gating.errors import InputError

# Training examples for a ranking, for a compensation, and for one that a recovery follows, which needs fewer.
RANKED, SOLVED, SOLVED_FIRST = 1024, 1024, 512
# Most positions for each input of the widest output projection: for the ranking, and for the compensation.
RANKED_POSITIONS, SOLVED_POSITIONS = 16, 32
# One of so many examples is held out.
_EVERY = 10
IGNORED = -100  # label of ignored positions in transformers
# Inputs with a row for each example, the surest first; patches of images may lie in one row for all.
_ROWS = ("input_ids", "decoder_input_ids", "attention_mask", "input_values", "input_features")


class Positions:
    """The positions of features and outputs in batches that count, and those that are held out."""

    def __init__(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Number the examples of all batches, so that the same are held out for any size of the batches."""
        self._batches = batches
        self.are_whole = False  # whether a batch cannot be taken apart
        self.rows = [num_rows(batch) for batch in batches]
        self.num_examples = sum(self.rows)
        if self.num_examples < 2:
            raise InputError("batches has fewer than two examples: one of ten is held out, so give more.")
        self._first = [sum(self.rows[:number]) for number in range(len(batches))]

    def select(self, number: int, shape: Sequence[int], *, is_decoder: bool) -> tuple[Tensor, Tensor]:
        """Return masks of the positions of a batch to learn from and to hold out, flat and on the CPU.

        Args:
            number: Number of the batch.
            shape: Shape of features without their last dimension; windows and tokens of an example lie in a row.
            is_decoder: Whether the positions are those of the decoder in a model with an encoder.
        """
        rows, size = self.rows[number], shape[0] if shape else 1
        examples = torch.arange(size) // (size // rows) if size % rows == 0 else torch.arange(size)
        if size % rows == 0:
            examples = examples + self._first[number]
        held_out = self._is_held_out(examples).view(-1, *[1] * (len(shape) - 1)).expand(*shape).flatten()
        counts = _mask(self._batches[number], shape, is_decoder=is_decoder)
        counts = torch.ones_like(held_out) if counts is None else counts
        return counts & ~held_out, counts & held_out

    def held_out_batch(self, number: int) -> Mapping[str, Any]:
        """Return the held-out examples of a batch; the whole batch if it cannot be taken apart."""
        batch, chosen = self._batches[number], self._is_held_out(torch.arange(self.rows[number]) + self._first[number])
        if self.are_whole:
            return batch
        return take_rows(batch, chosen.nonzero().flatten()) if chosen.any() else {}

    def _is_held_out(self, examples: Tensor) -> Tensor:
        if self.num_examples < _EVERY:
            return examples == self.num_examples - 1
        return examples % _EVERY == _EVERY - 1


def num_rows(batch: Mapping[str, Any]) -> int:
    """Return the number of examples of a batch."""
    found = [batch[name] for name in _ROWS if isinstance(batch.get(name), Tensor)]
    found += [tensor for tensor in batch.values() if isinstance(tensor, Tensor) and tensor.dim()]
    if not found:
        raise InputError("batches has an item without tensors: give keyword arguments of the model, such as input_ids.")
    return len(found[0])


def take_rows(batch: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Return some rows of all tensors of a batch, or the batch if they have different numbers of rows."""
    tensors = {name: one for name, one in batch.items() if isinstance(one, Tensor)}
    if len({len(one) if one.dim() else 0 for one in tensors.values()}) > 1:
        return dict(batch)
    return {**batch, **{name: one[rows.to(one.device)] for name, one in tensors.items()}}


def draw_rows(
    total: int, length_of: Callable[[int], int], number: int, *, seed: int, skip: int = 0, most: float = math.inf
) -> list[int]:
    """Return the numbers of some of all examples, drawn with a seed, in the order of their lengths.

    Those that are skipped are drawn again only if no others are left. With ``most`` tokens, they may be fewer.
    """
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [*drawn[skip:], *drawn[:skip]][:number]
    lengths = {row: length_of(row) for row in drawn}
    totals = accumulate(lengths.values())
    drawn = drawn[: next((n for n, tokens in enumerate(totals, 1) if tokens >= most), number)]
    return sorted(drawn, key=lengths.__getitem__)


def _mask(batch: Mapping[str, Any], shape: Sequence[int], *, is_decoder: bool) -> Tensor | None:
    """Return the flat mask of the positions that are no padding; None if no mask of the batch is that of a shape."""
    labels = batch.get("labels") if is_decoder else None
    masks = [batch.get("decoder_attention_mask" if is_decoder else "attention_mask")]
    masks += [labels != IGNORED] if isinstance(labels, Tensor) and not labels.is_floating_point() else []
    for mask in masks:
        if isinstance(mask, Tensor) and (tuple(mask.shape) == tuple(shape) or (mask.numel(),) == tuple(shape)):
            return mask.flatten().cpu() != 0
    return None
