"""The accuracy of an export with 8-bit weights, on the data of the run."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import gating
from gating.commands.export import compare_accuracy
from gating.report.score import Score
from gating.run.exports import describe_loss
from gating.serving.graphs.runtime import GraphModel
from tests.support.interruptions import run_in
from tests.support.tiny_run import make_inputs

pytestmark = pytest.mark.runs

pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")


@pytest.fixture(scope="module")
def exported_run(tmp_path_factory) -> tuple[Path, Path]:
    """Return a run that has learned a little, and the export of its model with 8-bit weights."""
    place = tmp_path_factory.mktemp("quantized")
    run_in(place / "run", make_inputs(place / "inputs"), "trainer.max_steps=30", "optimizer.lr=3e-3")
    gating.export_onnx(place / "run" / "compact", place / "exported", int8=True)
    return place / "run", place / "exported"


def accuracy(model, rows: list[str], tokenizer, label2id: dict[str, int]) -> float:
    texts, labels = zip(*(row.split("\t") for row in rows), strict=True)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        predictions = model(**batch)["logits"].argmax(-1)
    return float((predictions == torch.tensor([label2id[label] for label in labels])).float().mean())


def test_both_accuracies_are_those_of_the_models_on_the_validation_data(exported_run):
    run, exported = exported_run
    sentence = compare_accuracy(str(run), exported)
    model, tokenizer = gating.load_compact(run / "compact"), AutoTokenizer.from_pretrained(run / "compact")
    rows = (run.parent / "inputs" / "validation.tsv").read_text().splitlines()[1:]
    floats, integers = (
        100 * accuracy(module, rows, tokenizer, model.config.label2id)
        for module in (model, GraphModel(model.config, exported))
    )
    assert sentence == (
        f"validation accuracy: {floats:.2f} % with float weights, {integers:.2f} % with 8-bit weights "
        f"({integers - floats:+.2f} points) on {len(rows)} examples"
    )
    assert compare_accuracy(str(run / "compact"), exported) == sentence


def test_a_loss_beyond_half_a_point_is_a_warning():
    score = Score("accuracy")
    assert describe_loss(score, 0.8777, 0.8735, name="onnx-int8") is None
    assert "accuracy of 86.02 %, those in floats 87.77 %" in describe_loss(score, 0.8777, 0.8602, name="onnx-int8")
    assert describe_loss(Score("perplexity", 1, "", False), 9.0, 8.0, name="gguf-q8_0") is None
