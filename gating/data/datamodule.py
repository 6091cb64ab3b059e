"""Batches: examples of similar length together, padded to the longest of each batch."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import DistributedLengthGroupedSampler

from gating.data.batches import TARGETS, Batch, model_inputs
from gating.errors import InputError

__all__ = ["ExampleDataModule"]


class ExampleDataModule(pl.LightningDataModule):
    """Serves prepared splits as batches; where several processes train, each its part of every batch."""

    def __init__(
        self,
        splits: DatasetDict,
        collate: Callable[[list[Any]], Batch],
        order_seed: int = 0,
        *,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        """Prepare to serve splits.

        Args:
            splits: Prepared ``train``, ``validation`` and possibly ``test``; texts have ``input_ids``.
            collate: What makes a batch of examples.
            order_seed: Seed of the order of training batches.
            batch_size: Number of examples in a training batch of one process.
            eval_batch_size: Number of examples in a batch of validation or test of one process.
            num_workers: Number of processes that collate.

        Raises:
            ValueError: A batch size is not positive, or the number of processes negative.
        """
        super().__init__()
        if num_workers < 0:
            raise InputError(f"num_workers={num_workers}: give 0 to collate in the process that trains, or more.")
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise InputError(f"{name}={size}: a batch has at least one example.")
        self._splits = splits
        self._collate = collate
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._num_workers = num_workers
        self._seed = order_seed
        self._batches_before = 0
        self._epochs_done, self._batches_done = 0, 0
        self._num_parts, self._part = 1, 0
        self._lengths: dict[str, list[int]] = {}

    @property
    def splits(self) -> list[str]:
        """Names of the splits that there are."""
        return list(self._splits)

    def divide(self, num_parts: int, *, part: int = 0) -> None:
        """Serve one part of the data from now on.

        Two processes with batches of 8 train on the same 16 examples at each step as one with batches of 16.

        Args:
            num_parts: Number of processes.
            part: Which of them this is, from 0.

        Raises:
            ValueError: A split has fewer examples than there are processes.
        """
        for name, split in self._splits.items():
            if len(split) < num_parts:
                raise InputError(
                    f"The {name} data has {len(split)} example(s) for {num_parts} processes; each needs one. Lower "
                    "trainer.devices."
                )
        self._num_parts, self._part = num_parts, part

    def num_batches(self) -> int:
        """Return the number of training batches in an epoch, of one process."""
        return -(-len(self._splits["train"]) // (self._batch_size * self._num_parts))

    def go_on_after(self, num_batches: int) -> None:
        """Begin the next training where so many batches of an earlier phase ended, be it in the middle of an epoch."""
        self._batches_before = num_batches
        self._epochs_done, self._batches_done = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return where in the data training is, for a checkpoint between two batches."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        return {
            "epochs_done": loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            "batches_done": loop.epoch_loop.batch_progress.current.completed,
            "num_examples": {name: len(split) for name, split in self._splits.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training go on where it was.

        Raises:
            ValueError: The data was another.
        """
        for name, split in self._splits.items():
            before = state_dict["num_examples"].get(name)
            if before != len(split):
                raise InputError(
                    f"The {name} data has {len(split)} examples now and had {before} when the run began; it cannot go "
                    "on with other data. Begin a new run."
                )
        self._epochs_done, self._batches_done = state_dict["epochs_done"], state_dict["batches_done"]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of similar length."""
        # It shuffles by epoch and seed alone, whatever else draws random numbers; in one process, too. The examples
        # are grouped for all processes together and dealt out to them one by one.
        sampler = DistributedLengthGroupedSampler(
            self._batch_size * self._num_parts,
            num_replicas=self._num_parts,
            rank=self._part,
            seed=self._seed,
            lengths=self._lengths_of("train"),
        )
        epochs, batches = divmod(self._batches_before, self.num_batches())
        going_on = _GoingOn(
            sampler,
            first_epoch=epochs,
            skipped=batches * self._batch_size,
            epoch=self._epochs_done,
            done=self._batches_done * self._batch_size,
        )
        return self._loader("train", batch_size=self._batch_size, sampler=going_on)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation data, shortest examples first."""
        return self.evaluation_dataloader("validation")

    def evaluation_dataloader(self, split: str) -> DataLoader[Any]:
        """Return a split in the order of its lengths, so that there is little padding.

        Every example is in the part of exactly one process, so that metrics are right to the last digit, and all
        parts have the same number of batches, because processes wait for each other at every one.
        """
        order = self._by_length(split)
        mine = order[self._part :: self._num_parts]
        wanted = -(-len(order) // (self._eval_batch_size * self._num_parts))
        num_batches = min(wanted, len(order) // self._num_parts)
        bounds = [len(mine) * number // num_batches for number in range(num_batches + 1)]
        batches = [mine[start:stop] for start, stop in pairwise(bounds)]
        return self._loader(split, batch_sampler=batches)

    def probe_batch(self, *, size: int = 8) -> dict[str, Any]:
        """Return some of the longest validation examples, without what is right; the same in all processes."""
        longest = self._by_length("validation")[-size:]
        batch = self._collate([self._splits["validation"][index] for index in longest])
        return {name: tensor for name, tensor in model_inputs(batch).items() if name not in TARGETS}

    def _by_length(self, split: str) -> list[int]:
        lengths = self._lengths_of(split)
        return sorted(range(len(lengths)), key=lengths.__getitem__)

    def _lengths_of(self, split: str) -> list[int]:
        """Read a split's tokens once, not again for every loader; what is no text has one length."""
        if split not in self._lengths:
            table = self._splits[split]
            is_text = "input_ids" in table.column_names
            self._lengths[split] = [len(ids) for ids in table["input_ids"]] if is_text else [1] * len(table)
        return self._lengths[split]

    def _loader(self, split: str, **order: Any) -> DataLoader[Any]:
        return DataLoader(
            self._splits[split],
            collate_fn=self._collate,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            # Copies to the GPU then run beside the computation.
            pin_memory=torch.cuda.is_available(),
            **order,
        )


class _GoingOn(Sampler[int]):
    """An order of examples that begins in a later epoch, with those that were not yet seen in it.

    The first time it leaves out those that were done in this order before training was interrupted.
    """

    def __init__(
        self, sampler: DistributedLengthGroupedSampler, *, first_epoch: int, skipped: int, epoch: int, done: int
    ) -> None:
        self._sampler = sampler
        self._first_epoch = first_epoch
        self._skipped = skipped
        self._done = done
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        self._sampler.set_epoch(self._first_epoch + epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(self._sampler)
        done, self._done = self._done, 0
        yield from (order[self._skipped :] + order[: self._skipped])[done:]

    def __len__(self) -> int:
        return len(self._sampler)
