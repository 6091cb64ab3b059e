"""Batches: examples of similar length together, padded to the longest of each batch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
from datasets import DatasetDict
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import DistributedLengthGroupedSampler

__all__ = ["TextDataModule"]

Batch = Mapping[str, Any]


class TextDataModule(pl.LightningDataModule):
    """Serves tokenised splits as batches."""

    def __init__(
        self,
        splits: DatasetDict,
        *,
        collate: Callable[[list[Any]], Batch],
        batch_size: int = 16,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        order_seed: int = 0,
    ) -> None:
        """Prepare to serve splits.

        Args:
            splits: Tokenised ``train``, ``validation`` and possibly ``test``; each example has ``input_ids``.
            collate: What makes a batch of examples.
            batch_size: Number of examples in a training batch.
            eval_batch_size: Number of examples in a batch of validation or test.
            num_workers: Number of processes that collate.
            order_seed: Seed of the order of training batches.

        Raises:
            ValueError: A batch size is not positive.
        """
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise ValueError(f"{name}={size}: a batch has at least one example.")
        self._splits = splits
        self._collate = collate
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._num_workers = num_workers
        self._seed = order_seed
        self._batches_before = 0

    @property
    def splits(self) -> list[str]:
        """Names of the splits that there are."""
        return list(self._splits)

    def num_batches(self) -> int:
        """Return the number of training batches in an epoch."""
        return -(-len(self._splits["train"]) // self._batch_size)

    def go_on_after(self, num_batches: int) -> None:
        """Begin the next training where so many batches of an earlier phase ended, be it in the middle of an epoch."""
        self._batches_before = num_batches

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of similar length."""
        lengths = [len(ids) for ids in self._splits["train"]["input_ids"]]
        # It shuffles by epoch and seed alone, whatever else draws random numbers; in one process, too.
        sampler = DistributedLengthGroupedSampler(
            self._batch_size, num_replicas=1, rank=0, seed=self._seed, lengths=lengths
        )
        epochs, batches = divmod(self._batches_before, self.num_batches())
        going_on = _GoingOn(sampler, first_epoch=epochs, skipped=batches * self._batch_size)
        return self._loader("train", self._batch_size, going_on)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation data, shortest examples first."""
        return self.evaluation_dataloader("validation")

    def evaluation_dataloader(self, split: str) -> DataLoader[Any]:
        """Return a split in the order of its lengths, so that there is little padding."""
        lengths = [len(ids) for ids in self._splits[split]["input_ids"]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        return self._loader(split, self._eval_batch_size, order)

    def probe_batch(self, *, size: int = 8) -> dict[str, Any]:
        """Return some of the longest validation examples, without labels."""
        lengths = [len(ids) for ids in self._splits["validation"]["input_ids"]]
        longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-size:]
        batch = self._collate([self._splits["validation"][index] for index in longest])
        return {name: tensor for name, tensor in batch.items() if name != "labels"}

    def _loader(self, split: str, batch_size: int, order: Any) -> DataLoader[Any]:
        return DataLoader(
            self._splits[split],
            batch_size=batch_size,
            sampler=order,
            collate_fn=self._collate,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
        )


class _GoingOn(Sampler[int]):
    """An order of examples that begins in a later epoch, with those that were not yet seen in it."""

    def __init__(self, sampler: DistributedLengthGroupedSampler, *, first_epoch: int, skipped: int) -> None:
        self._sampler = sampler
        self._first_epoch = first_epoch
        self._skipped = skipped
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self._sampler.set_epoch(self._first_epoch + epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(self._sampler)
        yield from order[self._skipped :] + order[: self._skipped]

    def __len__(self) -> int:
        return len(self._sampler)
