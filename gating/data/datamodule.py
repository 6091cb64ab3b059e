"""Batches of examples of similar length, padded to the longest example of each batch."""

import math
from collections.abc import Callable, Iterator
from itertools import cycle, islice, pairwise
from typing import Annotated, Any

import pyarrow.compute as pc
import pytorch_lightning as pl
import torch
from datasets import DatasetDict
from pydantic import Field
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import DistributedLengthGroupedSampler

from gating.compensation.tokens import draw_rows
from gating.data.examples import TARGETS, Batch, model_inputs
from gating.errors import InputError


class ExampleDataModule(pl.LightningDataModule):
    """Data loaders of prepared splits; with several processes, each loads its share of every batch."""

    def __init__(
        self,
        splits: DatasetDict,
        collate: Callable[[list[Any]], Batch],
        order_seed: int = 0,
        *,
        batch_size: Annotated[int, Field(ge=1)] = 16,
        eval_batch_size: Annotated[int, Field(ge=1)] = 64,
        num_workers: int = 0,
    ) -> None:
        """Store prepared splits, of which texts have ``input_ids``, and the sizes of their batches in one process."""
        super().__init__()
        self._splits = splits
        self._collate = collate
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self._num_workers = num_workers
        self._seed = order_seed
        self._first_batch = 0
        self._epochs_done, self._batches_done = 0, 0
        self._num_shards, self._shard_index = 1, 0
        self._lengths: dict[str, list[int]] = {}

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._splits)

    def shard(self, num_shards: int, *, index: int = 0) -> None:
        """Load one shard of the data from now on.

        Two processes with batches of 8 train on the same 16 examples in each step as one process with batches of 16.
        """
        for name, table in self._splits.items():
            if len(table) < num_shards:
                raise InputError(f"trainer.devices: {len(table)} {name} example(s) for {num_shards} processes.")
        self._num_shards, self._shard_index = num_shards, index

    def num_batches(self) -> int:
        """Return the number of training batches of one process in an epoch."""
        return -(-len(self._splits["train"]) // (self.batch_size * self._num_shards))

    def start_after(self, num_batches: int) -> None:
        """Start the next training after the batches of earlier phases, also in the middle of an epoch."""
        self._first_batch = num_batches
        self._epochs_done, self._batches_done = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position of training in the data, for a checkpoint between two batches."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        return {
            "epochs_done": loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            "batches_done": loop.epoch_loop.batch_progress.current.completed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume training at a position that :meth:`state_dict` returned."""
        self._epochs_done, self._batches_done = state_dict["epochs_done"], state_dict["batches_done"]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of shuffled batches of similar length."""
        # The order depends on epoch and seed alone, not on the global random state; also with one process. Examples
        # are grouped over all processes and then distributed one by one.
        order = _Order(
            self.batch_size * self._num_shards,
            num_replicas=self._num_shards,
            rank=self._shard_index,
            seed=self._seed,
            lengths=self._lengths_of("train"),
        )
        order.first_epoch, skipped = divmod(self._first_batch, self.num_batches())
        order.skipped, order.done = skipped * self.batch_size, self._batches_done * self.batch_size
        order.set_epoch(self._epochs_done)
        return self._loader("train", batch_size=self.batch_size, sampler=order)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the validation split, shortest examples first."""
        return self.evaluation_dataloader("validation")

    def evaluation_dataloader(self, split: str) -> DataLoader[Any]:
        """Return a loader of a split in the order of its lengths, for little padding.

        Every example is in the shard of exactly one process, so that metrics are exact. All shards have the same
        number of batches, because processes synchronize in each.
        """
        order = self._by_length(split)
        shard = order[self._shard_index :: self._num_shards]
        wanted = -(-len(order) // (self.eval_batch_size * self._num_shards))
        num_batches = min(wanted, len(order) // self._num_shards)
        bounds = [len(shard) * number // num_batches for number in range(num_batches + 1)]
        batches = [shard[start:stop] for start, stop in pairwise(bounds)]
        # Lightning 2.5 looks for the sampler of the batches unless it is told that nothing is shuffled.
        return self._loader(split, batch_sampler=batches, shuffle=False)

    def sample_batches(self, number: int, *, skip: int = 0, most: float = math.inf) -> list[Batch]:
        """Return batches of some training examples, drawn with the seed, short ones first; equal on all ranks.

        Those that are skipped are drawn again only if no others are left. With ``most`` tokens, they may be fewer.
        """
        table, lengths = self._splits["train"], self._lengths_of("train")
        drawn = draw_rows(len(table), lengths.__getitem__, number, seed=self._seed, skip=skip, most=most)
        starts = range(0, len(drawn), self.batch_size)
        return [self._collate([table[row] for row in drawn[start : start + self.batch_size]]) for start in starts]

    def timing_batch(self, length: str | int, *, size: int = 8, split: str = "validation") -> dict[str, Any]:
        """Return the model inputs, without targets, of examples of one length; equal in all processes.

        The longest example has the length ``median``, ``p95`` (the 95th percentile) or ``max`` of the split; or the
        longest texts are cut or repeated to a number of tokens. A split with fewer examples than ``size`` is repeated.
        """
        order = self._by_length(split)
        stops = {"median": (len(order) + 1) // 2, "p95": math.ceil(0.95 * len(order))}
        chosen = order[: stops.get(str(length))][-size:]
        # The last example is the longest.
        chosen = [*islice(cycle(reversed(chosen)), size)][::-1]
        batch = model_inputs(self._collate([self._splits[split][index] for index in chosen]))
        inputs = {name: tensor for name, tensor in batch.items() if name not in TARGETS}
        return inputs if isinstance(length, str) else _with_length(inputs, length)

    def _by_length(self, split: str) -> list[int]:
        lengths = self._lengths_of(split)
        return sorted(range(len(lengths)), key=lengths.__getitem__)

    def _lengths_of(self, split: str) -> list[int]:
        """Return the number of tokens of each example, cached; 1 for each image."""
        if split not in self._lengths:
            table = self._splits[split]
            if "input_ids" in table.column_names:
                tokens = table.with_format("arrow")["input_ids"][:]
                self._lengths[split] = pc.list_value_length(tokens).to_pylist()
            else:
                self._lengths[split] = [1] * len(table)
        return self._lengths[split]

    def _loader(self, split: str, **order: Any) -> DataLoader[Any]:
        return DataLoader(
            self._splits[split],
            collate_fn=self._collate,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            # Copies to the GPU overlap with computation.
            pin_memory=torch.cuda.is_available(),
            **order,
        )


def _with_length(inputs: dict[str, Any], length: int) -> dict[str, Any]:
    """Return inputs with texts of a number of tokens: cut, or repeated."""
    if "input_ids" not in inputs:
        raise InputError(f"latency.length={length} is a number of tokens, and the data has no texts: give p95.")
    width = inputs["input_ids"].shape[1]
    places = torch.arange(length) % width
    return {
        name: tensor[:, places]
        if tensor.ndim > 1 and tensor.shape[1] == width and not name.startswith("decoder_")
        else tensor
        for name, tensor in inputs.items()
    }


class _Order(DistributedLengthGroupedSampler):
    """Order of training examples that starts in the middle of an epoch.

    Each epoch is rotated: it starts after ``skipped`` examples, which come last. The first iteration also leaves out
    the ``done`` examples that were trained on before an interruption.
    """

    first_epoch = skipped = done = 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(self.first_epoch + epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        done, self.done = self.done, 0
        yield from (order[self.skipped :] + order[: self.skipped])[done:]
