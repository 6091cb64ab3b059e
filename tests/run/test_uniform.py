"""Runs whose layers all keep equally many units export a stock model of transformers where its configuration can."""

import json

import pytest
import transformers

import gating
from tests.run.test_train import run_here
from tests.support.tiny_run import make_inputs


@pytest.mark.runs
def test_neurons_alone_give_a_stock_model_and_bert_heads_a_compact_one(tmp_path, capsys):
    inputs = [line for line in make_inputs(tmp_path) if not line.startswith("objective.")]
    uniform = [*inputs, "objective.uniform=true", "gates.group_size=16"]
    compact = tmp_path / "run" / "compact"
    neurons = [*uniform, "gates.units=neurons", "objective.num_neurons=96"]
    run_here(neurons, tmp_path / "run")
    config = json.loads((compact / "config.json").read_text())
    assert (config["intermediate_size"], "head_gating" in config) == (32, False)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(compact)
    assert [block.num_neurons for block in gating.find_feed_forward_blocks(model)] == [32] * 3
    assert "stock model" not in capsys.readouterr().out

    both = ["objective.num_heads=6", "objective.num_neurons=96"]
    run_here([*uniform, "gates.units=[heads,neurons]", *both], tmp_path / "both")
    printed = capsys.readouterr().out
    assert "no sizes in BertConfig give" in printed
    assert "A compact folder (stock=False) loads with trust_remote_code=True." in printed
    loaded = gating.load_compact(tmp_path / "both" / "compact")
    assert [block.num_heads for block in gating.find_attention_blocks(loaded)] == [2] * 3
