"""Batches of the data module: grouping by length, order, truncation and shards."""

import pickle
from collections import Counter

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from gating.data.datamodule import ExampleDataModule
from gating.data.sources import Examples, load_files
from gating.tasks import SequenceClassification
from gating.tasks.base import Prepared
from tests.support.tiny_run import make_model_folder, write_table

TASK = SequenceClassification()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_model_folder(tmp_path_factory.mktemp("data") / "model"))


def make_splits(**columns) -> DatasetDict:
    rows = {"text": [f"word{i} " * (1 + i % 7) for i in range(40)], "label": ["a", "b"] * 20, **columns}
    return DatasetDict(train=Dataset.from_dict(rows), validation=Dataset.from_dict({k: v[:9] for k, v in rows.items()}))


def prepare(splits: DatasetDict, tokenizer, max_length: int = 8) -> Prepared:
    with torch.device("meta"):
        meta_model = BertForSequenceClassification(BertConfig(num_hidden_layers=1))
    return TASK.prepare(Examples(splits), tokenizer, meta_model, max_length=max_length)


def make_data(tokenizer, **options) -> ExampleDataModule:
    prepared = prepare(make_splits(), tokenizer)
    assert prepared.config["id2label"] == {0: "a", 1: "b"}
    return ExampleDataModule(prepared.splits, collate=prepared.collate, **options)


def test_training_batches_hold_similar_lengths_and_every_example_once(tokenizer):
    data = make_data(tokenizer, batch_size=4)
    batches = list(data.train_dataloader())
    assert len(batches) == data.num_batches() == 10
    assert sum(len(batch["labels"]) for batch in batches) == 40
    padded = sum(batch["attention_mask"].numel() for batch in batches)
    in_order = [list(range(start, start + 4)) for start in range(0, 40, 4)]
    lengths = [len(ids) for ids in data._splits["train"]["input_ids"]]
    assert padded < sum(4 * max(lengths[i] for i in batch) for batch in in_order)


def test_loaders_reach_workers_that_are_not_forked(tokenizer):
    # As on macOS and Windows, where they are pickled.
    loader = make_data(tokenizer, batch_size=4).train_dataloader()
    examples, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    assert len(collate([examples[0], examples[1]])["labels"]) == 2


def test_order_changes_with_the_epoch_and_repeats_with_the_seed(tokenizer):
    def order(epoch: int, seed: int) -> list:
        loader = make_data(tokenizer, batch_size=4, order_seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [batch["input_ids"].tolist() for batch in loader]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


def test_batch_larger_than_the_data_is_one_batch(tokenizer):
    assert len(list(make_data(tokenizer, batch_size=1000).train_dataloader())) == 1


def test_texts_are_truncated_and_pairs_are_joined(tokenizer):
    splits = prepare(make_splits(text_pair=["word1 word2"] * 40), tokenizer).splits
    assert max(map(len, splits["train"]["input_ids"])) == 8
    assert tokenizer.decode(splits["train"][0]["input_ids"]) == "[CLS] word0 [SEP] word1 word2 [SEP]"


def skewed(tokenizer, *, rows: int) -> ExampleDataModule:
    """Return data with validation texts of 3, 4, 5, ... tokens."""
    texts, labels = [f"{'word1 ' * (rows - 1 - row)}word2" for row in range(rows)], (["a", "b"] * rows)[:rows]
    validation = Dataset.from_dict({"text": texts, "label": labels})
    train = Dataset.from_dict({"text": ["word3", "word4"], "label": ["a", "b"]})
    splits = DatasetDict(train=train, validation=validation)
    prepared = prepare(splits, tokenizer, max_length=64)
    return ExampleDataModule(prepared.splits, collate=prepared.collate)


@pytest.mark.parametrize(
    ("length", "width"), [("median", 22), ("p95", 40), ("max", 42), (17, 17), (41, 41), (100, 100), (1, 1)]
)
@pytest.mark.parametrize("size", [1, 8, 50])
def test_a_timed_batch_has_the_length_and_size_that_it_should_have(tokenizer, length, width, size):
    batch = skewed(tokenizer, rows=40).timing_batch(length, size=size)
    assert batch.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert {name: tensor.shape for name, tensor in batch.items()} == dict.fromkeys(batch, (size, width))
    assert batch["attention_mask"][-1].all()


def test_a_timed_batch_of_a_small_split_repeats_its_examples(tokenizer):
    assert skewed(tokenizer, rows=1).timing_batch("p95", size=4)["input_ids"].tolist() == [[2, 7, 3]] * 4


def test_images_have_no_length_in_tokens():
    images = Dataset.from_dict({"pixel_values": [[0.0, 1.0]] * 3, "labels": [0, 1, 0]})
    data = ExampleDataModule(
        DatasetDict(train=images, validation=images),
        collate=lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]},
    )
    assert data.timing_batch("p95", size=5)["pixel_values"].shape == (5, 2)
    with pytest.raises(ValueError, match=r"latency.length=128"):
        data.timing_batch(128)


def test_next_phase_starts_after_the_batches_of_the_last_one(tokenizer):
    data = make_data(tokenizer, batch_size=4)
    first = [batch["input_ids"].tolist() for batch in data.train_dataloader()]
    data.start_after(3)
    rest = [batch["input_ids"].tolist() for batch in data.train_dataloader()]
    assert rest[:7] == first[3:]
    data.start_after(10)
    loader = data.train_dataloader()
    again = make_data(tokenizer, batch_size=4).train_dataloader()
    again.sampler.set_epoch(1)
    assert [b["input_ids"].tolist() for b in loader] == [b["input_ids"].tolist() for b in again]


@pytest.mark.parametrize("batch_size", [4, 16])
def test_processes_share_each_batch_of_one_process(tokenizer, batch_size):
    whole = make_data(tokenizer, batch_size=2 * batch_size)
    parts = [make_data(tokenizer, batch_size=batch_size) for _ in range(2)]
    for number, part in enumerate(parts):
        part.shard(2, index=number)
        assert part.num_batches() == whole.num_batches()
    together = [
        sorted(ids_of(first) + ids_of(second))
        for first, second in zip(*(part.train_dataloader() for part in parts), strict=True)
    ]
    assert together == [sorted(ids_of(batch)) for batch in whole.train_dataloader()]


def ids_of(batch) -> list[int]:
    """Return the second tokens: the first words, which differ in all texts."""
    return batch["input_ids"][:, 1].tolist()


def test_next_phase_of_several_processes_starts_after_the_batches_of_the_last_one(tokenizer):
    data = make_data(tokenizer, batch_size=4)
    data.shard(2, index=1)
    first = [ids_of(batch) for batch in data.train_dataloader()]
    data.start_after(3)
    assert [ids_of(batch) for batch in data.train_dataloader()][:2] == first[3:]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("eval_batch_size", [1, 2, 3, 64])
def test_every_example_is_evaluated_once_in_as_many_batches_by_each_process(tokenizer, num_parts, eval_batch_size):
    data = make_data(tokenizer, eval_batch_size=eval_batch_size)
    batches = []
    for part in range(num_parts):
        data.shard(num_parts, index=part)
        batches.append([ids_of(batch) for batch in data.val_dataloader()])
    assert len({len(mine) for mine in batches}) == 1
    seen = Counter(example for mine in batches for batch in mine for example in batch)
    assert len(seen) == sum(seen.values()) == 9
    largest = max(len(batch) for mine in batches for batch in mine)
    assert largest <= max(eval_batch_size, 2 if num_parts > 1 else 1)


@pytest.mark.parametrize("from_file", [True, False])
def test_texts_are_tokenized_once_for_all_runs(tmp_path, monkeypatch, from_file):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = make_model_folder(tmp_path / "model")
    files = {split: str(write_table(tmp_path / f"{split}.tsv", rows=8, seed=0)) for split in ("train", "validation")}
    calls = []
    call = PreTrainedTokenizerFast.__call__
    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", lambda *a, **k: calls.append(1) or call(*a, **k))

    def num_calls(max_length: int) -> int:
        """Prepare data as a new process does, and return the number of calls of the tokenizer."""
        calls.clear()
        splits = load_files(**files).splits if from_file else make_splits()
        prepare(splits, AutoTokenizer.from_pretrained(model), max_length)
        return len(calls)

    assert [num_calls(8), num_calls(8), num_calls(7), num_calls(8)] == [2, 0, 2, 0]
