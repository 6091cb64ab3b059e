"""Whole runs of the tasks that read and write text, from the configurations of experiments, made small."""

import json
import math
import os
import random
from pathlib import Path

import pytest
import sacrebleu
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import gating
import train
from gating.data.sources import load_files, load_text
from gating.models.sources import NewModel, make_meta_model
from gating.pruning.measure import count_heads_by_kind
from gating.tasks import CausalLM, Seq2Seq
from tests.support.family_models import FAMILIES, SEQ2SEQ, T5
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.outcome import Outcome
from tests.support.tiny_run import ROOT, WORDS, compose_settings
from tests.support.versions import needs_marian
from tests.tasks.test_tasks import SETTINGS

pytestmark = pytest.mark.runs

# The data of experiments: the folder that the variable names, or one beside this checkout.
DATA = Path(os.environ.get("HEAD_GATING_DATA", ROOT.parent / "shared" / "data"))
SMALL_GPT2 = [
    "experiment=shakespeare-gpt2",
    "model.config.vocab_size=300",
    "model.config.n_embd=32",
    "data.max_length=32",
]
SMALL_LLAMA = [
    "task.sample_length=8",
    "experiment=shakespeare-llama",
    "model.config.vocab_size=300",
    "model.config.hidden_size=64",
    "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=2",
    "data.max_length=32",
]
SMALL_MARIAN = [
    "experiment=multi30k-marian",
    "model.config.vocab_size=300",
    "model.config.d_model=32",
    "model.config.encoder_layers=2",
    "model.config.decoder_layers=2",
    "model.config.encoder_ffn_dim=32",
    "model.config.decoder_ffn_dim=32",
    "data.max_length=24",
    "data.max_target_length=12",
]
WANTED = {"encoder": 5, "decoder": 3, "cross": 6}
KINDS = [f"objective.num_heads.{kind}={number}" for kind, number in WANTED.items()]


@pytest.fixture(scope="module")
def play(tmp_path_factory) -> Path:
    """Write a text of 300 lines."""
    rng = random.Random(0)
    lines = [
        f"{rng.choice(('ROMEO', 'JULIET'))}: {' '.join(rng.choices(WORDS, k=rng.randint(2, 7)))}.\n" for _ in range(300)
    ]
    path = tmp_path_factory.mktemp("play") / "play.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[str]:
    """Write pairs in which the second text is the first one backwards."""
    folder, settings = tmp_path_factory.mktemp("pairs"), []
    for seed, (split, rows) in enumerate({"train": 64, "validation": 12, "test": 12}.items()):
        rng = random.Random(seed)
        texts = [rng.choices(["ein", "Hund", "lief", "über", "Gras"], k=rng.randint(2, 5)) for _ in range(rows)]
        lines = ["text_a\ttext_b", *(f"{' '.join(text)}\t{' '.join(text[::-1])}" for text in texts)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings.append(f"data.{split}={folder / split}.tsv")
    return settings


def run(overrides: list[str], folder: Path, *, budget: str = "objective.num_heads=4") -> tuple[dict, Path]:
    """Run in this process, and return the numbers and the folder of the compact model."""
    settings = [setting for setting in SETTINGS if not setting.startswith("objective.")]
    train.run(compose_settings([*settings, *overrides, *budget.split(), f"output_dir={folder}"]))
    return json.loads((folder / "metrics.json").read_text()), folder / "compact"


def one_file(path: Path) -> list[str]:
    return ["data=text", f"data.train={path}"]


def perplexity_of(compact: Path, text: str, *, length: int) -> float:
    """Read a text in blocks with the folder alone."""
    model, tokenizer = gating.load_compact(compact).eval(), AutoTokenizer.from_pretrained(compact)
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    losses, count = 0.0, 0
    for block in ids.split(length):
        if len(block) > 1:
            with torch.no_grad():
                loss = model(input_ids=block[None], labels=block[None]).loss.item()
            losses, count = losses + loss * (len(block) - 1), count + len(block) - 1
    return math.exp(losses / count)


def test_a_new_gpt2_learns_a_single_file_and_writes(play, tmp_path, capsys):
    numbers, compact = run([*SMALL_GPT2, *one_file(play)], tmp_path / "out")
    assert (numbers["num_heads"], numbers["num_heads_before"]) == (4, 32)
    lines = play.read_text().splitlines(keepends=True)
    assert numbers["test/perplexity"] == pytest.approx(
        perplexity_of(compact, "".join(lines[round(0.95 * len(lines)) :]), length=32), rel=1e-4
    )
    samples = [json.loads(line) for line in (tmp_path / "out" / "report" / "samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == ["ROMEO:", "JULIET:"]
    assert "Written by the compact model" in capsys.readouterr().out
    assert "<dd>JULIET:</dd>" in (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")
    model, tokenizer = gating.load_compact(compact), AutoTokenizer.from_pretrained(compact)
    inputs = tokenizer("ROMEO: word1", return_tensors="pt")
    cached, uncached = (
        model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, uncached)
    assert model.config.eos_token_id == tokenizer.eos_token_id == 2


@pytest.mark.runs
def test_a_new_llama_keeps_whole_groups_and_its_text_is_in_wandb(play, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = [*SMALL_LLAMA, *one_file(play), "trainer.max_steps=4", "trainer.val_check_interval=4", "callbacks=none"]
    train.guarded_run(compose_settings([*overrides, "trainer.accelerator=cpu", f"output_dir={tmp_path / 'out'}"]))
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (numbers["num_heads"], numbers["num_heads_before"]) == (8, 16)
    model = gating.load_compact(tmp_path / "out" / "compact")
    for block in gating.find_attention_blocks(model):
        assert block.num_heads == 2 * block.num_key_value_heads
    (table,) = (tmp_path / "out" / "wandb").rglob("samples*.table.json")
    assert [row[0] for row in json.loads(table.read_text())["data"]] == ["ROMEO:", "JULIET:"]


def test_a_run_ends_with_files_for_llama_cpp(play, tmp_path):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    data = [*one_file(play), "trainer.max_steps=4"]
    run([*SMALL_LLAMA, *data, "exports=[gguf,gguf-q8_0]"], tmp_path / "out")
    files = [tmp_path / "out" / folder / "compact.gguf" for folder in ("compact-gguf", "compact-gguf-q8_0")]
    assert files[0].stat().st_size > files[1].stat().st_size
    run([*SMALL_LLAMA, *data, "overwrite=true"], tmp_path / "out")
    assert not any(file.exists() for file in files)


def test_a_model_that_llama_cpp_does_not_run_is_refused_before_training(play, tmp_path, capsys):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    settings = [*SMALL_GPT2, *one_file(play), "exports=[gguf]", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings(settings))
    assert "Leave gguf out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_other_decoders_are_tried_by_their_folder_alone(family, play, tmp_path):
    """Query groups, one group for all heads, and embeddings that are shared with the output or not."""
    folder = tmp_path / "model"
    sizes = {name: value for name, value in FAMILIES[family].arguments.items() if name != "head_dim"}
    source = NewModel(family, config={**sizes, "vocab_size": 290})
    splits = load_text(train=str(play)).splits
    CausalLM().load_processor(source, make_meta_model(source, AutoModelForCausalLM), splits).save_pretrained(folder)
    dense = source.load(AutoModelForCausalLM)
    dense.save_pretrained(folder)
    data = [*one_file(play), "task=causal_lm", "data.max_length=48", "trainer.max_steps=4"]
    numbers, compact = run(["model=pretrained", f"model.name={folder}", *data], tmp_path / "out")
    assert numbers["num_heads"] == 4
    again = gating.load_compact(compact)
    assert again.config.tie_word_embeddings == dense.config.tie_word_embeddings
    assert again.num_parameters() == numbers["num_parameters"]


@pytest.mark.first
def test_a_new_bert_learns_hidden_words(play, tmp_path):
    sizes = "{vocab_size:300,hidden_size:32,num_hidden_layers:2,num_attention_heads:4,intermediate_size:32}"
    model = ["model=scratch", "model.model_type=bert", f"+model.config={sizes}", "data.max_length=32"]
    numbers, compact = run([*model, "task=masked_lm", *one_file(play)], tmp_path / "out")
    assert numbers["num_heads"] == 4
    assert type(gating.load_compact(compact)).__name__ == "BertForMaskedLM"
    assert AutoTokenizer.from_pretrained(compact).mask_token_id == 3


@pytest.mark.runs
@needs_marian
def test_a_new_marian_keeps_the_budget_of_each_kind_of_attention(pairs, tmp_path):
    settings = [
        "optimizer.lr=3e-3",
        "trainer.max_steps=40",
        "trainer.log_every_n_steps=1",
        "objective.schedule.start=0",
    ]
    numbers, compact = run([*SMALL_MARIAN, *pairs, *KINDS, *settings], tmp_path / "out", budget="")
    model, tokenizer = gating.load_compact(compact), AutoTokenizer.from_pretrained(compact)
    assert count_heads_by_kind(model) == WANTED
    assert {kind: numbers[f"num_heads/{kind}"] for kind in WANTED} == WANTED
    assert [numbers[f"num_heads_before/{kind}"] for kind in WANTED] == [16, 16, 16]
    assert "search/val/bleu" not in numbers
    rows = [line.split("\t") for line in Path(pairs[2].partition("=")[2]).read_text().splitlines()[1:]]
    written = []
    for source, _ in rows:
        ids = model.generate(**tokenizer(source, return_tensors="pt"), max_new_tokens=12, do_sample=False)
        written.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    right = [[target for _, target in rows]]
    assert 100 * numbers["test/bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, right).score)
    assert 100 * numbers["test/chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, right).score)
    header, *lines = [line.split(",") for line in (tmp_path / "out" / "csv" / "metrics.csv").read_text().splitlines()]
    last = [dict(zip(header, line, strict=True)) for line in lines if line[header.index("gates/encoder/open")]][-1]
    # Not yet the kept ones, which have the largest locations.
    assert sum(float(last[f"gates/{kind}/open"]) for kind in WANTED) == float(last["gates/open"])
    samples = (tmp_path / "out" / "report" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["right"] for line in samples] == right[0][:3]


@pytest.mark.parametrize(("family", "arguments", "rival"), [("t5", T5, "importance"), ("bart", SEQ2SEQ, "topk")])
def test_other_encoder_decoders_are_tried_by_their_folder_alone(family, arguments, rival, pairs, tmp_path):
    folder = tmp_path / "model"
    sizes = {name: value for name, value in arguments.items() if not name.startswith(("decoder_start", "forced"))}
    source = NewModel(family, config={**sizes, "vocab_size": 280})
    splits = load_files(train=pairs[0].partition("=")[2], validation=pairs[1].partition("=")[2]).splits
    Seq2Seq().load_processor(source, make_meta_model(source, AutoModelForSeq2SeqLM), splits).save_pretrained(folder)
    source.load(AutoModelForSeq2SeqLM).save_pretrained(folder)
    data = [
        "task=seq2seq",
        "data=pairs",
        *pairs,
        "data.max_target_length=8",
        "trainer.max_steps=4",
        f"objective={rival}",
    ]
    budget = f"objective.num_heads={{encoder:{WANTED['encoder']},cross:{WANTED['cross']}}}"
    _, compact = run(["model=pretrained", f"model.name={folder}", *data], tmp_path / "out", budget=budget)
    heads = count_heads_by_kind(gating.load_compact(compact))
    # The kind that was left out keeps its twelve.
    assert heads == {**WANTED, "decoder": 12}


@needs_marian
def test_the_dense_run_of_an_experiment_needs_no_other_settings(pairs, tmp_path):
    numbers, _ = run([*SMALL_MARIAN, *pairs, "objective=none", "trainer.max_steps=2"], tmp_path / "out", budget="")
    assert numbers["num_heads"] == 48
    assert numbers["dense/test/bleu"] == numbers["test/bleu"]


def test_adapters_learn_the_next_token_and_are_in_the_compact_model(play, tmp_path):
    _, folder = run(
        [*SMALL_GPT2, *one_file(play), "objective=none", "trainer.max_steps=2"], tmp_path / "first", budget=""
    )
    model = ["experiment=shakespeare-gpt2-hub", f"model.name={folder}", "data.max_length=32", "adapters=lora"]
    numbers, compact = run([*model, *one_file(play)], tmp_path / "out")
    assert numbers["num_heads"] == 4
    dense, adapted = gating.load_compact(folder), gating.load_compact(compact)
    assert torch.equal(dense.transformer.wte.weight, adapted.transformer.wte.weight)


RESUMED = {
    "marian": [*SMALL_MARIAN, *KINDS],
    "bert": [
        *("model=scratch", "model.model_type=bert", "task=masked_lm", "data.max_length=32"),
        "+model.config={vocab_size:300,hidden_size:32,num_hidden_layers:2,num_attention_heads:4,intermediate_size:32}",
    ],
}


@pytest.mark.parametrize("name", ["bert", pytest.param("marian", marks=needs_marian)])
def test_runs_that_are_interrupted_end_as_if_they_had_not_been(name, play, pairs, tmp_path):
    """Its own tokenizer is learned again, and the same tokens are hidden."""
    data = pairs if name == "marian" else one_file(play)
    checkpoints = ["callbacks.checkpoint.every_n_steps=2", "trainer.max_steps=8", "trainer.val_check_interval=4"]
    settings = [*RESUMED[name], *data, *checkpoints, "data.batch_size=8", "trainer.accelerator=cpu"]
    run_in(tmp_path / "whole", settings)
    for at in (4, 6):
        # In the search, and then in the recovery.
        with at_batch(at, interrupt), pytest.raises(Interrupted):
            run_in(tmp_path / "often", settings, "resume=auto")
    run_in(tmp_path / "often", settings, "resume=auto")
    comparison = Outcome.of(tmp_path / "whole").compare(Outcome.of(tmp_path / "often"))
    assert all(comparison.values()), comparison


@pytest.mark.parametrize(
    ("small", "folder"),
    [
        pytest.param(SMALL_GPT2, "tinyshakespeare", id="gpt2"),
        pytest.param(SMALL_MARIAN, "multi30k", id="marian", marks=needs_marian),
    ],
)
def test_experiments_run_on_their_data(small, folder, tmp_path):
    if not (DATA / folder).is_dir():
        pytest.skip(f"there is no {DATA / folder}; name the folder of {folder} with HEAD_GATING_DATA")
    settings = [f"paths.data={tmp_path}", "trainer.max_steps=2"]
    (tmp_path / folder).mkdir()
    for file in (DATA / folder).glob("*.t[sx][vt]"):
        beginning = file.read_text(encoding="utf-8")[:20_000]
        (tmp_path / folder / file.name).write_text(beginning[: beginning.rindex("\n") + 1], encoding="utf-8")
    numbers, _ = run([*small, *settings], tmp_path / "out", budget="")
    assert numbers["num_heads"] < numbers["num_heads_before"]
    assert numbers["test/perplexity"] > 1
