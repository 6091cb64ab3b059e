"""Fine-tune with gates in transformers' Trainer: search, removal, recovery and a compact folder in one call.

    python examples/trainer.py                     a tiny model and made-up data, offline, in seconds
    python examples/trainer.py MODEL TRAIN.csv     a model of the hub or a folder, and a table with text and label

The second writes to outputs/trainer, or to --output. Needs: head-gating[trainer]
"""

import argparse
import tempfile
from pathlib import Path

import gating
import torch
from datasets import ClassLabel, Dataset, load_dataset
from gating.integrations import GatedTrainer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainingArguments,
)


def made_up() -> tuple[BertForSequenceClassification, Dataset, None]:
    """Return a random BERT of 3 layers with 4 heads, and sequences whose first token is the label."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
    )
    tokens = torch.randint(4, 50, (512, 12))
    labels = torch.arange(512) % 2
    tokens[:, 0] = 2 + labels
    return model, Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()}), None


def from_files(name: str, table: str) -> tuple[torch.nn.Module, Dataset, PreTrainedTokenizerBase]:
    """Return a pretrained model, a tokenized table, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = load_dataset("csv", data_files=table, split="train").class_encode_column("label")
    labels = rows.features["label"]
    assert isinstance(labels, ClassLabel)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=labels.num_classes)
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=128), remove_columns=["text"])
    return model, rows.rename_column("label", "labels"), tokenizer


def accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    """Return the share of examples that are classified rightly."""
    return {"accuracy": float((evaluated.predictions.argmax(axis=-1) == evaluated.label_ids).mean())}


def main(output: Path, model: torch.nn.Module, data: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Train, and print the heads of each layer that stay."""
    split = data.train_test_split(test_size=0.2, seed=0)
    trainer = GatedTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output / "checkpoints"),
            num_train_epochs=4,
            per_device_train_batch_size=16,
            learning_rate=1e-4 if tokenizer else 1e-3,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            eval_strategy="epoch",
            save_strategy="epoch",
            report_to="none",
        ),
        train_dataset=split["train"],
        eval_dataset=split["test"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
        # A quarter of the heads stays.
        objective=gating.ExactBudget(keep=0.25),
    )
    folder = trainer.train_and_compact(output / "compact")
    compact = gating.load_compact(folder)
    for block in gating.find_attention_blocks(compact):
        print(f"{block.name}: {block.num_heads} of {block.num_heads_before} heads")
    print(f"Its accuracy on held-out data is {trainer.evaluate()['eval_accuracy']:.1%}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune with gates in transformers' Trainer.")
    parser.add_argument("model", nargs="?", help="folder of a model, or its name on the hub; a tiny one by default")
    parser.add_argument("table", nargs="?", help="csv file with the columns text and label")
    parser.add_argument("--output", type=Path, default=Path("outputs/trainer"), help="a new folder")
    arguments = parser.parse_args()
    if arguments.model and not arguments.table:
        parser.error("give a table, too: python examples/trainer.py MODEL TRAIN.csv")
    if arguments.model:
        main(arguments.output, *from_files(arguments.model, arguments.table))
        print(f"The compact model is in {arguments.output / 'compact'}.")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), *made_up())
