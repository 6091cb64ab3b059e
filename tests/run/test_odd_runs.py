"""Whole runs of models, data and settings unlike the usual ones."""

import json
from dataclasses import replace

import pytest
import transformers
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)

import gating
from gating.data.sources import load_files
from gating.data.tokenizers import train_tokenizer
from gating.data.tokens import truncation_length
from gating.families import registry as families
from gating.families.layouts import CONTEXT
from gating.models.adapters import LoRA
from tests.run.test_train import run_here, setting


def new_model(inputs: list[str], model_type: str, config: dict) -> list[str]:
    """Let a run begin from scratch, with the tokenizer of the tiny model."""
    return [
        *(line for line in inputs if not line.startswith("model")),
        "model=scratch",
        f"model.model_type={model_type}",
        f"model.tokenizer={setting(inputs, 'model.name')}",
        *(f"+model.config.{name}={value}" for name, value in config.items()),
    ]


@pytest.mark.runs
def test_a_model_whose_attention_was_discovered_is_exported(inputs, tmp_path):
    if transformers.__version__.startswith("5.0."):
        pytest.skip("transformers 5.0 makes no new StableLM: its configuration lacks pad_token_id")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    run = new_model(inputs, "stablelm", {**sizes, "intermediate_size": 32, "vocab_size": 45})
    numbers = run_here([*run, "gates.discover=true"], tmp_path / "run")
    assert (numbers["num_heads_before"], numbers["num_heads"]) == (8, 4)
    model = gating.load_compact(tmp_path / "run" / "compact")
    assert sum(block.num_heads for block in gating.find_attention_blocks(model)) == 4


@pytest.mark.runs
def test_a_layer_that_needs_a_head_is_counted_without_one(inputs, tmp_path, monkeypatch, request):
    monkeypatch.setitem(families._REGISTERED, "heads", {"BertSelfAttention": replace(CONTEXT, returns="other")})
    families._find_row.cache_clear()
    request.addfinalizer(families._find_row.cache_clear)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "vocab_size": 45,
    }
    run = [line for line in new_model(inputs, "bert", sizes) if not line.startswith("objective")]
    numbers = run_here([*run, "objective.num_heads=2"], tmp_path / "run")
    assert (numbers["num_heads_before"], numbers["num_heads"]) == (16, 2)
    blocks = gating.find_attention_blocks(gating.load_compact(tmp_path / "run" / "compact"))
    assert sum(block.num_heads for block in blocks) == 2
    assert any(block.head_slots and not block.head_ids for block in blocks)


@pytest.mark.runs
def test_an_empty_text_is_read_also_without_special_tokens(inputs, tmp_path):
    splits = load_files(train=setting(inputs, "data.train"), validation=setting(inputs, "data.validation")).splits
    tokenizer = train_tokenizer(splits["train"].select_columns("text"), size=300, frame="none")
    assert tokenizer("")["input_ids"] == []
    config = LlamaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "odd.tsv").write_text("text\tlabel\n\tfirst\nword3\tsecond\n\tsecond\n")
    run = [line for line in inputs if not line.startswith(("model.name", "data.validation", "data.test", "objective"))]
    run += [f"model.name={tmp_path}/model", f"data.validation={tmp_path}/odd.tsv"]
    numbers = run_here([*run, "data.eval_batch_size=1", "objective.num_heads=2"], tmp_path / "run")
    assert numbers["num_heads"] == 2


@pytest.mark.runs
def test_a_correlation_with_one_value_is_null_and_the_progress_may_be_hidden(inputs, tmp_path):
    for name, labels in (("train", "0.5 1.5"), ("rest", "1.0 1.0")):
        one, other = labels.split()
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + f"word1 word2\t{one}\nword3\t{other}\n" * 8)
    run = [line for line in inputs if not line.startswith("data.") or "batch" in line]
    run += ["task=regression", f"data.train={tmp_path}/train.tsv", f"data.validation={tmp_path}/rest.tsv"]
    run_here([*run, "trainer.enable_progress_bar=false"], tmp_path / "run")
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert numbers["val/pearson"] is None


def test_encoder_decoders_truncate_to_the_shorter_of_both_models():
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertModel(BertConfig(**sizes, max_position_embeddings=16))
    decoder = BertConfig(**sizes, max_position_embeddings=24, is_decoder=True, add_cross_attention=True)
    model = EncoderDecoderModel(encoder=encoder, decoder=BertLMHeadModel(decoder))
    assert truncation_length(model, 128) == 16


def test_merged_adapters_leave_the_output_with_the_embedding_that_it_shares(tmp_path):
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    side = {**sizes, "num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["full_attention"] * 2}
    model = T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=side, decoder=side, vocab_size=40))
    with LoRA(rank=2).on(model):
        pass
    gating.prune_heads(model, {"decoder.layers.0.self_attn": [1]})
    gating.save_compact(model, tmp_path / "compact")
    gating.load_compact(tmp_path / "compact")
