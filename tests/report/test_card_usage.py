"""The code in a model card loads the model with its tokenizer or image processor, and predicts."""

import ast
import re
from collections.abc import Callable

import pytest
import transformers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

import gating
from gating.data.images import ViTImageProcessorPil
from gating.report.card import usage_code
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
    if kind == "gray images" and not hasattr(transformers, "ViTImageProcessorPil"):
        pytest.skip(f"image processors of transformers {transformers.__version__} take no gray images")
    if "images" in kind and hasattr(transformers.AutoImageProcessor, "_backends"):
        pytest.skip(f"AutoImageProcessor of transformers {transformers.__version__} needs torchvision")
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


def test_a_model_of_sentence_transformers_has_its_code(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    code = usage_code(MODELS["features"](), tmp_path, place='a "folder"', stock=False)
    assert 'model = SentenceTransformer("a \\"folder\\"", trust_remote_code=True)' in code.splitlines()
    assert "AutoModel" not in code
