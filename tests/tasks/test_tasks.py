"""Runs of all tasks but sequence classification, on local data in the formats of the hub."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, pipeline

import gating
import train
from tests.support.tiny_run import WORDS, compose_settings, make_model_folder

pytestmark = pytest.mark.runs

SETTINGS = [
    "data.batch_size=8",
    "trainer.max_steps=16",
    "trainer.val_check_interval=8",
    "trainer.accelerator=cpu",
    "optimizer.lr=1e-3",
    "objective.num_heads=4",
    "callbacks=none",
    "logger=csv",
    "latency.max_seconds=1",
]
ROWS = {"train": 64, "validation": 16, "test": 24}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"model.name={make_model_folder(tmp_path_factory.mktemp('tasks') / 'model')}"


def run(overrides: Sequence[str], folder: Path) -> tuple[dict, Path]:
    """Run in this process, and return the metrics and the folder of the compact model."""
    train.run(compose_settings([*SETTINGS, *overrides, f"output_dir={folder}"]))
    return json.loads((folder / "metrics.json").read_text()), folder / "compact"


def files(folder: Path, ending: str) -> list[str]:
    return ["model=pretrained", "data=files", *(f"data.{split}={folder / split}.{ending}" for split in ROWS)]


def refusal(overrides: Sequence[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error message of a run that writes nothing."""
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings([*SETTINGS, *overrides, f"output_dir={folder}"]))
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not folder.exists()
    return message


def sentence(rng: random.Random) -> tuple[list[str], list[str]]:
    """Return words and tags; word1 begins a name, word2 is inside."""
    words, tags = [], []
    for _ in range(rng.randint(2, 6)):
        words.append(rng.choice(WORDS[3:]))
        tags.append("O")
        if rng.random() < 0.5:
            words += WORDS[1:3]
            tags += ["B-name", "I-name"]
    return words, tags


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write tagged words in the formats of WNUT17 and of the hub."""
    folder = tmp_path_factory.mktemp("tagged")
    (folder / "hub").mkdir()
    names = ["O", "B-name", "I-name"]
    features = Features(
        {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))}
    )
    for number, (split, rows) in enumerate(ROWS.items()):
        rng = random.Random(number)
        sentences = [sentence(rng) for _ in range(rows)]
        lines = ["text\tlabel", *(f"{' '.join(words)}\t{' '.join(tags)}" for words, tags in sentences)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        columns = {
            "id": list(map(str, range(rows))),
            "tokens": [words for words, _ in sentences],
            "ner_tags": [[names.index(tag) for tag in tags] for _, tags in sentences],
        }
        Dataset.from_dict(columns, features=features).to_parquet(folder / "hub" / f"{split}.parquet")
    return folder


@pytest.mark.first
def test_tags_of_words_and_their_f1_equal_those_of_seqeval(bert, tagged, tmp_path):
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    numbers, compact = run(
        [
            bert,
            "task=token_classification",
            *files(tagged, "tsv"),
            "trainer.max_steps=40",
        ],
        tmp_path / "out",
    )
    assert numbers["num_heads"] == 4
    assert numbers["search/val/f1"] == numbers["removed/val/f1"]
    model, tokenizer = gating.load_compact(compact), AutoTokenizer.from_pretrained(compact)
    expected, predicted = [], []
    for line in (tagged / "test.tsv").read_text().splitlines()[1:]:
        words, tags = (cell.split() for cell in line.split("\t"))
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        answers = model(**inputs).logits[0].argmax(-1).tolist()
        firsts = {word: token for token, word in reversed(list(enumerate(inputs.word_ids()))) if word is not None}
        predicted.append([model.config.id2label[answers[firsts[word]]] for word in range(len(words))])
        expected.append(tags)
    for name in ("f1", "precision", "recall"):
        reference = getattr(seqeval, f"{name}_score")(expected, predicted)
        assert reference > 0.2
        assert numbers[f"test/{name}"] == pytest.approx(reference, abs=1e-6)
    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    assert {item["entity"] for item in tagger("word1 word2 word3")} <= {"O", "B-name", "I-name"}


def test_tags_in_the_format_of_the_hub(bert, tagged, tmp_path):
    overrides = ["task=token_classification", "data=hub", f"data.path={tagged / 'hub'}", "task.metrics=[accuracy,f1]"]
    numbers, compact = run([bert, "model=pretrained", *overrides, "data.max_length=8"], tmp_path / "out")
    assert {"test/accuracy", "test/f1"} <= set(numbers)
    assert gating.load_compact(compact).config.id2label == {0: "O", 1: "B-name", 2: "I-name"}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write questions in the format of SQuAD: the answer is the two words after word1, or there is none."""
    folder = tmp_path_factory.mktemp("questions")
    for number, (split, rows) in enumerate(ROWS.items()):
        rng = random.Random(number)
        lines = []
        for row in range(rows):
            words = rng.choices(WORDS[3:], k=rng.randint(8, 20))
            place = rng.randint(0, len(words) - 2)
            context = " ".join([*words[:place], WORDS[1], *words[place:]])
            answer = " ".join(words[place : place + 2])
            start = len(" ".join([*words[:place], WORDS[1]])) + 1
            answers = {"text": [answer], "answer_start": [start]} if row % 5 else {"text": [], "answer_start": []}
            line = {"id": str(row), "context": context if row % 5 else " ".join(words), "question": WORDS[1]}
            lines.append(json.dumps({**line, "answers": answers}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.runs
@pytest.mark.first
def test_answers_and_their_scores_equal_those_of_torchmetrics(bert, questions, tmp_path):
    """Windows of 20 tokens over texts of up to 21 words: the answer is the best span over all windows."""
    from torchmetrics.text import SQuAD

    numbers, compact = run(
        [bert, "task=question_answering", *files(questions, "jsonl"), "data.max_length=20", "task.max_answer_length=4"],
        tmp_path / "out",
    )
    assert numbers["num_heads"] == 4
    assert numbers["search/val/f1"] == pytest.approx(numbers["removed/val/f1"])
    model, tokenizer = gating.load_compact(compact), AutoTokenizer.from_pretrained(compact)
    reference = SQuAD()
    for line in (questions / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        best, nothing = (-float("inf"), ""), float("inf")
        windows = tokenizer(
            row["question"],
            row["context"],
            truncation="only_second",
            max_length=20,
            stride=5,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for number, ids in enumerate(windows["input_ids"]):
            outputs = model(
                input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([windows["token_type_ids"][number]])
            )
            starts, ends = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
            nothing = min(nothing, starts[0] + ends[0])
            inside = [i for i, part in enumerate(windows.sequence_ids(number)) if part == 1]
            for i in inside:
                for j in (j for j in inside if i <= j < i + 4):
                    offsets = windows["offset_mapping"][number]
                    best = max(best, (starts[i] + ends[j], row["context"][offsets[i][0] : offsets[j][1]]))
        text = "" if nothing > best[0] else best[1]
        answers = row["answers"] if row["answers"]["text"] else {"text": [""], "answer_start": [0]}
        reference.update([{"id": row["id"], "prediction_text": text}], [{"id": row["id"], "answers": answers}])
    for name, value in reference.compute().items():
        assert numbers[f"test/{name}"] == pytest.approx(float(value) / 100, abs=1e-5)


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write text pairs with a number that depends on the first word."""
    folder = tmp_path_factory.mktemp("rated")
    for number, (split, rows) in enumerate(ROWS.items()):
        rng = random.Random(number)
        lines = ["sentence1,sentence2,score"]
        for _ in range(rows):
            one, other = rng.choices(WORDS, k=3), rng.choices(WORDS, k=3)
            lines.append(f"{' '.join(one)},{' '.join(other)},{WORDS.index(one[0]) / 10}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.runs
@pytest.mark.first
def test_numbers_and_their_correlation_equal_those_of_scipy(bert, rated, tmp_path):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    # Large weights, so that predictions for different texts differ by much more than rounding errors.
    folder = shutil.copytree(bert.partition("=")[2], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    large = {name: 10 * weight if weight.dim() == 2 else weight for name, weight in weights.items()}
    save_file(large, folder / "model.safetensors", metadata={"format": "pt"})
    numbers, compact = run([f"model.name={folder}", "task=regression", *files(rated, "csv")], tmp_path / "out")
    assert numbers["num_heads"] == 4
    model, tokenizer = gating.load_compact(compact), AutoTokenizer.from_pretrained(compact)
    rows = [line.split(",") for line in (rated / "test.csv").read_text().splitlines()[1:]]
    with torch.no_grad():
        predicted = [float(model(**tokenizer(one, other, return_tensors="pt")).logits) for one, other, _ in rows]
    labels = [float(score) for _, _, score in rows]
    assert numbers["test/pearson"] == pytest.approx(stats.pearsonr(predicted, labels)[0], abs=1e-4)
    assert numbers["test/spearman"] == pytest.approx(stats.spearmanr(predicted, labels)[0], abs=1e-4)


SMALL_VIT = [
    "experiment=digits-vit",
    "model.config.hidden_size=16",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=4",
    "trainer.max_steps=12",
]


@pytest.mark.runs
@pytest.mark.first
def test_digits_with_a_new_vision_transformer(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    numbers, compact = run(SMALL_VIT, tmp_path / "out")
    assert numbers["num_heads"] == 4
    assert numbers["search/val/accuracy"] == numbers["removed/val/accuracy"]
    model = gating.load_compact(compact)
    assert type(model).__name__ == "ViTForImageClassification"
    assert json.loads((compact / "preprocessor_config.json").read_text())["size"]["height"] == 8


def test_folders_of_images_for_each_class_and_no_validation(tmp_path):
    """RGB images of two sizes for a grayscale model; the validation split is drawn from the training split."""
    rng = np.random.default_rng(0)
    for split, rows in (("train", 30), ("test", 6)):
        for number in range(rows):
            folder = tmp_path / "images" / split / ("dark", "light")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (9 + number % 3, 12, 3)) + 127 * (number % 2)
            Image.fromarray(pixels.astype("uint8")).save(folder / f"{number}.png")
    data = ["data=hub", f"data.path={tmp_path / 'images'}", "data.validation_split=null", "trainer.max_steps=4"]
    numbers, compact = run([*SMALL_VIT, *data], tmp_path / "out")
    assert gating.load_compact(compact).config.id2label == {0: "dark", 1: "light"}
    assert 0 <= numbers["val/accuracy"] <= 1
