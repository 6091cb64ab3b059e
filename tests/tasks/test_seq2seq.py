"""Sequence-to-sequence tasks: columns, batches, generation and scores."""

import json
import math
from pathlib import Path

import pytest
import sacrebleu
import torch
from datasets import Dataset, DatasetDict, Features, Translation
from transformers import AutoModelForSeq2SeqLM as Auto
from transformers import BartConfig, M2M100Config, MarianConfig, MBartConfig, MBartTokenizer, T5Config

from gating.data.sources import Examples
from gating.data.tokenizers import train_tokenizer
from gating.models.sources import Pretrained, make_meta_model
from gating.tasks import Seq2Seq
from gating.training.evaluation import evaluate

SOURCES, TARGETS = ["a cat", "the dog ran", "on"], ["eine  Katze .", "der Hund lief", "auf"]
TABLE = Dataset.from_dict({"text_a": SOURCES, "text_b": TARGETS})
SIZES = {
    "vocab_size": 280,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "marian": MarianConfig(**SIZES, **IDS, decoder_start_token_id=0, forced_eos_token_id=2),
    "bart": BartConfig(**SIZES, **IDS, decoder_start_token_id=2),
    "mbart": MBartConfig(**SIZES, **IDS),
    "m2m_100": M2M100Config(**SIZES, **IDS, decoder_start_token_id=2),
    "t5": T5Config(
        vocab_size=280, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **IDS
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TABLE, size=280, frame="end")


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return Auto.from_config(MODELS[request.param]).eval()


def prepare(tokenizer, model, table=TABLE, task=None, **options):
    return (task or Seq2Seq()).prepare(
        Examples(DatasetDict(train=table, validation=table)), tokenizer, model, **options
    )


def test_decoder_inputs_are_the_shifted_targets(tokenizer, model):
    prepared = prepare(tokenizer, model)
    batch = prepared.collate(list(prepared.splits["train"]))
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        ids = tokenizer(target)["input_ids"]
        assert tokenizer.decode(batch["input_ids"][row], skip_special_tokens=True) == source
        assert batch["labels"][row].tolist() == [*ids, *[-100] * (batch["labels"].shape[1] - len(ids))]
        start = prepared.config["decoder_start_token_id"]  # Generated texts begin with it, too.
        assert batch["decoder_input_ids"][row, : len(ids)].tolist() == [start, *ids[:-1]]
    assert batch["metric_target"] == TARGETS
    # A forward pass without labels gives the same logits.
    with_labels = model(**{k: v for k, v in batch.items() if k != "metric_target"})
    without = model(**{k: v for k, v in batch.items() if k not in ("metric_target", "labels")})
    torch.testing.assert_close(with_labels.logits, without.logits)


def test_scores_are_those_of_sacrebleu_on_generated_texts(tokenizer, model):
    task = Seq2Seq()
    prepared = prepare(tokenizer, model, task=task, max_target_length=6)
    rows = list(prepared.splits["validation"])
    batches = [prepared.collate(rows[:2]), prepared.collate(rows[2:])]
    values = evaluate(model, batches, task=task, metrics=prepared.all_metrics).metrics
    written, surprises = [], []
    for source, target in zip(SOURCES, TARGETS, strict=True):
        inputs = tokenizer(source, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        written.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
        labels = tokenizer(target, truncation=True, max_length=6, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(**inputs, labels=labels).logits[0].double().log_softmax(-1)
        surprises += (-logits[torch.arange(labels.shape[1]), labels[0]]).tolist()
    assert 100 * values["bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, [TARGETS]).score)
    assert 100 * values["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, [TARGETS]).score)
    assert values["perplexity"] == pytest.approx(math.exp(sum(surprises) / len(surprises)), rel=1e-5)
    # During training no text is generated.
    assert set(evaluate(model, batches, task=task, metrics=prepared.metrics).metrics) == {"perplexity", "accuracy"}


def test_samples_have_source_prediction_and_reference(tokenizer, model):
    task = Seq2Seq(num_samples=2, num_beams=2)
    prepared = prepare(tokenizer, model, task=task)
    samples = task.write_samples(model, tokenizer, prepared.splits)
    assert [(sample["source"], sample["right"]) for sample in samples] == list(zip(SOURCES, TARGETS, strict=True))[:2]
    assert all(isinstance(sample["written"], str) for sample in samples)


def test_long_texts_are_truncated_and_sources_have_the_prefix(tokenizer, model):
    prepared = prepare(tokenizer, model, task=Seq2Seq(prefix="say: "), max_length=7, max_target_length=4)
    row = prepared.splits["train"][1]
    assert tokenizer.decode(row["input_ids"]).startswith("say: the")
    assert (len(row["input_ids"]), len(row["labels"])) == (7, 4)
    assert row["metric_target"] == TARGETS[1]


PAIRS = [{"de": target, "en": source} for source, target in zip(SOURCES, TARGETS, strict=True)]


@pytest.mark.parametrize(
    ("table", "options", "first"),
    [
        (Dataset.from_dict({"source": SOURCES, "target": TARGETS}), {}, SOURCES[0]),
        (Dataset.from_dict({"document": SOURCES, "summary": TARGETS, "id": [1, 2, 3]}), {}, SOURCES[0]),
        (Dataset.from_dict({"translation": PAIRS}), {}, TARGETS[0]),
        (
            Dataset.from_dict(
                {"translation": PAIRS}, features=Features({"translation": Translation(languages=["de", "en"])})
            ),
            {"text_column": "translation.en", "text_pair_column": "translation.de"},
            SOURCES[0],
        ),
        (TABLE, {"text_column": "text_b", "text_pair_column": "text_a"}, TARGETS[0]),
    ],
)
def test_columns_are_found_by_their_usual_names(table, options, first, tokenizer):
    model = Auto.from_config(MODELS["marian"])
    prepared = prepare(tokenizer, model, table=table, **options)
    assert tokenizer.decode(prepared.splits["train"][0]["input_ids"], skip_special_tokens=True) == first


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    """Return a saved mBART of German and English."""
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "\u2581"]
    tokenizer = MBartTokenizer(vocab=[(token, -float(rank)) for rank, token in enumerate(vocab)], merges=[])
    folder = tmp_path_factory.mktemp("mbart") / "model"
    tokenizer.save_pretrained(folder)
    Auto.from_config(MBartConfig(**{**SIZES, "vocab_size": len(tokenizer)}, **IDS)).save_pretrained(folder)
    return Pretrained(str(folder))


def test_languages_are_set_in_the_tokenizer(multilingual):
    meta_model = make_meta_model(multilingual, Auto)
    splits = DatasetDict(train=TABLE, validation=TABLE)
    task = Seq2Seq(source_language="de_DE", target_language="en_XX")
    tokenizer = task.load_processor(multilingual, meta_model, splits)
    prepared = task.prepare(Examples(splits), tokenizer, meta_model)
    batch = prepared.collate(list(prepared.splits["train"])[:1])
    german, english = tokenizer.convert_tokens_to_ids(["de_DE", "en_XX"])
    assert batch["input_ids"][0, -1] == german
    assert batch["labels"][0, -1] == batch["decoder_input_ids"][0, 0] == prepared.config["decoder_start_token_id"]
    assert batch["labels"][0, -1] == english


@pytest.mark.parametrize("saved", ["ro_RO", None])
def test_no_saved_language_is_forced_on_generated_texts(saved, multilingual):
    source = Pretrained(multilingual.name)
    meta_model, splits = make_meta_model(source, Auto), DatasetDict(train=TABLE, validation=TABLE)
    task = Seq2Seq(source_language="en_XX", target_language="de_DE")
    tokenizer = task.load_processor(source, meta_model, splits)
    prepared = task.prepare(Examples(splits), tokenizer, meta_model)
    assert prepared.config["forced_bos_token_id"] is None  # The decoder starts with German.
    path = Path(multilingual.name) / "generation_config.json"
    before = path.read_text()
    forced = tokenizer.convert_tokens_to_ids(saved) if saved else None
    path.write_text(json.dumps({**json.loads(before), "forced_bos_token_id": forced}))
    try:
        model = source.load(Auto, **prepared.config)
    finally:
        path.write_text(before)
    assert model.generation_config.forced_bos_token_id is None
    assert "forced_bos_token_id" not in model.config.to_diff_dict()
