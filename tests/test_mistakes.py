"""Mistakes that would cost hours or show a wrong number: a sentence with the word that matters, nothing changed."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, PreTrainedModel

import gating
from gating.data.tables import read_file
from gating.errors import explain, is_input_error
from gating.pruning.latency import TimeBudget
from tests.support.family_models import FAMILIES
from tests.support.interruptions import end_of
from tests.support.tiers import first_of
from tests.support.tiny_models import NUM_HEADS, NUM_LAYERS, hooks_of, state_of
from tests.support.tiny_run import write_table
from tests.support.tiny_sentences import make_sentence_inputs

# Settings of a run, which is refused before it writes anything.

SHARDED = "trainer=fsdp trainer.devices=2 trainer.precision=32-true"
SETTINGS = {
    "objective.num_heads=0": "num_heads=0",
    "objective.num_heads=13": "12 heads",
    "objective.speedup=1.5": "either speedup",
    "objective.num_heads=null objective.speedup=100": "cannot be reached",
    "objective.min_per_layer=2": "min_per_layer=2",
    "objective.num_heads=5 model.name=llama": "4 or 6",
    "+overwrit=true": "no setting overwrit",
    "recovery=1.5": "recovery=1.5",
    "recovery=null gates.units=both": "units='both'",
    "exports=[onxx]": "exports",
    "resume=nowhere": "nowhere",
    "output_dir=empty.tsv/out": "no folder",
    "paths.checkpoints=empty.tsv/here": "no folder",
    "trainer.max_steps=0": "nothing to train",
    "trainer.devices=20 trainer.strategy=ddp": "16 validation",
    "trainer=ddp trainer.strategy=deepspeed_stage_3": "trainer=fsdp",
    f"{SHARDED} compile=true": "compile=true",
    f"{SHARDED} optimizer=adafactor": "trainer=ddp",
    "latency.length=100000": "512 tokens",
    "data.train=empty.tsv": "empty.tsv",
    "data.train=no_label.tsv": "no column 'label'",
    "data.validation=new_label.tsv": "'third'",
    "data.text_column=body": "'body'",
    "data.text_column=label": "different columns",
    "data.stride=3": "data.stride",
    "data.batch_size=0": "batch_size=0",
    "model.name=unknown_family": "BigBird",
    "model.name=images_only": "this task",
    "task=token_classification model=scratch model.model_type=bert": "model.tokenizer",
    "distillation=logits distillation.teacher=MODEL": "LABEL_0",
    "distillation=logits distillation.teacher=images_only": "distillation.teacher=",
    "task=token_classification": "tags in row",
    "task=regression": "task=sequence_classification",
    "task.metrics=[f2]": "'f2'",
    "optimizer.lr=-1": "lr",
}


def write_odd_inputs() -> None:
    """Write the files and folders that the settings name into the current folder."""
    Path("empty.tsv").write_text("")
    Path("no_label.tsv").write_text("text\nword1\n")
    write_table(Path("new_label.tsv"), rows=6, seed=0, labels=("first", "second", "third"))
    for name, text in {
        "unknown_family": '{"model_type": "big_bird", "hidden_size": 12, "num_attention_heads": 2}',
        "images_only": '{"model_type": "vit"}',
    }.items():
        Path(name).mkdir()
        (Path(name) / "config.json").write_text(text)


def assert_refused(inputs: list[str], given: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fail unless a run in the current folder ends with one sentence, and has written nothing."""
    model = next(line for line in inputs if line.startswith("model.name=")).partition("=")[2]
    kept = [line for line in inputs if not (line.startswith("model") and "model=scratch" in given)]
    before = sorted(Path().rglob("*"))
    assert end_of(Path("out"), kept, *given.replace("MODEL", model).split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert word in error
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("given", first_of(SETTINGS, every=8))
def test_a_setting_is_refused_before_anything_is_written(given, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_odd_inputs()
    if "llama" in given:
        for path in Path(next(line for line in inputs if line.startswith("model.name=")).partition("=")[2]).iterdir():
            Path("llama").mkdir(exist_ok=True)
            if path.suffix != ".safetensors":
                (Path("llama") / path.name).write_bytes(path.read_bytes())
        LlamaConfig(**FAMILIES["llama"].arguments).save_pretrained("llama")
    assert_refused(inputs, given, SETTINGS[given], capsys)


SENTENCES = {
    "distillation=logits": "task.teacher",
    "task.teacher=none": "task.teacher=",
    "task.teacher=./nowhere": "task.teacher=./nowhere",
    "task.loss=cosine": "pairs",
    "task.metrics=[ndcg]": "'ndcg'",
    "task.negations=0.1": "form",
    "model.tokenizer=MODEL": "model.tokenizer",
    "data.train=nowhere.txt": "nowhere.txt",
}


@pytest.mark.runs
@pytest.mark.parametrize("given", SENTENCES)
def test_a_setting_of_embeddings_is_refused(given, tmp_path_factory, tmp_path, monkeypatch, capsys):
    inputs = make_sentence_inputs(tmp_path_factory.mktemp("sentences"))
    monkeypatch.chdir(tmp_path)
    assert_refused(inputs, given, SENTENCES[given], capsys)


# Files of data.

FILES = {
    "header.csv": ("text,label\n", "no data"),
    "odd.xlsx": ("x", ".parquet"),
    "plain.txt": ("text,label\na,x\n", "data=text"),
    "null.json": ("null", "JSON"),
    "comma.csv": ("text,label\nHello, world,x\nYes, sir,y\n", "3 fields"),
    "longer.csv": ("text,label\na,x\nb,c,y\n", "line 3"),
    "europe.csv": ("text;label\nHello, you;x\n", "in place of ';'"),
    "commas.tsv": ("text,label\nHello,x\n", "in place of ','"),
    "noise.parquet": ("noise", "cannot be read"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_table_is_named_with_its_setting(name, tmp_path):
    content, word = FILES[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(gating.errors.InputError) as caught:
        read_file("test", str(tmp_path / name))
    assert f"data.test={tmp_path / name}" in str(caught.value)
    assert word in str(caught.value)


# Calls in Python. Each gets a model with gates for its 12 heads and 144 neurons in groups of 8, open by half.

TOTAL = NUM_LAYERS * NUM_HEADS


def wrapped(model: nn.Module) -> nn.Module:
    wrapper = type("DistributedDataParallel", (nn.Module,), {})()
    wrapper.module = model
    return wrapper


def dispatched(model: nn.Module) -> nn.Module:
    return dispatch_model(copy.deepcopy(model), {"": "cpu"}, force_hooks=True)


def other_labels(model: PreTrainedModel) -> PreTrainedModel:
    config = BertConfig.from_dict(model.config.to_dict())
    config.num_labels = 7
    return BertForSequenceClassification(config)


def quantized(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    linear = changed.bert.encoder.layer[0].attention.self.query
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)
    return changed


def ungated(model: PreTrainedModel) -> PreTrainedModel:
    model.head_gates.remove()
    return model


NO_GATES = torch.zeros(30, dtype=torch.bool)
CALLS: dict[str, tuple[Callable, str]] = {
    "no heads": (lambda model, gates: gating.finalize(model, gates, num_heads=0), "num_heads=0"),
    "too many heads": (lambda model, gates: gating.finalize(model, gates, num_heads=TOTAL + 1), "12 heads"),
    "no number of heads": (lambda model, gates: gating.finalize(model, gates, num_heads=4.0), "num_heads"),
    "neurons between groups": (lambda model, gates: gating.finalize(model, gates, num_neurons=20), "16 or 24"),
    "nothing left": (lambda model, gates: gating.finalize(model, gates, kept=NO_GATES), "nothing would be left"),
    "a mask of another shape": (lambda model, gates: gating.finalize(model, gates, kept=NO_GATES[1:]), "(30,)"),
    "no gates": (lambda model, _: gating.finalize(model, None), "not those of"),
    "a batch that does not fit": (
        lambda model, gates: gating.finalize(model, gates, num_heads=5, probe={"words": torch.zeros(1, 3)}),
        "probe=",
    ),
    "gates twice": (lambda model, _: gating.inject_gates(model), "already"),
    "removal beside gates": (lambda model, _: gating.prune_heads(model, {0: [1]}), "gates"),
    "layers beside gates": (lambda model, _: gating.prune_layers(model, [1]), "gates"),
    "saved with gates": (lambda model, _: gating.save_compact(model, "saved"), "gates"),
    "a budget twice": (lambda _, gates: gating.ExactBudget(num_heads=4, keep=0.5).attach(gates), "either num_heads"),
    "percents": (lambda _, gates: gating.ExactBudget(keep=25).attach(gates), "keep=25"),
    "a budget of too few": (lambda _, gates: gating.ExactBudget(num_heads=2, min_per_layer=1).attach(gates), "2 heads"),
    "a budget of no part": (lambda _, gates: gating.ExactBudget(num_heads={"middle": 2}).attach(gates), "middle"),
    "a cost without timings": (lambda _, gates: gating.ExactBudget(keep=0.5, cost="latency").attach(gates), "latency"),
    "a teacher of other classes": (lambda model, _: gating.Teacher(other_labels(model)).check(model, {}), "LABEL_6"),
    "a layer that is not there": (lambda model, _: gating.prune_heads(ungated(model), {9: [0]}), "9"),
    "a head that is not there": (lambda model, _: gating.prune_heads(ungated(model), {0: [4]}), "4"),
    "half a head": (lambda model, _: gating.prune_heads(ungated(model), {0: [0.5]}), "0.5"),
    "neurons that are not there": (lambda model, _: gating.prune_neurons(ungated(model), {0: [99]}), "99"),
    "every layer": (lambda model, _: gating.prune_layers(ungated(model), [0, 1, 2]), "layer"),
    "a temperature of zero": (lambda model, _: gating.inject_gates(ungated(model), temperature=0), "temperature"),
    "an unknown unit": (lambda model, _: gating.inject_gates(ungated(model), units="head"), "'head'"),
    "a block that is not there": (lambda model, _: gating.inject_gates(ungated(model), exclude=["x"]), "'x'"),
    "a wrapped model": (lambda model, _: gating.inject_gates(wrapped(ungated(model))), "model.module"),
    "a model on several devices": (lambda model, _: gating.inject_gates(dispatched(ungated(model))), "device_map"),
    "a speedup as text": (lambda model, _: gating.budget_for_speedup(ungated(model), {}, speedup="2"), "speedup='2'"),
    "no number of seconds": (lambda *_: TimeBudget(float("nan")), "max_seconds=nan"),
    "a step, not a share": (lambda _, gates: gating.Search(gates, gating.FixedPrice()).update(7), "progress=7"),
    "a price as text": (lambda *_: gating.FixedPrice(price="1"), "'1'"),
    "an endless temperature": (lambda *_: gating.TopK(initial_temperature=float("inf")), "inf"),
    "a quantized model": (lambda model, _: gating.prune_heads(quantized(ungated(model)), {0: [1]}), "int8"),
    "a wrapped model in a folder": (
        lambda model, _: gating.save_compact(wrapped(ungated(model)), "saved"),
        "model.module",
    ),
    "layers of a wrapped model": (lambda model, _: gating.prune_layers(wrapped(ungated(model)), [0]), "model.module"),
    "layers of what holds a model": (
        lambda model, _: gating.prune_layers(nn.ModuleDict({"inner": ungated(model)}), [0]),
        "model.get_submodule('inner')",
    ),
    "no such folder": (lambda model, _: gating.load_compact("nowhere"), "nowhere"),
    "no path": (lambda model, _: gating.load_compact(None), "NoneType"),
    "no dtype": (lambda model, _: gating.load_compact("nowhere", dtype="half a float"), "dtype='half a float'"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_refused_and_leaves_the_model_as_it_was(name, bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, word = CALLS[name]
    text, state = str(bert), state_of(bert)
    gates = gating.inject_gates(bert, units=["heads", "neurons"], group_size=8)
    gated = str(bert), hooks_of(bert)
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        call(bert, gates)
    assert is_input_error(caught.value)
    assert word in explain(caught.value)
    assert (str(bert), hooks_of(bert)) == (gated if hasattr(bert, "head_gates") else (text, 0))
    now = bert.state_dict()
    assert all(torch.equal(now[key], value) for key, value in state.items())
    assert gates.constraint is None
    assert not list(tmp_path.iterdir())
