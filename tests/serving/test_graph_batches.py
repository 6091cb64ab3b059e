"""Exports take the inputs of tokenizers and processors, and ignore padding in ONNX Runtime as in torch."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

import gating
from gating.serving.graphs.batches import input_names
from gating.serving.graphs.graph_export import export_onnx, export_torch
from gating.serving.graphs.runtime import GraphModel
from tests.support.family_models import FAMILIES, randomize
from tests.support.tiers import first_of
from tests.support.tiny_models import VOCABULARY

ort = pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")


LAYERS = (
    "num_hidden_layers",
    "n_layers",
    "n_layer",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
TEXT = {"input_ids", "attention_mask"}
DECODER = {"decoder_input_ids", "decoder_attention_mask"}


def build(family, *, layers=1, **arguments):
    one = FAMILIES[family]
    small = {name: layers if name in LAYERS else value for name, value in one.arguments.items()}
    return dataclasses.replace(one, arguments={**small, **arguments}).build()


def session_of(folder):
    return ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def answer(session, batch):
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})
    return torch.from_numpy(logits)


def padded_rows(*, side, lengths=(8, 5, 2), token_types=False):
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 90, (length,), generator=generator) for length in lengths]
    columns = {"input_ids": rows, "attention_mask": [torch.ones_like(row) for row in rows]}
    if token_types:
        columns["token_type_ids"] = [(torch.arange(len(row)) > 1).long() for row in rows]
    return {
        name: torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_side=side)
        for name, column in columns.items()
    }


def alone(batch, row):
    real = batch["attention_mask"][row].bool()
    return {name: tensor[row : row + 1, real] for name, tensor in batch.items()}


@pytest.fixture(scope="module", params=first_of(["bert", "distilbert", "roberta"]))
def exported_encoder(request, tmp_path_factory):
    family, folder = request.param, tmp_path_factory.mktemp("encoder") / "exported"
    model = build(family, layers=2, **({"type_vocab_size": 1} if family == "roberta" else {}))
    gating.prune_heads(model, {0: [1, 2], 1: range(4)})
    return family, model, gating.export_onnx(model, folder)


@pytest.mark.parametrize("side", ["right", "left"])
def test_encoders_in_onnx_runtime_ignore_padding(exported_encoder, side):
    family, model, report = exported_encoder
    session, batch = session_of(report.folder), padded_rows(side=side, token_types=family == "bert")
    assert set(report.inputs) == {given.name for given in session.get_inputs()} == set(batch)
    with torch.no_grad():
        torch.testing.assert_close(answer(session, batch), model(**batch).logits, rtol=1e-4, atol=1e-4)
        if side == "right":  # Encoders read the first token, and count positions from it.
            for row in range(3):
                single = model(**alone(batch, row)).logits
                torch.testing.assert_close(answer(session, batch)[row : row + 1], single, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(answer(session, alone(batch, row)), single, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=first_of(["llama", "gpt2"]))
def exported_decoder(request, tmp_path_factory):
    model = build(request.param)
    return model, gating.export_onnx(model, tmp_path_factory.mktemp("decoder") / "exported")


@pytest.mark.families
@pytest.mark.parametrize("side", ["left", "right"])
def test_decoders_in_onnx_runtime_compute_positions_from_the_mask(exported_decoder, side):
    model, report = exported_decoder
    assert set(report.inputs) == TEXT
    assert "padded left and right" in report.checked
    session, batch = session_of(report.folder), padded_rows(side=side)
    logits, real = answer(session, batch), batch["attention_mask"].bool()
    with torch.no_grad():
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        expected = model(**batch, position_ids=positions).logits
        torch.testing.assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-4)
        for row in range(3):
            single = model(**alone(batch, row)).logits
            torch.testing.assert_close(logits[row, real[row]], single[0], rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(model)


SMALL = {"num_hidden_layers": 1, "type_vocab_size": 1}


@pytest.mark.families
@pytest.mark.parametrize("name", ["Roberta", pytest.param("Camembert", marks=pytest.mark.slow)])
def test_decoders_with_other_positions_keep_them(name, tmp_path):
    config = getattr(transformers, f"{name}Config")(**{**FAMILIES["bert-decoder"].arguments, **SMALL})
    model = randomize(getattr(transformers, f"{name}ForCausalLM")(config).eval(), std=0.15, seed=0)
    gating.export_onnx(model, tmp_path / "exported")
    for side in ("right", "left"):
        batch = padded_rows(side=side)
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            expected = model(**batch).logits[real]
        actual = answer(session_of(tmp_path / "exported"), batch)[real]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.families
@pytest.mark.parametrize("family", first_of(["t5", "bart"]))
def test_encoder_decoders_in_onnx_runtime_ignore_padding_of_both_inputs(family, tmp_path):
    model = build(family)
    report = gating.export_onnx(model, tmp_path / "exported")
    assert set(report.inputs) == TEXT | DECODER
    source, target = padded_rows(side="right"), padded_rows(side="right", lengths=(3, 6, 4))
    batch = {**source, **{f"decoder_{name}": tensor for name, tensor in target.items()}}
    with torch.no_grad():
        real = target["attention_mask"].bool()
        logits = answer(session_of(tmp_path / "exported"), batch)
        torch.testing.assert_close(logits[real], model(**batch).logits[real], rtol=1e-4, atol=1e-4)
        for row in range(3):
            one = {f"decoder_{name}": tensor for name, tensor in alone(target, row).items()} | alone(source, row)
            torch.testing.assert_close(logits[row, real[row]], model(**one).logits[0], rtol=1e-4, atol=1e-4)
        # Evaluations give no mask of targets.
        del batch["decoder_attention_mask"]
        graph = GraphModel(model.config, tmp_path / "exported")
        torch.testing.assert_close(graph(**batch)["logits"], model(**batch).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.families
def test_images_come_in_batches_of_any_size(tmp_path):
    report = gating.export_onnx(build("vit"), tmp_path / "exported")
    assert report.inputs == {"pixel_values": ("batch", 3, 16, 16)}
    assert report.checked == "batches of 1, 2 and 3"


@pytest.mark.families
def test_whisper_reads_thirty_seconds_and_decoder_texts_of_any_length(tmp_path):
    report = gating.export_onnx(build("whisper"), tmp_path / "exported")
    assert set(report.inputs) == {"input_features"} | DECODER
    assert report.inputs["input_features"] == ("batch", 8, 20)
    assert report.inputs["decoder_input_ids"] == ("batch", "decoder length")


@pytest.mark.families
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_audio_models_have_the_mask_of_their_feature_extractor(masked, tmp_path):
    model = build("wav2vec2", feat_extract_norm="layer" if masked else "group")
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked)
    report = gating.export_onnx(model, tmp_path / "exported", tokenizer=extractor)
    wanted = {"input_values"} | ({"attention_mask"} if masked else set())
    assert set(report.inputs) == wanted == set(input_names(model)[0])
    assert transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "exported").return_attention_mask == masked
    sounds = [np.sin(np.arange(count) / 5) for count in (130, 70)]
    batch = extractor(sounds, sampling_rate=16000, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(answer(session_of(tmp_path / "exported"), batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.families
def test_shortest_and_longest_batches_are_checked_and_named(tmp_path, tokenizer):
    report = export_torch(build("roberta"), tmp_path / "exported", tokenizer=tokenizer)
    assert report.checked == "batches of 1, 2 and 3, lengths of 1, 6, 9, 12 and 40, padded left and right"
    assert report.inputs["input_ids"] == ("batch", "length")


@pytest.mark.families
def test_a_model_with_few_positions_is_checked_up_to_its_longest(tmp_path):
    report = export_torch(build("bert", max_position_embeddings=6), tmp_path / "exported")
    assert report.checked == "batches of 1, 2 and 3, lengths of 1 and 6, padded left and right"


@pytest.mark.families
def test_fixed_sizes_of_a_graph_are_reported(tmp_path):
    config = transformers.GPT2Config(**FAMILIES["gpt2"].arguments | {"pad_token_id": None, "n_layer": 1}, num_labels=2)
    model = transformers.GPT2ForSequenceClassification(config).eval()  # It rejects batches.
    report = export_torch(model, tmp_path / "exported")
    assert report.inputs["input_ids"] == (1, "length")
    assert report.checked.startswith("batches of 1, lengths of 1, 6, 9, 12 and 64")


def test_inputs_that_the_model_does_not_accept_are_reported(tmp_path, tokenizer):
    report = export_torch(build("distilbert"), tmp_path / "exported", tokenizer=tokenizer)
    assert set(report.inputs) == TEXT
    assert report.left_out == ("token_type_ids",)


@pytest.mark.families
@pytest.mark.parametrize("export", first_of([export_onnx, export_torch]))
def test_tokenizer_of_a_folder_goes_into_the_export(export, tokenizer, tmp_path):
    folder = gating.save_compact(build("bert"), tmp_path / "compact", tokenizer=tokenizer)
    report = export(folder, tmp_path / "exported")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert len(loaded) == len(VOCABULARY)
    assert set(loaded("the cat")) == set(report.inputs)


@pytest.mark.families
def test_processor_of_images_goes_into_the_export(tmp_path):
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    folder = gating.save_compact(build("vit"), tmp_path / "compact", tokenizer=processor)
    export_torch(folder, tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "preprocessor_config.json").read_text())["size"]["height"] == 16


def test_family_that_cannot_be_exported_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(
        RuntimeError, match=r"ForSequenceClassification cannot be exported to torch \(ZeroDivisionError"
    ):
        export_torch(build("bert"), tmp_path / "exported")
    assert not list(tmp_path.iterdir())
