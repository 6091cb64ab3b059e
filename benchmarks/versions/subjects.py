"""The folders that are loaded: tiny compact models with uneven and emptied layers, and their answers here."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from transformers import BertConfig, BertModel, BertTokenizerFast, PreTrainedModel, PreTrainedTokenizerBase

import gating
from benchmarks.census.models import build
from benchmarks.versions.loading import ROUTES
from gating.loader.composing import compose, needed_parts
from gating.proof.probe import make_probe

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "a", "dog", "ran", "home"]


class Subject(NamedTuple):
    """A model type, and what it can do beside a forward pass.

    Attributes:
        title: Name in the table.
        class_name: Name of the model's class.
        auto_class: The Auto class that picks it.
        task: Task of its pipeline; empty if it has no tokenizer here.
        generates: Whether it generates tokens.
        embeds: Whether sentence-transformers takes it.
    """

    title: str
    class_name: str
    auto_class: str
    task: str = ""
    generates: bool = False
    embeds: bool = False


_CLASSIFIER, _WRITER = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
SUBJECTS = {
    "bert": Subject("BERT", "BertForSequenceClassification", _CLASSIFIER, "text-classification", embeds=True),
    "modernbert": Subject("ModernBERT", "ModernBertForSequenceClassification", _CLASSIFIER, "text-classification"),
    "llama": Subject("LLaMA", "LlamaForCausalLM", _WRITER, "text-generation", generates=True),
    "gpt2": Subject("GPT-2", "GPT2LMHeadModel", _WRITER, "text-generation", generates=True),
    "qwen3": Subject("Qwen3", "Qwen3ForCausalLM", _WRITER, generates=True),
    "mixtral": Subject("Mixtral", "MixtralForCausalLM", _WRITER, generates=True),
    "t5": Subject("T5", "T5ForConditionalGeneration", "AutoModelForSeq2SeqLM", generates=True),
    "whisper": Subject("Whisper", "WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq", generates=True),
    "vit": Subject("ViT", "ViTForImageClassification", "AutoModelForImageClassification"),
}


def make_jobs(scratch: Path, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Save the folders; return the jobs of :mod:`benchmarks.versions.loading`, and the answers of this environment."""
    jobs, expected = {}, {}
    for name in names:
        subject = SUBJECTS[name]
        model = _compact(name)
        folder = gating.save_compact(model, scratch / name, tokenizer=_tokenizer(scratch) if subject.task else None)
        batch = {key: value.tolist() for key, value in make_probe(model).items()}
        routes = ["disk", "hub", "again", "canary"]
        job = {"folder": str(folder), "auto_class": subject.auto_class, "batch": batch, "hub": f"me/{name}"}
        if subject.task:
            job["task"] = subject.task
            routes.append("pipeline")
        if subject.generates:
            job["prompt"] = {key: value for key, value in batch.items() if not key.startswith("decoder_")}
            routes.append("tokens")
        if subject.embeds:
            job["sentences"] = str(_sentence_folder(folder, scratch / f"{name}-sentences"))
            routes.append("sentences")
        _put_in_cache(folder, scratch / "hub" / f"models--me--{name}")
        jobs[name] = {**job, "routes": routes}
        # The canary is told by its error; the hub and the second folder have the model of the first.
        expected[name] = {route: ROUTES[route](job) for route in routes if route not in ("canary", "hub", "again")}
        expected[name] |= dict.fromkeys(("hub", "again"), expected[name]["disk"])
    return jobs, expected


def example_record(_rows: object) -> list[str]:
    """Return the record of a BERT with one uneven and one emptied layer, as it is in ``config.json``."""
    record = _example().config.head_gating
    shown = {kind: record[kind] for kind in ("format", "modules", "units")}
    return ["```json", _short_json(shown), "```"]


def example_code(_rows: object) -> list[str]:
    """Return the code that the same BERT needs, as it is in its folder."""
    return ["```python", *compose(needed_parts(_example())).splitlines(), "```"]


def _example() -> PreTrainedModel:
    model = BertModel(BertConfig(num_hidden_layers=2, vocab_size=8))
    gating.prune_heads(model, {0: [head for head in range(12) if head not in (0, 7)], 1: range(12)})
    gating.prune_neurons(model, {0: [group for group in range(48) if group not in (3, 40)]})
    return model


def _short_json(record: dict[str, Any]) -> str:
    """Return a record as JSON with a line for each module."""
    kinds = [f'"format": {record["format"]}']
    for kind in ("modules", "units"):
        lines = ",\n  ".join(f'"{name}": {json.dumps(entry)}' for name, entry in record[kind].items())
        kinds.append(f'"{kind}": {{\n  {lines}}}')
    return "{" + ",\n ".join(kinds) + "}"


def _compact(name: str) -> PreTrainedModel:
    """Return a tiny model with a layer of fewer heads, one without any, and fewer neurons in two layers."""
    model = build(name, class_name=SUBJECTS[name].class_name)
    if model.config.is_encoder_decoder:
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 0
    first, second, *_ = gating.find_attention_blocks(model)
    group = first.num_heads // first.num_key_value_heads
    gating.prune_heads(model, {first.name: range(group), second.name: range(second.num_heads)})
    blocks = gating.find_feed_forward_blocks(model, group_size=8)
    gating.prune_neurons(model, {blocks[0].name: [0], blocks[1].name: [1, 2]}, group_size=8)
    return model.eval()


def _tokenizer(scratch: Path) -> PreTrainedTokenizerBase:
    path = scratch / "vocab.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    return BertTokenizerFast(str(path), model_max_length=40)


def _sentence_folder(folder: Path, place: Path) -> Path:
    """Write the folder of a SentenceTransformer around a compact one, as sentence-transformers lays it out."""
    shutil.copytree(folder, place)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (place / "modules.json").write_text(json.dumps(modules))
    (place / "1_Pooling").mkdir()
    size = json.loads((folder / "config.json").read_text())["hidden_size"]
    pooling = {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True}
    (place / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return place


def _put_in_cache(folder: Path, repository: Path) -> None:
    """Copy a folder into a cache of the hub, as a download leaves it."""
    commit = f"{abs(hash(repository.name)):040d}"[:40]
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
