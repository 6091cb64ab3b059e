"""Pipelines that the README names work on compact folders, and transformers no longer has the others."""

import numpy as np
import pytest
import transformers
from PIL import Image

import gating
from tests.support.tiny_models import VOCABULARY

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SIZES, "vocab_size": len(VOCABULARY), "max_position_embeddings": 40, "pad_token_id": 0}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
TEXTS = ["the cat sat on the mat", "a dog ran"]

# By pipeline: model, its configuration and sizes, and its inputs.
PIPELINES = {
    "text-classification": ("BertForSequenceClassification", "BertConfig", TEXT, TEXTS),
    "token-classification": ("BertForTokenClassification", "BertConfig", TEXT, TEXTS),
    "fill-mask": ("BertForMaskedLM", "BertConfig", TEXT, ["the [MASK] sat", "a dog [MASK]"]),
    "text-generation": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "eos_token_id": 3, "bos_token_id": 2}, TEXTS),
    "image-classification": ("ViTForImageClassification", "ViTConfig", IMAGE, None),
}
OPTIONS = {"text-generation": {"max_new_tokens": 4, "do_sample": False}}


@pytest.fixture
def make_folder(tmp_path, tokenizer):
    def make(model, config, sizes):
        built = getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()
        gating.prune_heads(built, {0: [1], 1: [0, 2]})
        is_image = model.startswith("ViT")
        processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16}) if is_image else tokenizer
        return gating.save_compact(built, tmp_path / "compact", tokenizer=processor), processor

    return make


@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines_of_the_readme_give_the_outputs_of_the_model(task, make_folder):
    model, config, sizes, given = PIPELINES[task]
    folder, processor = make_folder(model, config, sizes)
    if given is None:
        given = [Image.fromarray(np.full((16, 16, 3), shade, dtype=np.uint8)) for shade in (40, 200)]
    part = "image_processor" if task == "image-classification" else "tokenizer"
    expected = transformers.pipeline(task, model=gating.load_compact(folder), **{part: processor})
    found = transformers.pipeline(task, model=str(folder), trust_remote_code=True)
    for answer, wanted in zip(
        found(given, **OPTIONS.get(task, {})), expected(given, **OPTIONS.get(task, {})), strict=True
    ):
        assert answer
        assert str(answer) == str(wanted)
