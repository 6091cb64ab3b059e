"""``gating.prune``: each kind of model becomes a compact one of its kind, with labels and without."""

import copy

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import (
    BertForSequenceClassification,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

import gating
from gating.errors import InputError, InputTypeError
from gating.integrations.prune import _sentence_trainer
from gating.structure.layers import count_units
from tests.integrations.sentence_models import make_embedder, pairs, save_transformer, texts

TEXTS = texts(32, seed=1)


def arguments(folder, cls=TrainingArguments):
    options = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    return cls(str(folder), max_steps=16, per_device_train_batch_size=8, learning_rate=1e-3, **options)


@pytest.fixture
def tokenizer(tmp_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_transformer(tmp_path / "base", cls=BertForSequenceClassification))


COLUMNS = Dataset.from_dict(dict.fromkeys(("id", "first", "second"), TEXTS[:4]))
DATA = {
    "a single text": ("a film", "list of texts"),
    "a table as a dictionary": ({"text": TEXTS}, "list of texts"),
    "a text that is None": ([*TEXTS, None], "list of texts"),
    "a row without a text": (Dataset.from_dict({"text": ["a film", None]}), "rows without a text"),
    "no column of texts": (Dataset.from_dict({"label": [0, 1]}), "rows without a text"),
    "no texts": ([], "rows without a text"),
    "three columns of texts": (COLUMNS, "id, first, second: keep one or two"),
    "a label of another model": (Dataset.from_dict({"text": TEXTS, "label": [0, 7] * 16}), "label 7"),
    "a label without a name": (Dataset.from_dict({"text": TEXTS, "label": ["LABEL_0", "good"] * 16}), "label 'good'"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_learned_are_refused(name, tmp_path, tokenizer):
    data, word = DATA[name]
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    with pytest.raises((InputError, InputTypeError), match=word):
        gating.prune(model, data, keep=0.5, tokenizer=tokenizer, args=arguments(tmp_path / "out"))


@pytest.mark.parametrize("labels", [[0, 1], ["LABEL_0", "LABEL_1"], None])
def test_a_classifier_learns_from_labels_or_from_itself(tmp_path, tokenizer, labels):
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    before = copy.deepcopy(model.state_dict())
    data = TEXTS if labels is None else Dataset.from_dict({"sentence": TEXTS, "label": labels * 16})
    compact = gating.prune(model, data, num_heads=5, tokenizer=tokenizer, args=arguments(tmp_path / "out"))
    assert isinstance(compact, BertForSequenceClassification)
    assert count_units(compact, "heads") == 5
    assert count_units(model, "heads") == 12
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    gating.save_compact(compact, tmp_path / "compact", tokenizer=tokenizer)


def test_a_decoder_learns_the_texts(tmp_path, tokenizer):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=44, **sizes))
    compact = gating.prune(model, TEXTS, keep=0.5, tokenizer=tokenizer, args=arguments(tmp_path / "out"))
    assert isinstance(compact, LlamaForCausalLM)
    assert count_units(compact, "neurons") < 128
    assert compact.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape[1] <= 5


@pytest.mark.parametrize("has_pairs", [True, False])
def test_an_embedding_model_learns_from_pairs_or_its_own_embeddings(tmp_path, has_pairs):
    model = make_embedder(tmp_path)
    args = arguments(tmp_path / "out", SentenceTransformerTrainingArguments)
    compact = gating.prune(model, pairs() if has_pairs else TEXTS, num_heads=5, args=args, recovery=0)
    assert isinstance(compact, SentenceTransformer)
    assert count_units(compact.transformers_model, "heads") == 5
    assert count_units(model.transformers_model, "heads") == 12
    compact.save_pretrained(str(tmp_path / "compact"))
    loaded = SentenceTransformer(str(tmp_path / "compact"), trust_remote_code=True, device="cpu")
    assert (loaded.encode(TEXTS[:2]) == compact.cpu().encode(TEXTS[:2])).all()
    assert compact.encode(TEXTS[:2]).shape == (2, 32)


SCORED = {"anchor": TEXTS, "positive": TEXTS, "score": [0.5] * 32}


@pytest.mark.parametrize("changes", [{"positive": None}, {"score": [0.5, float("nan")] * 16}])
def test_scores_of_embeddings_are_numbers_of_pairs(changes, tmp_path):
    data = Dataset.from_dict({name: one for name, one in {**SCORED, **changes}.items() if one is not None})
    with pytest.raises(InputError, match="scores of pairs"):
        gating.prune(make_embedder(tmp_path), data, num_heads=5)


def test_embeddings_to_learn_are_those_that_the_trainer_computes(tmp_path):
    model = make_embedder(tmp_path).train()
    expected = torch.tensor(model.encode(TEXTS))
    model.prompts, model.default_prompt_name, model.truncate_dim = {"query": TEXTS[0]}, "query", 4
    model.train()
    _, _, options = _sentence_trainer(model, Dataset.from_dict({"text": TEXTS}))
    torch.testing.assert_close(torch.tensor(options["train_dataset"]["label"][:]), expected)
    assert model.training


@pytest.mark.runs
def test_without_arguments_a_model_becomes_faster(tmp_path, capsys, tokenizer, known_times):
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    compact = gating.prune(model, TEXTS, speedup=1.2, tokenizer=tokenizer)
    assert "times as fast" in capsys.readouterr().out
    assert compact.num_parameters() < model.num_parameters()


def test_a_budget_and_a_tokenizer_are_needed(tmp_path, tokenizer):
    with pytest.raises(InputError, match="Give one of"):
        gating.prune(None, TEXTS, keep=0.5, num_heads=3)
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="tokenizer"):
        gating.prune(model, TEXTS, num_heads=5)
    for other in (model.bert, BertLMHeadModel(model.config)):
        with pytest.raises(InputError, match="call a trainer"):
            gating.prune(other, TEXTS, num_heads=5)
