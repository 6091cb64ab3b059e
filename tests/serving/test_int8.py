"""ONNX graphs with weights of 8 bits: checked as floats, run on all batches, and their change reported."""

import onnx
import pytest
import torch

import gating
from gating.errors import InputError
from gating.serving.graphs import check, exporters
from gating.serving.graphs.runtime import GraphModel
from tests.serving.test_graph_batches import build, padded_rows

pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")


def products(folder):
    nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
    return [node.op_type for node in nodes if "MatMul" in node.op_type or node.op_type == "Gemm"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a BERT with an uneven and an emptied layer, and the report of its export."""
    model = build("bert", layers=2, type_vocab_size=2)
    gating.prune_heads(model, {0: [1], 1: range(4)})
    return model, gating.export_onnx(model, tmp_path_factory.mktemp("int8") / "exported", int8=True)


@pytest.mark.runs
def test_weights_are_integers_and_products_of_activations_stay_floats(exported):
    _, report = exported
    kinds = products(report.folder)
    assert kinds.count("MatMul") == 2  # Queries by keys, and attention weights by values, in the only layer with heads.
    assert kinds.count("MatMulInteger") == len(kinds) - 2
    assert report.max_difference <= 1e-5 < report.int8_difference < 1
    assert report.sentences[2] == (
        f"Its weights are 8-bit integers, with which the outputs on these random batches differ by "
        f"{report.int8_difference:.1e}: measure its accuracy before use"
    )


@pytest.mark.runs
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_graph_model_runs_padded_batches_and_ignores_labels(side, exported):
    model, report = exported
    graph, batch = GraphModel(model.config, report.folder), padded_rows(side=side)
    with torch.no_grad():
        expected = model(**batch).logits
    logits = graph(**batch, labels=torch.zeros(3))["logits"]
    assert float((logits - expected).abs().max() / expected.abs().max()) < 0.5
    one = graph(input_ids=batch["input_ids"][:1])["logits"]
    torch.testing.assert_close(one, graph(**{name: tensor[:1] for name, tensor in batch.items()})["logits"])


@pytest.mark.families
def test_layers_without_neurons_and_weights_in_16_bits(tmp_path):
    model = build("bert", layers=2, type_vocab_size=2)
    gating.prune_neurons(model, {0: range(6)}, group_size=8)
    assert next(block for block in gating.find_feed_forward_blocks(model, group_size=8)).num_neurons == 0
    # ONNX Runtime's product of 8-bit integers over no inputs is not zero.
    report = gating.export_onnx(model, tmp_path / "exported", int8=True)
    assert report.int8_difference < 0.2
    half = gating.export_onnx(model.to(torch.bfloat16), tmp_path / "half")
    assert half.max_difference <= 1e-5
    assert model.dtype == torch.bfloat16


@pytest.mark.runs
def test_missing_inputs_of_a_graph_are_named(exported):
    model, report = exported
    with pytest.raises(InputError, match="The graph takes input_ids, which the batch of labels does not hold"):
        GraphModel(model.config, report.folder)(labels=torch.zeros(1))


@pytest.mark.runs
def test_damaged_graphs_are_one_sentence(exported, tmp_path):
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(InputError, match=r"cannot be loaded.*Export the model again"):
        GraphModel(exported[0].config, tmp_path)


@pytest.mark.families
def test_nothing_is_written_if_quantization_has_no_effect(tmp_path, monkeypatch):
    monkeypatch.setattr(exporters, "_QUANTIZED", ())
    with pytest.raises(InputError, match="int8=True has no effect"):
        gating.export_onnx(build("vit"), tmp_path / "exported", int8=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("difference", "refused", "problem"),
    [(float("inf"), (), "outputs are not finite"), (0.1, ("input_ids of 1 x 1",), "rejects input_ids of 1 x 1")],
)
def test_a_quantized_graph_with_faults_is_an_error(difference, refused, problem, monkeypatch):
    found = check.ExportCheck(difference, {}, "", refused)
    monkeypatch.setattr(check, "_compare", lambda *_: found)
    with pytest.raises(RuntimeError, match=rf"With 8-bit weights, .* {problem}\. Nothing was written: leave out int8"):
        check.check_quantized(None, None, None, None, floats=check.ExportCheck(0.0, {}, "", ()))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart", "vit", "whisper", "wav2vec2"])
def test_other_families_run_with_integers(family, tmp_path):
    report = gating.export_onnx(build(family), tmp_path / "exported", int8=True)
    assert "MatMulInteger" in products(report.folder)
    assert report.refused == ()
