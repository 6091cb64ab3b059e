"""Batches: examples of similar length together, padded to the longest of each batch."""

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from datasets import DatasetDict
from torch.utils.data import DataLoader
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
            ValueError: A batch size is not positive, or larger than the training data.
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

    @property
    def splits(self) -> list[str]:
        """Names of the splits that there are."""
        return list(self._splits)

    def num_batches(self, *, world_size: int = 1) -> int:
        """Return the number of training batches in an epoch for each of so many processes."""
        per_process = -(-len(self._splits["train"]) // world_size)
        return -(-per_process // self._batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of similar length."""
        trainer = self.trainer
        lengths = [len(ids) for ids in self._splits["train"]["input_ids"]]
        # Shuffles by epoch and seed alone, so that a resumed run sees the same order; also outside of DDP.
        sampler = DistributedLengthGroupedSampler(
            self._batch_size,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            seed=self._seed,
            lengths=lengths,
        )
        return self._loader("train", self._batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation data, shortest examples first."""
        return self.evaluation_dataloader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test data, shortest examples first."""
        return self.evaluation_dataloader("test")

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
