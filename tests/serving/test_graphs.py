"""Exported graphs give the outputs of the model in ONNX Runtime and OpenVINO, and decoders its tokens."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

import gating
from gating.errors import InputError
from gating.serving.graphs import check, graph_export
from gating.serving.graphs.runtime import GraphModel, find_graph
from tests.serving.decoders import make_decoder, make_tokenizer, remove, write_greedily
from tests.support.family_models import FAMILIES
from tests.support.tiers import first_of
from tests.support.tiny_models import VOCABULARY

onnx = pytest.importorskip("onnx", reason="the packages of the export are not installed")
ort = pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

# From tracing in torch.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
RUNTIMES = ["onnx", "openvino"]
DECODERS = ["gpt2", "mistral", "gemma2", "deepseek_v3", "gpt_oss", "falcon-mq", "qwen3", "phi3", "opt", "granite"]
OTHERS = ["t5", "distilbert", "deberta-v2", "modernbert", "mpnet", "bart", "vit", "whisper", "wav2vec2"]


def uneven(name, **arguments):
    """Return a model with an uneven layer, one without heads, and one without neurons."""
    family = FAMILIES[name]
    model = dataclasses.replace(family, arguments={**family.arguments, **arguments}).build()
    blocks = gating.find_attention_blocks(model)
    gating.prune_heads(model, {blocks[0].name: [0], blocks[1].name: range(blocks[1].num_heads)})
    if family.has_neurons and name not in ("t5", "gpt_oss"):
        last = gating.find_feed_forward_blocks(model, group_size=8)[-1]
        gating.prune_neurons(model, {last.name: range(last.num_neurons // 8)}, group_size=8)
    return model


def padded(side, names, lengths=(8, 5, 2)):
    generator = torch.Generator().manual_seed(3)
    rows = {
        "input_ids": [torch.randint(3, 40, (length,), generator=generator) for length in lengths],
        "attention_mask": [torch.ones(length, dtype=torch.int64) for length in lengths],
        "token_type_ids": [(torch.arange(length) > 1).long() for length in lengths],
    }
    return {
        name: pad_sequence(rows[name.removeprefix("decoder_")], batch_first=True, padding_side=side) for name in names
    }


@pytest.fixture(scope="module", params=RUNTIMES)
def encoder(request, tmp_path_factory):
    """Return a BERT, uneven and with emptied layers, and the report of its export with 8-bit weights."""
    model = uneven("bert")
    folder = tmp_path_factory.mktemp("encoder") / "exported"
    return model, gating.export_compact(model, folder, format=request.param, int8=True)


@pytest.mark.runs
def test_the_float_graph_is_compared_on_padded_batches_before_its_weights_are_rounded(encoder):
    model, report = encoder
    assert report.inputs == dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("batch", "length"))
    assert 1e-5 < report.max_difference < 0.2
    assert "padded left and right" in report.sentences[1]
    assert "With 8-bit weights, its outputs on random batches differ" in report.sentences[2]
    graph = GraphModel(model.config, report.path)
    for side in ("left", "right"):
        batch = padded(side, report.inputs)
        expected, logits = model(**batch).logits, graph(**batch, labels=torch.zeros(3)).logits
        assert float((logits - expected).abs().max() / expected.abs().max()) < 0.3
        one = {name: tensor[:1, :5] for name, tensor in batch.items()}
        torch.testing.assert_close(graph(**one).logits.shape, model(**one).logits.shape)


@pytest.mark.runs
def test_products_of_weights_are_integers_in_onnx(tmp_path):
    gating.export_onnx(uneven("bert"), tmp_path / "exported", int8=True)
    nodes = onnx.load(tmp_path / "exported" / "model.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes if "MatMul" in node.op_type]
    # Queries by keys, and attention weights by values, stay floats in the layers with heads.
    assert kinds.count("MatMul") == 2 * sum(block.num_heads > 0 for block in _blocks(uneven("bert")))
    assert "MatMulInteger" in kinds


def _blocks(model):
    return [block for block in gating.find_attention_blocks(model) if block.num_heads]


@pytest.fixture(scope="module", params=RUNTIMES)
def decoder(request, tmp_path_factory):
    model = make_decoder("Llama", num_hidden_layers=3)
    remove(model, {0: [1], 1: [0, 1, 2, 3]}, {0: [0, 1], 2: [0, 1, 2, 3, 4]})
    place = tmp_path_factory.mktemp("decoder")
    folder = gating.save_compact(model, place / "compact", tokenizer=make_tokenizer())
    return model, gating.export_compact(folder, place / "exported", format=request.param)


@pytest.mark.runs
def test_decoders_write_the_tokens_of_the_model_with_a_cache(decoder):
    model, report = decoder
    alone, together = report.sentences
    assert "all 200 greedy tokens" in alone
    assert "all 200 greedy tokens" in together
    graph = GraphModel(model.config, report.path)
    prompts = [[5, 9, 30, 11, 77], [8, 3]]
    written = graph.write(prompts, 24, pad_token_id=0)
    assert written == [write_greedily(model, prompt, 24) for prompt in prompts]
    # Evaluations run whole texts, which begin with an empty cache.
    batch = padded("left", ("input_ids", "attention_mask"))
    real = batch["attention_mask"].bool()
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(**batch, position_ids=positions).logits
    torch.testing.assert_close(graph(**batch).logits[real], expected[real], rtol=1e-4, atol=1e-4)
    assert "auto_map" not in (report.path / "config.json").read_text()
    assert len(transformers.AutoTokenizer.from_pretrained(report.path)) == 263


@pytest.mark.runs
def test_plain_onnx_runtime_generates_with_the_cache(tmp_path):
    model = make_decoder("Llama", num_hidden_layers=2)
    remove(model, {0: [1], 1: [0, 1, 2, 3]})
    gating.export_onnx(model, tmp_path / "exported")
    session = ort.InferenceSession(tmp_path / "exported" / "model.onnx")
    shapes = {given.name: given.shape for given in session.get_inputs() if given.name.startswith("input.")}
    assert [int(shape[1]) for shape in shapes.values()] == [3, 3, 1, 1]  # The emptied layer has a head of zeros.
    cache = {name: np.zeros((1, int(shape[1]), 0, 24), np.float32) for name, shape in shapes.items()}
    tokens, written = np.array([[5, 9, 30]]), []
    for _ in range(10):
        past = next(iter(cache.values())).shape[2]
        positions = np.arange(past, past + tokens.shape[1])[None]
        mask = np.ones((1, past + tokens.shape[1]), np.int64)
        given = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, **cache}
        outputs = dict(zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True))
        cache = {name: outputs[name.replace("input.", "output.", 1)] for name in cache}
        tokens = outputs["logits"][:, -1:].argmax(-1)
        written.append(int(tokens[0, 0]))
    assert written == write_greedily(model, [5, 9, 30], 10)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "name", first_of(DECODERS[:2]) + [pytest.param(one, marks=pytest.mark.slow) for one in DECODERS[2:]]
)
def test_decoders_of_other_families_write_the_tokens_of_the_model(name, runtime, tmp_path):
    model = uneven(name)
    before = model.config.to_dict()
    report = gating.export_compact(model, tmp_path / "exported", format=runtime)
    assert model.config.to_dict() == before
    assert all("greedy tokens are the model's own" in sentence for sentence in report.sentences[:2])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "name", first_of(OTHERS[:1]) + [pytest.param(one, marks=pytest.mark.slow) for one in OTHERS[1:]]
)
def test_other_models_give_the_same_outputs(name, runtime, tmp_path):
    model = uneven(name)
    report = gating.export_compact(model, tmp_path / "exported", format=runtime)
    assert report.max_difference <= 1e-4
    if name in ("t5", "bart"):
        assert {"decoder_input_ids", "decoder_attention_mask"} < set(report.inputs)
    if name == "vit" and runtime == "onnx":
        assert report.inputs == {"pixel_values": ("batch", 3, 16, 16)}


@pytest.mark.families
def test_audio_models_have_the_mask_of_their_feature_extractor(tmp_path):
    model = FAMILIES["wav2vec2"].build()
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    report = gating.export_onnx(model, tmp_path / "exported", tokenizer=extractor)
    assert "input_values" in report.inputs
    assert transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "exported").return_attention_mask


@pytest.mark.families
def test_fixed_sizes_of_a_graph_are_reported(tmp_path):
    config = transformers.GPT2Config(**FAMILIES["gpt2"].arguments | {"pad_token_id": None, "n_layer": 1}, num_labels=2)
    model = transformers.GPT2ForSequenceClassification(config).eval()  # It rejects batches.
    assert gating.export_onnx(model, tmp_path / "exported").inputs["input_ids"] == (1, "length")


@pytest.mark.families
def test_weights_in_16_bits_are_exported_in_32(tmp_path):
    model = uneven("bert").to(torch.bfloat16)
    assert gating.export_onnx(model, tmp_path / "exported").max_difference <= 1e-5
    assert model.dtype == torch.bfloat16


@pytest.mark.runs
def test_an_export_with_other_results_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "max_relative_difference", lambda *_: 1.0)
    with pytest.raises(RuntimeError, match="Nothing was written"):
        gating.export_onnx(uneven("bert"), tmp_path / "exported")
    monkeypatch.setattr(GraphModel, "write", lambda self, rows, count, **_: [[7] * count for _ in rows])
    with pytest.raises(RuntimeError, match="other tokens than the model"):
        gating.export_onnx(make_decoder("Llama", num_hidden_layers=1), tmp_path / "exported")
    monkeypatch.setattr(graph_export, "export_graph", lambda *_: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        gating.export_onnx(uneven("bert"), tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.runs
def test_what_is_in_the_way_is_renamed_and_the_tokenizer_goes_along(tokenizer, tmp_path):
    folder = gating.save_compact(uneven("bert"), tmp_path / "compact", tokenizer=tokenizer)
    gating.export_onnx(folder, tmp_path / "exported")
    (tmp_path / "exported" / "notes.txt").touch()
    report = gating.export_onnx(folder, tmp_path / "exported", overwrite=True)
    assert (tmp_path / "exported.1" / "notes.txt").exists()
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert len(loaded) == len(VOCABULARY)
    assert set(loaded("the cat")) == set(report.inputs)


def test_graphs_that_are_missing_damaged_or_lack_an_input_are_one_sentence(encoder, tmp_path):
    model, report = encoder
    with pytest.raises(InputError, match="takes input_ids"):
        GraphModel(model.config, report.path)(labels=torch.zeros(1))
    with pytest.raises(InputError, match="has no graph"):
        GraphModel(model.config, tmp_path)
    damaged = shutil.copytree(report.path, tmp_path / "damaged")
    find_graph(damaged).write_text("{}")
    with pytest.raises(InputError, match="Export the model again"):
        GraphModel(model.config, damaged)


def test_later_graphs_of_openvino_have_the_runtime_of_the_first(encoder, monkeypatch):
    """On processors with AMX, the process would end at its next signal once a second one has ended."""
    model, report = encoder
    GraphModel(model.config, report.path)
    monkeypatch.setattr("openvino.Core", None)
    assert GraphModel(model.config, report.path).inputs == report.inputs


@pytest.mark.runs
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sentence_transformers_find_their_graph_with_both_outputs(runtime, tmp_path):
    sentences = pytest.importorskip("sentence_transformers", reason="the extra embeddings is not installed")
    from tests.support.tiny_sentences import make_sentence_model

    dense = make_sentence_model(tmp_path / "dense")
    model = sentences.SentenceTransformer(str(dense), device="cpu")
    gating.prune_heads(model[0].auto_model, {0: [1], 1: [0, 1, 2, 3]})
    folder = shutil.copytree(dense, tmp_path / "compact", ignore=shutil.ignore_patterns("*.safetensors"))
    gating.save_compact(model[0].auto_model, tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", folder, dirs_exist_ok=True)
    report = gating.export_compact(folder, tmp_path / "exported", format=runtime)
    assert find_graph(report.path).parent == report.path / runtime
    texts = ["t1 t2 t3", "t4"]
    batch = model.tokenize(texts)
    outputs = GraphModel(model[0].auto_model.config, report.path)(**batch)
    torch.testing.assert_close(outputs["sentence_embedding"], model.encode(texts, convert_to_tensor=True))
    assert outputs["last_hidden_state"].shape[:2] == batch["input_ids"].shape
    assert {"modules.json", "1_Pooling", "tokenizer.json"} <= {path.name for path in report.path.iterdir()}
    assert "head_gating" not in json.loads((report.path / "config.json").read_text())
