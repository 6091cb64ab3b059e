"""Whole runs of experiment=smollm2, made small: gates on frozen weights, the model as its own teacher, and healing."""

import json

import pytest
from transformers import AutoTokenizer

import gating
from tests.run.test_language_runs import one_file
from tests.serving.decoders import make_decoder, make_tokenizer
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_models import assert_same_state, state_of

pytestmark = pytest.mark.runs

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\\n{% endfor %}"
SMALL = [
    "experiment=smollm2",
    "task.sample_length=6",
    "data.max_length=16",
    "gates.group_size=16",
    "trainer.max_steps=10",
    "recovery=0.5",
    "exports=[]",
]


@pytest.fixture
def inputs(tmp_path):
    """Return settings of a decoder with a chat template, and of a text."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model = make_decoder("Llama")
    model.generation_config.repetition_penalty = 1.5
    gating.save_compact(model, tmp_path / "model", tokenizer=tokenizer)
    (tmp_path / "play.txt").write_text("To be, or not to be. " * 200)
    return [*SMALL, *one_file(tmp_path / "play.txt"), f"model.name={tmp_path / 'model'}"]


def test_the_dense_model_answers_beside_the_compact_one_whose_folder_has_all_it_had(inputs, tmp_path):
    run_in(tmp_path / "run", inputs)
    samples = [json.loads(line) for line in (tmp_path / "run" / "report" / "samples.jsonl").read_text().splitlines()]
    assert [list(sample) for sample in samples] == [["prompt", "before", "written"]] * 3
    assert samples[0]["prompt"] == "What is a llama?"
    compact = gating.load_compact(tmp_path / "run" / "compact")
    assert compact.generation_config.repetition_penalty == 1.5
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "compact").chat_template == TEMPLATE
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["macs"] < 0.8 * numbers["macs_before"]


def test_an_interrupted_run_ends_as_one_that_was_not(inputs, tmp_path):
    run_in(tmp_path / "whole", inputs)
    for step in (3, 8):
        with pytest.raises(Interrupted), at_batch(step, interrupt):
            run_in(tmp_path / "run", inputs, "resume=auto", "trainer.val_check_interval=1")
    run_in(tmp_path / "run", inputs, "resume=auto", "trainer.val_check_interval=1")
    whole, run = (gating.load_compact(tmp_path / name / "compact") for name in ("whole", "run"))
    assert_same_state(run, state_of(whole))
    texts = [(tmp_path / name / "report" / "samples.jsonl").read_text() for name in ("whole", "run")]
    assert texts[0] == texts[1]
