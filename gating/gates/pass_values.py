"""The gate values of one forward pass, and whether they are still valid."""

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gating.errors import OperationError


class PassValues:
    """The gate values that all blocks of a model use in one forward pass.

    In training they are a sample, in evaluation the deterministic values. They are made at the beginning of a pass, by
    a pre-hook of the model. The first block that uses them would be too late: that block may be inside of a checkpoint,
    which runs again in the backward pass. Where a part of a model is called alone, no such hook has run, so
    :meth:`scaling` makes new values if the present ones are stale:

    - they were made in the other mode (training, evaluation) or before an update of ``log_alpha``;
    - their backward pass has run, so their graph is freed;
    - gradients are needed, and they were made without.

    In a backward pass, where checkpoints compute activations again, the values stay as they are.
    """

    def __init__(self, gates: Any, block_widths: Sequence[int]) -> None:
        """Start without values of some gates; widths of blocks are numbers of features, the sums of slot widths."""
        self._gates = gates
        self._block_widths = list(block_widths)
        # The factor of each feature of all blocks, and its parts for each block by device, dtype and gradient mode.
        self._scales: Tensor | None = None
        self._by_block: dict[tuple[torch.device, torch.dtype, bool], tuple[Tensor, ...]] = {}
        # The mode and the version of log_alpha that the values were made with.
        self._made_with: tuple[bool, int] | None = None
        self._graph: _Graph | None = None
        self._earlier_graphs: list[weakref.ref[_Graph]] = []
        self._is_in_pass = False
        # Whether the model has made the values for the pass of its base model, which comes next.
        self._is_made_for_base = False
        self._made_without_gradients = False
        # The state of the random numbers when values were last made outside of a pass, and how often in that state.
        self._late = (-1, 0)

    def scaling(self, block_index: int, features: Tensor) -> Tensor:
        """Return the factors of a block's features in this forward pass, ``[sum(slot_widths)]``, on their device.

        Raises:
            OperationError: A checkpoint computes activations of an earlier pass again, or would give gates no gradient.
        """
        if torch.compiler.is_compiling():
            if not self._is_in_pass:
                self._renew_outside_of_graph()
        elif torch._C._current_graph_task_id() != -1:
            # A backward pass is running, in which checkpoints compute activations again.
            self._check_recomputation()
        else:
            self._renew_if_stale()
        assert self._scales is not None
        # Some models run a part of themselves without gradients, which must not cut the graph of the other parts.
        key = (features.device, features.dtype, torch.is_grad_enabled())
        if key not in self._by_block:
            # Parts of a model may be on several devices, in several dtypes.
            self._by_block[key] = self._scales.to(features.device, features.dtype).split(self._block_widths)
        return self._by_block[key][block_index]

    def begin_pass(self, *_: object) -> None:
        """Make the values of a pass; a pre-hook of the model."""
        self._begin()
        self._is_made_for_base = True

    def begin_base_pass(self, *_: object) -> None:
        """Make the values of a pass, unless the whole model has; a pre-hook of the base model."""
        if not self._is_made_for_base:
            self._begin()
        self._is_made_for_base = False

    def end_pass(self, *_: object) -> None:
        """Leave the pass, also after an error; a hook of the model and of its base model."""
        self._is_made_for_base = False
        self._is_in_pass = False

    def invalidate(self) -> None:
        """Discard the values, since their distribution has changed."""
        self._scales, self._by_block = None, {}
        self._retire_graph()

    def __getstate__(self) -> dict[str, object]:
        """Leave the values out of copies: they belong to the graph of the original."""
        return {**self.__dict__, "_scales": None, "_by_block": {}, "_graph": None, "_earlier_graphs": []}

    def _begin(self) -> None:
        self._make()
        self._is_in_pass = True

    def _make(self) -> None:
        self._scales, self._by_block = self._gates.feature_scales(), {}
        self._made_without_gradients = not torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            return
        self._made_with = (self._gates.training, self._gates.log_alpha._version)
        self._retire_graph()
        if self._scales.requires_grad:
            self._graph = _Graph()
            self._scales.register_hook(self._graph.mark_used)

    def _renew_if_stale(self) -> None:
        if self._is_stale():
            self._make_late()

    # A compiled graph cannot depend on versions of parameters and on backward passes.
    _renew_outside_of_graph = torch.compiler.disable(_renew_if_stale)

    def _lacks_graph(self) -> bool:
        needs_graph = torch.is_grad_enabled() and self._gates.log_alpha.requires_grad and not self._gates.is_fixed
        return needs_graph and self._scales is not None and not self._scales.requires_grad

    def _is_stale(self) -> bool:
        if self._scales is None or (self._graph is not None and self._graph.is_used):
            return True
        return self._lacks_graph() or self._made_with != (self._gates.training, self._gates.log_alpha._version)

    def _make_late(self) -> None:
        """Make values without a pass, perhaps inside of a checkpoint."""
        # A checkpoint runs its function again, but makes no new values. What it compares must stay: the state of the
        # random numbers and the tensors saved for the backward pass. A pass without other random numbers leaves that
        # state as it is, so that the seed comes from a counter, too.
        device = self._gates.log_alpha.device
        save_as_they_are = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        with save_as_they_are, _fork_rng(device):
            state = int(torch.randint(2**62, (), device=device))
            self._late = (state, self._late[1] + 1 if state == self._late[0] else 0)
            seed = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
            seed(sum(self._late))
            self._make()

    def _retire_graph(self) -> None:
        """Remember the graph of the values as long as its backward pass may still run."""
        if self._graph is not None:
            alive = [graph for graph in self._earlier_graphs if graph() is not None]
            self._earlier_graphs = [weakref.ref(self._graph), *alive]
        self._graph = None

    def _check_recomputation(self) -> None:
        """Raise ``OperationError`` if values in a backward pass may be those of another pass, or have no graph."""
        if self._made_without_gradients and self._lacks_graph():
            raise OperationError(
                "A forward pass inside of a backward pass, as of losses that cache gradients, would give the gates no "
                "gradient, because model.forward() skips the hooks that begin it: call the model itself. For models of "
                "sentence-transformers use gating.integrations.GatedSentenceTransformerTrainer, or another loss."
            )
        earlier = [graph() for graph in self._earlier_graphs]
        if self._scales is None or any(graph is not None and not graph.is_used for graph in earlier):
            raise OperationError(
                "Gradient checkpointing computes activations again, and gates have been drawn since for another pass: "
                "call backward() after each forward pass, or disable gradient checkpointing."
            )


class _Graph:
    """Whether the backward pass of the values has run; alive as long as the graph, whose hook holds it."""

    def __init__(self) -> None:
        self.is_used = False

    def mark_used(self, _: Tensor) -> None:
        self.is_used = True


def _fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """Restore the state of the random numbers at the end of a ``with`` block."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    devices = range(torch.get_device_module(device).device_count())
    return torch.random.fork_rng(devices, device_type=device.type)
