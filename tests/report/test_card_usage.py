"""The code in a model card loads the model with its tokenizer or image processor, and predicts."""

import ast
import re
from collections.abc import Callable

import pytest
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

import gating
from gating.report.card import usage_code, write_card
from gating.report.rows import CompactReport
from tests.support.tiers import first_of
from tests.support.tiny_models import VOCABULARY

NUM_TOKENS = len(VOCABULARY)
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1}
SIZES = {"layers": 1, "attention_heads": 4}
BART = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
BART |= {f"{part}_{name}": number for part in ("encoder", "decoder") for name, number in SIZES.items()}
BART |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
IMAGES = {"image_size": 32, "patch_size": 8}
WAV2VEC2 = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
WAV2VEC2 |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}


def bert(model_class: type[PreTrainedModel], **changes: object) -> PreTrainedModel:
    return model_class(BertConfig(vocab_size=NUM_TOKENS, **TINY, **changes))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "classes": lambda: bert(BertForSequenceClassification, num_labels=3),
    "a number": lambda: bert(BertForSequenceClassification, num_labels=1),
    "two numbers": lambda: bert(BertForSequenceClassification, num_labels=2, problem_type="regression"),
    "several classes": lambda: bert(BertForSequenceClassification, problem_type="multi_label_classification"),
    "tags": lambda: bert(BertForTokenClassification, num_labels=3),
    "answers": lambda: bert(BertForQuestionAnswering),
    "masked words": lambda: bert(BertForMaskedLM),
    "features": lambda: bert(BertModel),
    "text": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=NUM_TOKENS, pad_token_id=0, **GPT2)),
    "text from text": lambda: BartForConditionalGeneration(BartConfig(vocab_size=NUM_TOKENS, **BART)),
    "images": lambda: ViTForImageClassification(ViTConfig(**IMAGES, **TINY)),
    "gray images": lambda: ViTForImageClassification(ViTConfig(num_channels=1, **IMAGES, **TINY)),
}


def processor_of(model: PreTrainedModel, tokenizer: object) -> object:
    if model.main_input_name != "pixel_values":
        return tokenizer
    gray = {"image_mean": [0.5], "image_std": [0.5]} if model.config.num_channels == 1 else {}
    return ViTImageProcessorPil(size={"height": 32, "width": 32}, **gray)


@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize("kind", first_of(MODELS, every=4))
def test_the_code_of_the_card_runs_in_the_folder(kind, stock, tokenizer, tmp_path, monkeypatch, capsys):
    model = MODELS[kind]()
    if not stock:
        gating.prune_heads(model, {gating.find_attention_blocks(model)[0].name: [1]})
    folder = gating.save_compact(model, tmp_path / "model", tokenizer=processor_of(model, tokenizer), stock=stock)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert ("trust_remote_code=True" in code) is not stock
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(code, kind, "exec"), {})
    # A random model may write nothing but the end of a text.
    written = capsys.readouterr().out
    assert written
    if kind in ("two numbers", "several classes"):
        assert isinstance(ast.literal_eval(written), list)


WITHOUT_EXAMPLES: dict[str, Callable[[], PreTrainedModel]] = {
    "sounds": lambda: Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAV2VEC2, **TINY)),
    "choices": lambda: bert(BertForMultipleChoice),
    "short texts": lambda: bert(BertForSequenceClassification, max_position_embeddings=6),
    "features of images": lambda: ViTModel(ViTConfig(**IMAGES, **TINY)),
    "images of four colors": lambda: ViTForImageClassification(ViTConfig(num_channels=4, **IMAGES, **TINY)),
    "texts and images": lambda: CLIPModel(
        CLIPConfig(text_config={"vocab_size": NUM_TOKENS, **TINY}, vision_config={**IMAGES, **TINY})
    ),
}


@pytest.mark.parametrize("kind", WITHOUT_EXAMPLES)
def test_where_no_example_is_known_the_code_loads_the_model_only(kind, tokenizer, tmp_path, monkeypatch):
    model = WITHOUT_EXAMPLES[kind]()
    sounds = Wav2Vec2FeatureExtractor()
    processor = sounds if kind == "sounds" else processor_of(model, tokenizer)
    folder = gating.save_compact(model, tmp_path / "model", tokenizer=processor, stock=True)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(folder)
    exec(compile(code, kind, "exec"), {})


def test_a_folder_without_a_tokenizer_is_only_loaded(tmp_path):
    folder = gating.save_compact(MODELS["classes"](), tmp_path / "model")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "from_pretrained(" in card
    assert "tokenizer" not in card


def test_a_run_names_the_base_model_of_a_folder_or_package(tmp_path):
    model = MODELS["classes"]()
    gating.prune_heads(model, {0: [1]})
    write_card(tmp_path / "README.md", model, CompactReport(base_model="someone/their-model"))
    assert "base_model: someone/their-model\n" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_model_of_sentence_transformers_has_its_code(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    code = usage_code(MODELS["features"](), tmp_path, place='a "folder"', stock=False)
    assert 'model = SentenceTransformer("a \\"folder\\"", trust_remote_code=True)' in code.splitlines()
    assert "AutoModel" not in code
