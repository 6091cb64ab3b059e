"""Runs of sentence embeddings, from the command to folders of sentence-transformers and their exports."""

import json
import shutil
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import gating
from gating.commands.evaluate import evaluate_folder
from gating.embedding.parts import SentenceHead
from gating.serving.graphs.runtime import GraphModel
from tests.run.test_resume import assert_same_end, interrupt_again_and_again
from tests.support.interruptions import run_in
from tests.support.tiny_sentences import make_sentence_inputs, make_sentence_model, sentences_of, write_pairs
from tests.support.two_processes import TWO, run_script
from tests.support.warm_python import warm_python

pytestmark = pytest.mark.runs

TEXTS = sentences_of(7, seed=5)
EXPORTS = "exports=[onnx,openvino-int8]"
ELSEWHERE = """
import sys, numpy
from sentence_transformers import SentenceTransformer
folder, trusted, *texts = sys.argv[1:]
model = SentenceTransformer(folder, trust_remote_code=trusted == "trusted", device="cpu")
numpy.save("embeddings.npy", model.encode(texts))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    return make_sentence_inputs(tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    """A run that the tests below share; copy it before you change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_in(folder, inputs, "data.about='sentences of random words.'")
    return folder


@pytest.fixture(scope="module")
def exported(inputs, tmp_path_factory) -> Path:
    """A run with exports."""
    for package in ("onnx", "openvino"):
        pytest.importorskip(package, reason="the packages of the export are not installed")
    folder = tmp_path_factory.mktemp("exported") / "run"
    run_in(folder, inputs, EXPORTS)
    return folder


def numbers_of(folder: Path) -> dict[str, float]:
    numbers: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return numbers


def without(inputs: list[str], *names: str) -> list[str]:
    return [line for line in inputs if not line.startswith(names)]


def embeddings_of(compact: Path) -> np.ndarray:
    """Return the embeddings of a compact model by this package, in one batch with padding."""
    model, head = gating.load_compact(compact), SentenceHead.load(compact)
    tokens = SentenceTransformer(str(compact), trust_remote_code=True, device="cpu").tokenizer
    inputs = tokens(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return head(model(**inputs), inputs["attention_mask"]).numpy()


def elsewhere(folder: Path, where: Path, *, trusted: bool) -> np.ndarray:
    """Return the embeddings by sentence-transformers in a fresh process, where this package is not installed."""
    (where / "job.py").write_text(ELSEWHERE)
    command = [*warm_python(with_package=False), "job.py", str(folder), "trusted" if trusted else "stock", *TEXTS]
    process = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=200, check=False)
    assert process.returncode == 0, process.stderr
    return np.load(where / "embeddings.npy")


@pytest.mark.first
def test_a_run_on_texts_ends_with_a_folder_of_sentence_transformers(finished, tmp_path):
    numbers = numbers_of(finished)
    assert numbers["num_heads"] == 4
    for stage in ("dense/test", "search/val", "removed/val", "compact/test"):
        assert -1 <= numbers[f"{stage}/spearman"] <= 1, stage
    assert numbers["dense/test/agreement"] == 1
    found = elsewhere(finished / "compact", tmp_path, trusted=True)
    assert np.allclose(found, embeddings_of(finished / "compact"), atol=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    card = (finished / "compact" / "README.md").read_text()
    assert 'SentenceTransformer("' in card
    assert "Trained on: sentences of random words." in card


@pytest.mark.parametrize("name", ["onnx", "openvino-int8"])
def test_exported_graphs_return_the_embeddings_of_encode(name, exported):
    folder, numbers = exported / f"compact-{name}", numbers_of(exported)
    # A rounding of 8 bits moves few ranks of 16.
    tolerance = 1e-4 if name == "onnx" else 0.1
    assert numbers[f"{name}/test/spearman"] == pytest.approx(numbers["compact/test/spearman"], abs=tolerance)
    model = SentenceTransformer(str(exported / "compact"), trust_remote_code=True, device="cpu")
    tokens = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert not tokens["attention_mask"].all()
    outputs = {key: value.numpy() for key, value in GraphModel(model[0].auto_model.config, folder)(**tokens).items()}
    expected = model.encode(TEXTS)
    assert outputs["sentence_embedding"].shape == expected.shape
    if name == "onnx":
        assert np.allclose(outputs["sentence_embedding"], expected, atol=1e-5)
    else:
        assert (outputs["sentence_embedding"] * expected).sum(1).min() > 0.98


def test_uniform_layers_of_neurons_give_a_stock_folder(inputs, tmp_path):
    settings = [*without(inputs, "objective."), "gates.units=neurons", "gates.group_size=16", "objective.uniform=true"]
    run_in(tmp_path / "run", settings, "objective.num_neurons=96")
    compact = tmp_path / "run" / "compact"
    assert not list(compact.glob("*.py"))
    assert np.allclose(elsewhere(compact, tmp_path, trusted=False), embeddings_of(compact), atol=1e-5)


@pytest.mark.parametrize("settings", [[], ["+model.config.num_hidden_layers=1"]], ids=["dense", "first layers"])
def test_a_dense_run_saves_its_layers(settings, inputs, tmp_path):
    run_in(tmp_path / "run", without(inputs, "objective."), "objective=none", *settings)
    model = SentenceTransformer(str(tmp_path / "run" / "compact"), device="cpu")
    assert len(model.transformers_model.encoder.layer) == (1 if settings else 3)
    assert np.allclose(model.encode(TEXTS), embeddings_of(tmp_path / "run" / "compact"), atol=1e-5)
    assert numbers_of(tmp_path / "run")["test/spearman"]


@pytest.mark.parametrize("scores", [True, False], ids=["scores", "positives"])
def test_pairs_are_trained_on_and_the_dense_model_compared_with(scores, inputs, tmp_path):
    files = [f"data.{s}={write_pairs(tmp_path / f'{s}.tsv', rows=24, scores=scores)}" for s in ("train", "test")]
    run_in(tmp_path / "run", [*without(inputs, "data.train", "data.validation", "data.test"), *files])
    numbers = numbers_of(tmp_path / "run")
    usual = {"spearman", "pearson"} if scores else {"ndcg", "recall"}
    assert {name.removeprefix("test/") for name in numbers if name.startswith("test/")} == {
        *usual,
        "agreement",
        "cosine",
    }


def test_texts_of_pairs_learn_from_a_teacher(inputs, tmp_path, monkeypatch):
    pairs = write_pairs(tmp_path / "pairs.tsv", rows=24)
    header, *rows = pairs.read_text().splitlines()
    pairs.write_text("\n".join([header, *(f"the {row}" for row in rows)]) + "\n")
    teacher = make_sentence_model(tmp_path / "teacher", dense=12)
    monkeypatch.chdir(tmp_path)
    settings = ["task.loss=distance", "task.negations=0.5", f"task.teacher={teacher.name}"]
    run_in(tmp_path / "run", inputs, f"data.train={pairs}", *settings)
    monkeypatch.chdir("/")
    found, _ = evaluate_folder(str(tmp_path / "run"), [])
    assert found["metrics"]["agreement"] == pytest.approx(numbers_of(tmp_path / "run")["test/agreement"])


def test_interrupted_runs_end_as_if_they_had_not_been(inputs, tmp_path, monkeypatch):
    run_in(tmp_path / "whole", inputs)
    # The embeddings of the teacher are computed anew.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert interrupt_again_and_again(tmp_path / "often", inputs, "callbacks.checkpoint.every_n_steps=2", at=4) >= 2
    assert_same_end(tmp_path / "often", tmp_path / "whole")


def test_a_sweep_recommends_a_run(inputs, tmp_path):
    script = str(Path(__file__).parents[2] / "train.py")
    command = [*warm_python(), script, "-m", *without(inputs, "objective."), "objective.num_heads=2,6", "logger=csv"]
    command.append(f"hydra.sweep.dir={tmp_path / 'sweep'}")
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert process.returncode == 0, process.stderr
    assert "spearman" in (process.stdout + process.stderr)


def test_graphs_of_two_processes_are_evaluated_on_all_examples(inputs, tmp_path):
    pytest.importorskip("onnx", reason="the packages of the export are not installed")
    settings = [
        *without(inputs, "data.batch_size"),
        *TWO,
        "exports=[onnx]",
        "logger=csv",
        f"output_dir={tmp_path / 'run'}",
    ]
    process = run_script("command_of_ranks.py", settings, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    numbers = numbers_of(tmp_path / "run")
    for name in ("test/spearman", "test/agreement", "val/spearman"):
        assert numbers[f"onnx/{name}"] == pytest.approx(numbers[f"compact/{name}"], abs=1e-4), name


def test_long_texts_are_truncated_as_those_of_the_teacher(inputs, tmp_path):
    texts = tmp_path / "long.txt"
    texts.write_text("\n".join(" ".join(sentences_of(12, seed=seed)) for seed in range(12)))
    run_in(
        tmp_path / "run", inputs, *(f"data.{split}={texts}" for split in ("validation", "test")), "data.max_length=60"
    )
    assert numbers_of(tmp_path / "run")["dense/test/cosine"] == pytest.approx(1, abs=1e-5)


def test_a_model_in_half_precision_has_a_dense_layer_in_full(inputs, tmp_path):
    model = make_sentence_model(tmp_path / "model", dense=12)
    run_in(tmp_path / "run", inputs, f"model.name={model}", "trainer.precision=bf16-true", "trainer.max_steps=4")
    assert "test/spearman" in numbers_of(tmp_path / "run")


def test_evaluation_repeats_the_numbers_of_a_run(finished):
    found, text = evaluate_folder(str(finished), [])
    numbers = numbers_of(finished)
    for name in ("spearman", "pearson", "agreement", "cosine"):
        assert found["metrics"][name] == pytest.approx(numbers[f"test/{name}"], abs=1e-5), name
        assert f"{name}  {100 * numbers[f'test/{name}']:.2f}" in text


def test_the_steps_of_a_run_do_not_bound_its_evaluation(finished, tmp_path, capsys):
    found, _ = evaluate_folder(str(finished), [f"data.test={write_pairs(tmp_path / 'test.tsv', rows=120)}"])
    assert found["num_examples"] == 120
    assert "are drawn" not in capsys.readouterr().out


def test_any_folder_of_sentence_transformers_is_evaluated(finished, inputs, tmp_path):
    test = next(line for line in inputs if line.startswith("data.test="))
    model = next(line for line in inputs if line.startswith("model.name=")).partition("=")[2]
    numbers = numbers_of(finished)
    for folder, stage in ((model, "dense"), (f"{finished}/compact", "compact")):
        place = Path(shutil.copytree(folder, tmp_path / stage))
        found, _ = evaluate_folder(str(place), ["task=embedding", "data=sentences", test, "data.max_length=32"])
        assert set(found["metrics"]) == {"spearman", "pearson"}
        assert found["metrics"]["spearman"] == pytest.approx(numbers[f"{stage}/test/spearman"], abs=1e-5)
    positives = write_pairs(tmp_path / "positives.tsv", rows=16, scores=False)
    found, _ = evaluate_folder(str(finished), ["data=files", f"data.test={positives}"])
    assert set(found["metrics"]) == {"ndcg", "recall", "agreement", "cosine"}


def test_an_export_that_fails_leaves_the_run_finished(inputs, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx", reason="the packages of the export are not installed")
    from gating.errors import InputError
    from gating.run import exports

    def fail(*_, **__):
        raise InputError("The graph is odd.")

    monkeypatch.setattr(exports, "export_compact", fail)
    run_in(tmp_path / "run", inputs, "exports=[onnx]", "trainer.max_steps=4")
    assert "warning: The export to onnx failed: The graph is odd." in capsys.readouterr().out
    assert "test/spearman" in numbers_of(tmp_path / "run")
    assert SentenceTransformer(str(tmp_path / "run" / "compact"), trust_remote_code=True, device="cpu")
