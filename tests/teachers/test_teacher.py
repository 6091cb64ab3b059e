"""A teacher in a loop: its outputs, the labels of its logits, and models that cannot learn from it."""

import copy

import peft
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import gating
from gating.errors import InputError
from gating.teachers.teacher import OpenTeacher
from tests.support.tiny_models import randomize
from tests.support.tiny_run import make_model_folder

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = torch.tensor([[5, 6, 7, 8], [5, 9, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
BATCH = {"input_ids": TOKENS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}
HIDDEN = gating.Distillation(weight=0.0, hidden_weight=1.0)


def bert(*, vocab_size=20, **settings):
    return filled(BertForSequenceClassification(BertConfig(vocab_size=vocab_size, **{**SIZES, **settings})))


def llama():
    return filled(LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=2, **SIZES)))


def t5():
    config = T5Config(vocab_size=20, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return filled(T5ForConditionalGeneration(config))


def filled(model):
    randomize(model)
    return model


MODELS = {"bert": (bert, BATCH), "llama": (llama, {**BATCH, "labels": TOKENS}), "t5": (t5, {**BATCH, "labels": TOKENS})}


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_with_open_gates_is_at_no_distance_and_learns_once_it_differs(name):
    make, batch = MODELS[name]
    model = make().eval()
    teacher = gating.Teacher(copy.deepcopy(model), distillation=gating.Distillation(weight=1.0, hidden_weight=1.0))
    teacher.check(model, batch)
    gating.inject_gates(model)
    with torch.no_grad():
        model.head_gates.log_alpha.fill_(20.0)
    outputs = model(**batch, **teacher.options)
    assert teacher.loss(outputs.loss, outputs, batch).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        model.head_gates.log_alpha[0] = -20.0
    outputs = model(**batch, **teacher.options)
    loss = teacher.loss(outputs.loss, outputs, batch)
    loss.backward()
    assert loss > 1e-4
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_padding_counts_neither_in_logits_of_tokens_nor_in_hidden_states(name):
    make, batch = MODELS[name]
    labels = batch["labels"].masked_fill(MASK == 0, -100) if batch["labels"].dim() == 2 else batch["labels"]
    padded = {**batch, "labels": labels}
    alone = {key: value[1:, :2] if value.dim() == 2 else value[1:] for key, value in padded.items()}
    model, losses = make().eval(), []
    other = make().eval()
    randomize(other, seed=1)
    teacher = gating.Teacher(other, distillation=gating.Distillation(weight=1.0, hidden_weight=1.0))
    for one in ({key: value[1:] for key, value in padded.items()}, alone):
        outputs = model(**one, **teacher.options)
        losses.append(teacher.loss(outputs.loss, outputs, one))
    torch.testing.assert_close(*losses)


def test_labels_of_a_decoder_are_those_of_the_next_position():
    labels = torch.tensor([[-100, -100, 7, 8]])
    assert gating.Teacher(llama()).labels({"labels": labels}).tolist() == [[-100, 7, 8, -100]]
    lora = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"]))
    assert gating.Teacher(lora).labels({"labels": labels}).tolist() == [[-100, 7, 8, -100]]
    opened = OpenTeacher(model := llama(), gating.inject_gates(model))
    assert gating.Teacher(opened).labels({"labels": labels}).tolist() == [[-100, 7, 8, -100]]
    assert gating.Teacher(llama()).labels({"shift_labels": labels}) is labels
    for model in (bert(), t5()):
        assert gating.Teacher(model).labels({"labels": labels}) is labels
    assert gating.Teacher(bert()).labels({}) is None


@pytest.mark.filterwarnings("ignore:.*loss_type")
@pytest.mark.parametrize("name", ["gpt2", "openai-gpt", "xlnet", "xlm", "bart", "bert"])
def test_positions_are_compared_that_the_loss_of_the_model_counts(name):
    """A label at one position has a gradient at the logits that it teaches."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8} if name == "bart" else {}
    config = AutoConfig.for_model(name, vocab_size=20, is_decoder=True)
    config.update(sizes)
    model = filled(AutoModelForCausalLM.from_config(config)).eval()
    labels = torch.tensor([[-100, -100, 7, -100]])
    outputs = model(input_ids=TOKENS[:1], labels=labels)
    outputs.logits.retain_grad()
    outputs.loss.backward()
    counted = outputs.logits.grad.abs().sum(-1) > 0
    assert torch.equal(gating.Teacher(model).labels({"labels": labels}) != -100, counted)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_model_in_evaluation_whatever_its_mode(name):
    make, batch = MODELS[name]
    model = make()
    teacher = gating.Teacher(model.train())
    expected = model.eval()(**batch).logits
    model.train()
    torch.testing.assert_close(teacher(batch)["logits"], expected)
    # Only the decoder of an encoder-decoder reads its labels.
    assert ("loss" in teacher(batch)) == (name == "t5")


def test_hidden_states_correspond_where_layers_had_left_before():
    model = filled(LlamaForCausalLM(LlamaConfig(vocab_size=20, **{**SIZES, "num_hidden_layers": 6}))).eval()
    gating.prune_layers(model, [1, 2])
    teacher, batch = gating.Teacher(copy.deepcopy(model), distillation=HIDDEN), {**BATCH, "labels": TOKENS}
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=16)
    with torch.no_grad():
        for block, values in zip(gates.blocks(), gates.log_alpha.split(gates.block_sizes), strict=True):
            values[:] = -20.0 if block.name.startswith("layers.2.") else 20.0

    def distance():
        outputs = model(**batch, **teacher.options)
        return teacher.loss(0 * outputs.loss, outputs, batch, model=model)

    masked = distance()
    assert gating.finalize(model, gates).kept_layers == {"layers": (0, 3, 5)}
    torch.testing.assert_close(distance(), masked)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_answers_of_several_numbers_or_labels_are_no_classes(problem):
    """A shift of all logits changes no class."""
    model = bert(num_labels=3, problem_type=problem).eval()
    shifted = copy.deepcopy(model)
    shifted.classifier.bias.data += 5
    teacher = gating.Teacher(shifted, distillation=gating.Distillation(weight=1.0))
    batch = {**BATCH, "labels": torch.ones(2, 3)}
    outputs = model(**batch)
    assert teacher.loss(outputs.loss, outputs, batch) > 0.1


def test_a_folder_is_loaded(tmp_path):
    model = bert().eval()
    model.save_pretrained(tmp_path / "dense")
    assert torch.equal(gating.Teacher(tmp_path / "dense")(BATCH)["logits"], model(**BATCH).logits)
    with pytest.raises(FileNotFoundError):
        gating.Teacher(tmp_path / "nothing")


def test_the_tokenizer_in_a_folder_is_that_of_the_model(tmp_path):
    folder = make_model_folder(tmp_path / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), bert(vocab_size=45)
    gating.Teacher(folder).check(model, BATCH, tokenizer=tokenizer)
    words = (folder / "vocab.txt").read_text().split()
    (folder / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]))
    other = BertTokenizer(vocab=str(folder / "vocab.txt"))
    with pytest.raises(InputError, match="token 'word0'"):
        gating.Teacher(folder).check(model, BATCH, tokenizer=other)


def test_models_that_cannot_be_compared_are_refused():
    model = bert()
    with pytest.raises(InputError, match=r"copy\.deepcopy\(model\)"):
        gating.Teacher(model).check(model, BATCH)
    named = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    # Names that transformers has made up say nothing.
    gating.Teacher(bert(**named)).check(model, BATCH)
    with pytest.raises(ValueError, match="this data has no, yes"):
        gating.Teacher(bert()).check(bert(**named), BATCH)
    with pytest.raises(InputError, match="T5ForConditionalGeneration"):
        gating.Teacher(t5()).check(model, {name: BATCH[name] for name in ("input_ids", "attention_mask")})
    with pytest.raises(InputError, match="same task"):
        gating.Teacher(llama()).check(model, {name: BATCH[name] for name in ("input_ids", "attention_mask")})
