import pytest
from datasets import Dataset, DatasetDict
from tiny_run import make_model_folder
from transformers import AutoTokenizer

from gating.lightning.data import TextDataModule
from gating.lightning.tasks import SequenceClassification

TASK = SequenceClassification()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_model_folder(tmp_path_factory.mktemp("data") / "model"))


def make_splits(**columns) -> DatasetDict:
    rows = {"text": [f"word{i} " * (1 + i % 7) for i in range(40)], "label": ["a", "b"] * 20, **columns}
    return DatasetDict(train=Dataset.from_dict(rows), validation=Dataset.from_dict({k: v[:9] for k, v in rows.items()}))


def make_data(tokenizer, **options) -> TextDataModule:
    splits, names = TASK.prepare(make_splits(), tokenizer, max_length=8)
    assert names == ["a", "b"]
    return TextDataModule(splits, collate=TASK.collator(tokenizer), **options)


def test_training_batches_hold_similar_lengths_and_every_example_once(tokenizer):
    data = make_data(tokenizer, batch_size=4)
    batches = list(data.train_dataloader())
    assert len(batches) == data.num_batches() == 10
    assert sum(len(batch["labels"]) for batch in batches) == 40
    padded = sum(batch["attention_mask"].numel() for batch in batches)
    in_order = [list(range(start, start + 4)) for start in range(0, 40, 4)]
    lengths = [len(ids) for ids in data._splits["train"]["input_ids"]]
    assert padded < sum(4 * max(lengths[i] for i in batch) for batch in in_order)


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


def test_texts_are_cut_off_and_pairs_are_joined(tokenizer):
    splits, _ = TASK.prepare(make_splits(text_pair=["word1 word2"] * 40), tokenizer, max_length=8)
    assert max(map(len, splits["train"]["input_ids"])) == 8
    assert tokenizer.decode(splits["train"][0]["input_ids"]) == "[CLS] word0 [SEP] word1 word2 [SEP]"


def test_text_that_is_missing_is_named(tokenizer):
    with pytest.raises(ValueError, match="no text in row 3"):
        TASK.prepare(make_splits(text=["x", "y", None] + ["z"] * 37), tokenizer, max_length=8)


def test_batch_size_below_one_is_refused(tokenizer):
    with pytest.raises(ValueError, match="batch_size=0"):
        make_data(tokenizer, batch_size=0)


def test_next_phase_goes_on_where_the_last_one_ended(tokenizer):
    data = make_data(tokenizer, batch_size=4)
    first = [batch["input_ids"].tolist() for batch in data.train_dataloader()]
    data.go_on_after(3)
    rest = [batch["input_ids"].tolist() for batch in data.train_dataloader()]
    assert rest[:7] == first[3:]
    data.go_on_after(10)
    loader = data.train_dataloader()
    again = make_data(tokenizer, batch_size=4).train_dataloader()
    again.sampler.set_epoch(1)
    assert [b["input_ids"].tolist() for b in loader] == [b["input_ids"].tolist() for b in again]
