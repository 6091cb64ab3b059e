"""``gating.compensate``: the output projections of a compact model, solved so that it follows the dense model."""

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gating.compensation.parts import COMPACT, DENSE, Batch, Enough, Part, iterate_parts
from gating.compensation.places import Place, Slot, find_places, hook_projection, observe
from gating.compensation.result import Compensated, CompensationReport
from gating.compensation.ridge import Ridge
from gating.compensation.tokens import Positions, take_rows
from gating.errors import InputError
from gating.families.layouts import num_outputs, weight_dim, without_adapter
from gating.loader.saving import has_lost_units
from gating.proof.conditions import check_has_values, check_no_adapters, check_not_wrapped, check_whole
from gating.proof.input_sizes import accepted_arguments
from gating.proof.outputs import evaluating, forward_outputs
from gating.structure.blocks import Block, share_specs
from gating.structure.edits import Undo, undo_edits
from gating.structure.feed_forward import ExpertsBlock
from gating.structure.layers import dense_name, iter_blocks, layers_record

# Examples of the batch for trials, and positions for each input of a layer below which they are few.
_TRIAL_ROWS, _FEW = 4, 2


def compensate(
    compact: nn.Module, dense: nn.Module, batches: Iterable[Batch], *, ridge: float = 0.01
) -> CompensationReport:
    """Change the output projections of a compact model, in place, so that it follows the dense model.

    A removal takes the contribution of some heads and neurons out of the hidden states. Each output projection that has
    lost inputs is solved by least squares on some batches, in the order of the forward pass: with what is left, it
    gives the hidden states of the dense model as nearly as possible. Shapes stay the same, and no labels are needed.
    The weights change, so that the model no longer equals the masked one: compensate after the proof of the removal.
    Tan et al. 2026 (arXiv 2602.05243) solve vision transformers in this way; here the target has the whole stream, and
    the inputs are those of the compensated model.

    Args:
        compact: A model of this package that has lost heads or neurons.
        dense: The model that it was made from, fine-tuned, with all units; unchanged.
        batches: Keyword arguments of the models, some thousand tokens or more; of ten examples, one is held out.
        ridge: Weight of the distance to the present weights, relative to the mean square of the inputs.

    Returns:
        The errors of each block before and after on held-out positions, where weights stay if the error would grow.

    Raises:
        InputError: The models do not belong together, one of them is wrapped, sharded, has gates or adapters, or gives
            NaN; or there are no batches. The compact model is unchanged.

    Example:
        >>> from copy import deepcopy
        >>> from gating import prune_heads
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10)
        >>> dense = BertModel(config)
        >>> compact = deepcopy(dense)
        >>> _ = prune_heads(compact, {0: [1], 1: [2]})
        >>> batch = {"input_ids": torch.randint(10, (20, 12))}
        >>> report = compensate(compact, dense, [batch])
        >>> [block.name for block in report.blocks]
        ['encoder.layer.0.attention.self', 'encoder.layer.1.attention.self']
    """
    started = time.perf_counter()
    for model in (compact, dense):
        _check_model(model)
    if not has_lost_units(compact):
        raise InputError("The first model has lost no heads or neurons: give compensate(compact, dense, batches).")
    if not (isinstance(ridge, (int, float)) and 0 <= ridge < math.inf):
        raise InputError(f"ridge={ridge!r} must be a number of 0 or more, such as 0.01.")
    pairs = _pair_blocks(compact, dense)
    found = [_for_model(dense, batch) for batch in batches]
    if not found:
        raise InputError("batches is empty: give some batches of texts, as keyword arguments of the model.")
    with evaluating(compact), evaluating(dense), torch.no_grad():
        solver = _Solver(compact, dense, found, ridge)
        try:
            return solver.solve_all(pairs, started)
        except BaseException:
            undo_edits(solver.done)
            raise


def _check_model(model: nn.Module) -> None:
    check_not_wrapped(model)
    check_whole(model, remedy="compensate the model before fully_shard")
    if hasattr(model, "head_gates"):
        raise InputError("The model has gates: call gating.finalize(model, gates) first, which proves the removal.")
    check_has_values(model)
    check_no_adapters(model)


def _pair_blocks(compact: nn.Module, dense: nn.Module) -> list[tuple[Block, Block]]:
    """Return the blocks that have lost units, each behind the one of the dense model."""
    share_specs(compact, dense)
    known = {dense_name(layers_record(dense), block.name): block for block in iter_blocks(dense)}
    pairs = []
    for block in iter_blocks(compact):
        name = dense_name(layers_record(compact), block.name)
        other = known.get(name)
        if other is None or not _fit(block, other):
            raise InputError(
                f"{name} of the compact {type(compact).__name__} does not come from this {type(dense).__name__}: give "
                "the dense model that it was made from."
            )
        if block.size < other.size:
            pairs.append((other, block))
    return pairs


def _fit(block: Block, other: Block) -> bool:
    """Return whether a block may be another one after a removal."""
    if type(block) is not type(other) or block.size_before != other.size_before or block.size > other.size:
        return False
    if isinstance(block, ExpertsBlock):
        return True
    return num_outputs(block.output_projection) == num_outputs(other.output_projection)


def _for_model(model: nn.Module, batch: Batch) -> Batch:
    """Return a batch on the device of a model, for a pass without a cache."""
    device = next(model.parameters()).device
    moved = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in batch.items()}
    return {**moved, "use_cache": False} if "use_cache" in accepted_arguments(model.forward) else moved


class _Solver:
    """A compensation under way; ``done`` has the functions that undo it."""

    def __init__(self, compact: nn.Module, dense: nn.Module, batches: Sequence[Batch], ridge: float) -> None:
        self._models, self._ridge = (dense, compact), ridge
        self._positions = Positions(batches)
        # The first one is small: trials run on it.
        trial = take_rows(batches[0], torch.arange(min(_TRIAL_ROWS, self._positions.rows[0])))
        if not _runs_on(dense, take_rows(batches[0], torch.arange(1))):
            trial, self._positions.are_whole = dict(batches[0]), True
        self._batches = [trial, *batches]
        self._has_decoder = bool(getattr(getattr(dense, "config", None), "is_encoder_decoder", False))
        self.done: list[Undo] = []
        self._blocks: list[Compensated] = []
        self._left_alone: dict[str, str] = {}
        self._num_positions, self._few = 0, (0, 0)

    def solve_all(self, pairs: Sequence[tuple[Block, Block]], started: float) -> CompensationReport:
        """Compensate pairs of blocks, and undo it if the outputs are further from the dense ones than before."""
        before = self._error_of_outputs()
        for other, block in pairs:
            reason = _why_left_alone(block)
            if reason:
                self._left_alone[other.name] = reason
        todo = [pair for pair in pairs if pair[0].name not in self._left_alone]
        for part in iterate_parts(self._models, todo, self._batches):
            self._solve_part(part)
        for other, _ in todo:
            if other.name not in {block.name for block in self._blocks}:
                self._left_alone.setdefault(other.name, "no batch reaches it")
        after = self._error_of_outputs()
        if not after <= before:
            undo_edits(self.done)
            self._blocks = [replace(one, is_changed=False) for one in self._blocks]
        needed, inputs = self._few
        if needed:
            warnings.warn(
                f"{self._num_positions:,} positions are few for layers of {inputs:,} inputs: give {needed:,} or more, "
                "or the model follows these texts better than others.",
                stacklevel=4,
            )
        seconds = time.perf_counter() - started
        outputs = before, min(before, after)
        return CompensationReport(tuple(self._blocks), self._left_alone, outputs, self._num_positions, seconds)

    def _solve_part(self, part: Part) -> None:
        """Solve the blocks of a part one after another; the dense stream behind those of a layer is kept."""
        dense_blocks = [other for other, _ in part.blocks]
        places = find_places(part.roots[DENSE], dense_blocks, lambda: part.call(DENSE, 0))
        streams: dict[str, dict[int, list[Tensor]]] = {}
        if part.is_layer:
            streams = self._streams(part, places, list(places))
        for other, block in part.blocks:
            if other.name not in places:
                self._left_alone[other.name] = "its output does not reach the hidden states in a sum"
                continue
            place = places[other.name]
            stream = streams.get(other.name) or self._streams(part, places, [other.name])[other.name]
            self._solve_block(part, other.name, block, place, stream)

    def _streams(
        self, part: Part, places: Mapping[str, Place], names: Sequence[str]
    ) -> dict[str, dict[int, list[Tensor]]]:
        """Return the dense stream at some places, by name and batch, a tensor for each use of the projection."""
        found: dict[str, dict[int, list[Tensor]]] = {name: {} for name in names}
        for number in range(1, len(self._batches)):
            kept = {name: found[name].setdefault(number, []) for name in names}
            self._watch(part, DENSE, number, {name: (places[name], kept[name]) for name in names})
        return found

    def _watch(
        self,
        part: Part,
        side: int,
        number: int,
        wanted: Mapping[str, tuple[Place, list[Tensor]]],
        *,
        enough: int | None = None,
    ) -> None:
        """Run a part on a batch, and append the tensors at some places; leave a layer after ``enough`` of them."""

        def keep(slot: Slot, call: int, tensor: Tensor) -> None:
            for place, kept in wanted.values():
                if slot == place.slot and call == place.first + place.stride * len(kept):
                    kept.append(tensor.detach().clone())
                    if enough is not None and part.is_layer and len(kept) == enough:
                        raise Enough

        modules = {place.slot.module for place, _ in wanted.values()}
        handle = observe(part.roots[side], keep, modules=[*modules])
        try:
            part.run(side, number)
        finally:
            handle.remove()

    def _solve_block(
        self, part: Part, name: str, block: Block, place: Place, stream: Mapping[int, Sequence[Tensor]]
    ) -> None:
        linear: Any = without_adapter(block.output_projection)
        columns = _present_columns(block)
        statistics = Ridge(has_bias=linear.bias is not None)
        is_decoder = self._has_decoder and "decoder" in name.split(".")
        # Where the projection has no part in a feature of the stream, nothing is missing.
        factor = place.factor
        inverse = torch.where(factor.abs() > 1e-3 * factor.abs().max(), 1 / factor, 0.0)
        for number in range(1, len(self._batches)):
            dense, own, inputs = stream[number], list[Tensor](), list[Tensor]()
            handle = hook_projection(block, lambda features, found=inputs: found.append(features.detach().clone()))  # type: ignore[misc]
            try:
                self._watch(part, COMPACT, number, {name: (place, own)}, enough=len(dense))
            finally:
                handle.remove()
            for use, (target, present) in enumerate(zip(dense, own, strict=False)):
                if target.shape != present.shape:
                    self._left_alone[name] = "it gets other positions than in the dense model, as behind a router"
                    return
                target, present = (one.float().flatten(0, -2) for one in (target, present))
                learned, held = self._positions.select(number - 1, dense[use].shape[:-1], is_decoder=is_decoder)
                features = target.new_zeros(len(target), 0)
                if len(columns):
                    features = inputs[use].float().flatten(0, -2)[:, columns.to(target.device)]
                weights = target.norm(dim=1, keepdim=True).clamp_min(1e-6).reciprocal()
                residual = (target - present) * inverse
                for mask, is_held in ((learned, False), (held, True)):
                    chosen = mask.to(target.device)
                    statistics.add(features[chosen], residual[chosen], weights[chosen], held_out=is_held)
        self._apply(name, linear, columns, statistics)

    def _apply(self, name: str, linear: Any, columns: Tensor, statistics: Ridge) -> None:
        if not statistics.num_positions or not (len(columns) or linear.bias is not None):
            self._left_alone[name] = (
                "it has no input and no bias" if statistics.num_positions else "no batch reaches it"
            )
            return
        change, before, after = statistics.solve(self._ridge)
        is_better = after < before
        self._blocks.append(Compensated(name, before, after, is_better))
        self._num_positions = max(self._num_positions, statistics.num_positions)
        needed = math.ceil(_FEW * len(columns) * 10 / 9)
        if statistics.num_positions < _FEW * len(columns) and needed > self._few[0]:
            self._few = needed, len(columns)
        if not is_better:
            return
        if len(columns):
            dim = weight_dim(linear, "inputs")
            added = change[:, : len(columns)] if dim == 1 else change[:, : len(columns)].T
            places = columns.to(linear.weight.device)
            self._set(linear, "weight", lambda weight: weight.index_add(dim, places, added.to(weight)))
        if linear.bias is not None:
            self._set(linear, "bias", lambda bias: bias + change[:, -1].to(bias))

    def _set(self, linear: Any, attribute: str, changed: Any) -> None:
        """Change a parameter, in float32 and rounded once."""
        parameter = getattr(linear, attribute)
        former = parameter.detach().clone()
        self.done.append(lambda: parameter.data.copy_(former))
        parameter.data.copy_(changed(former.float()))

    def _error_of_outputs(self) -> float:
        """Return the squared error of the outputs on held-out examples, relative to those of the dense model."""
        errors, sizes = list[Tensor](), list[Tensor]()
        for place in range(len(self._batches) - 1):
            if batch := self._positions.held_out_batch(place):
                dense, compact = (forward_outputs(model, batch) for model in self._models)
                if any(tensor.isnan().any() for tensor in (*dense, *compact)):
                    raise InputError("The model or a batch gives NaN: no weights were changed.")
                errors.append(torch.stack([_size(one, one - other) for one, other in zip(dense, compact, strict=True)]))
                sizes.append(torch.stack([_size(one, one) for one in dense]))
        return float((torch.stack(errors).sum(0) / torch.stack(sizes).sum(0).clamp_min(1e-30)).mean())


def _runs_on(model: nn.Module, batch: Batch) -> bool:
    """Return whether a model runs on some rows of a batch: images, or codebooks, may be those of other examples."""
    try:
        forward_outputs(model, batch)
    except Exception:  # Classes raise any error; the whole batch raises it again if it is the reason.
        return False
    return True


def _why_left_alone(block: Block) -> str:
    """Return why a block cannot be solved, as a reason after a colon; empty if it can."""
    if isinstance(block, ExpertsBlock):
        return "a router sends other tokens to each of its experts"
    weight = getattr(without_adapter(block.output_projection), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return "its output projection has no matrix of floating-point numbers"
    return ""


def _present_columns(block: Block) -> Tensor:
    """Return the places of the inputs of present units among those of the output projection, without padding."""
    present, places, start = set(block.unit_ids), [], 0
    for slot, width in zip(block.slot_ids, block.slot_widths, strict=True):
        if slot in present:
            places.append(torch.arange(start, start + width))
        start += width
    return torch.cat(places) if places else torch.zeros(0, dtype=torch.long)


def _size(expected: Tensor, values: Tensor) -> Tensor:
    """Return the squared norm of some values where they and the expected ones are finite, a scalar in float32."""
    return torch.where(expected.isfinite() & values.isfinite(), values, 0.0).float().square().sum()
