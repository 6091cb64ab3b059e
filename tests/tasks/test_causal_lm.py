"""Causal language modeling: batches, perplexity and samples."""

import math
import re
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import GPT2Config, GPT2LMHeadModel

from gating.data.examples import num_targets
from gating.data.sources import Examples
from gating.data.tokenizers import train_tokenizer
from gating.models.sources import NewModel, Pretrained, make_meta_model
from gating.tasks import CausalLM
from gating.training.evaluation import evaluate
from tests.support.tiny_run import make_model_folder

TABLE = Dataset.from_dict({"text": ["abcabcabd", "bacc"]})


@pytest.fixture(scope="module")
def tokenizer():
    """Return a tokenizer with a token for each letter."""
    return train_tokenizer(TABLE, size=260, frame="none")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=260,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=24,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=1.0,
    )
    return GPT2LMHeadModel(config).eval()


def prepare(tokenizer, model, **options):
    splits = DatasetDict(train=TABLE, validation=TABLE)
    return CausalLM().prepare(Examples(splits), tokenizer, model, **options)


@pytest.mark.parametrize("pads_with_end", [False, True])
def test_labels_are_the_tokens_except_the_first_and_padding(tokenizer, model, pads_with_end):
    tokenizer = train_tokenizer(TABLE, size=260, frame="none")
    if pads_with_end:
        # GPT-2 pads with its EOS token: EOS tokens of texts still have labels.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    prepared = prepare(tokenizer, model, max_length=11)
    batch = prepared.collate(list(prepared.splits["train"]))
    assert tokenizer.decode(batch["input_ids"][0]) == "abcabcabd</s>b"
    assert batch["attention_mask"].tolist() == [[1] * 11, [1] * 3 + [0] * 8]
    assert batch["labels"][0].tolist() == [-100, *batch["input_ids"][0, 1:].tolist()]
    assert batch["labels"][1].tolist() == [-100, *batch["input_ids"][1, 1:3].tolist(), *[-100] * 8]
    assert num_targets(batch) == 12


@pytest.mark.parametrize("max_length", [3, 5, 128])
def test_perplexity_does_not_depend_on_batches(tokenizer, model, max_length):
    prepared = prepare(tokenizer, model, max_length=max_length)
    blocks = list(prepared.splits["validation"])
    batches = [prepared.collate(blocks[start : start + 2]) for start in range(0, len(blocks), 2)]
    values = evaluate(model, batches, task=CausalLM(), metrics=prepared.all_metrics).metrics
    surprises, right = [], []
    for block in blocks:
        ids = block["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        for place in range(len(ids) - 1):
            surprises.append(-logits[place].log_softmax(0)[ids[place + 1]].item())
            right.append(logits[place].argmax().item() == ids[place + 1])
    assert len(surprises) == 14 - len(blocks)
    assert values["perplexity"] == pytest.approx(math.exp(sum(surprises) / len(surprises)), rel=1e-5)
    assert values["accuracy"] == pytest.approx(sum(right) / len(right))
    # The loss is the logarithm of the perplexity.
    with torch.no_grad():
        losses = [model(**batch).loss.item() * num_targets(batch) for batch in batches]
    assert math.exp(sum(losses) / sum(map(num_targets, batches))) == pytest.approx(values["perplexity"], rel=1e-5)


def test_blocks_fit_the_positions_of_the_model(tokenizer, model):
    assert [len(ids) for ids in prepare(tokenizer, model, max_length=500).splits["train"]["input_ids"]] == [14]
    short = GPT2Config(vocab_size=260, n_positions=8)
    with torch.device("meta"):
        reader = GPT2LMHeadModel(short)
    assert [len(ids) for ids in prepare(tokenizer, reader).splits["train"]["input_ids"]] == [8, 6]


def test_samples_continue_prompts_or_validation_text(tokenizer, model):
    prepared = prepare(tokenizer, model, max_length=8)
    samples = CausalLM(num_samples=5, sample_length=6).write_samples(model, tokenizer, prepared.splits)
    assert [sample["prompt"] for sample in samples] == ["abca", "d</s>b"]
    asked = CausalLM(prompts=["abc", "b" * 40], sample_length=6)
    samples = asked.write_samples(model, tokenizer, prepared.splits)
    assert asked.write_samples(model, tokenizer, prepared.splits) == samples
    # The model has 24 positions.
    assert [sample["prompt"] for sample in samples] == ["abc", "b" * 18]
    for sample in samples:
        # A token is a byte, which may be part of a character, or a special token in angle brackets.
        assert len(re.sub("<[^>]+>", "#", sample["written"])) <= 6


def test_messages_are_answered_in_the_template_of_the_model_without_sampling(tokenizer, model):
    tokenizer = train_tokenizer(TABLE, size=260, frame="none")
    task = CausalLM(prompts=["abc"], sample_length=6, chat=True)
    with pytest.raises(ValueError, match=r"task\.chat=true"):
        task.load_processor(NewModel("gpt2", config={"vocab_size": 260}), model, DatasetDict(train=TABLE))
    tokenizer.chat_template = "{% for message in messages %}a{{ message['content'] }}d{% endfor %}"
    [sample] = task.write_samples(model, tokenizer, DatasetDict())
    ids = tokenizer("aabcd", return_tensors="pt")
    written = model.generate(**ids, do_sample=False, max_new_tokens=6, pad_token_id=tokenizer.pad_token_id)
    answer = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert sample == {"prompt": "abc", "written": answer}
    with pytest.raises(ValueError, match=r"task\.chat=true"):
        CausalLM(chat=True)


def test_a_trained_encoder_is_a_decoder_only_if_that_is_meant(tmp_path):
    folder = make_model_folder(tmp_path / "model")
    for changes, refused in (({}, True), ({"is_decoder": True}, False)):
        source = Pretrained(str(folder), config=changes)
        with pytest.raises(ValueError, match="is an encoder") if refused else nullcontext():
            CausalLM().load_processor(source, make_meta_model(source, CausalLM.auto_class), DatasetDict())


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "roberta", "electra"])
def test_no_model_sees_the_next_token(model_type, tokenizer):
    """Encoders need is_decoder=True for a causal mask."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = NewModel(model_type, config={"vocab_size": 260, **sizes})
    prepared = prepare(tokenizer, make_meta_model(source, CausalLM.auto_class))
    model = source.load(CausalLM.auto_class, **prepared.config).eval()
    one, other = torch.tensor([[10, 11, 12, 13]]), torch.tensor([[10, 11, 12, 99]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=one).logits[:, :3], model(input_ids=other).logits[:, :3])
