"""The benchmark of memory, on a tiny decoder, and its formula."""

import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import memory

pytest.importorskip("peft", reason="the package peft is not installed")


@pytest.mark.runs
@pytest.mark.parametrize("mode", memory.MODES)
def test_each_mode_trains_what_it_says(mode, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "restart_peak", lambda: None)
    config = LlamaConfig(
        vocab_size=45, hidden_size=32, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    capsys.readouterr()
    memory.main(["--model", str(tmp_path), "--mode", mode, "--checkpoints", "--tokens", "8", "--batch", "2"])
    trained = json.loads(capsys.readouterr().out)["trained"]
    sizes = memory.sizes_of(LlamaForCausalLM, config)
    gates = 2 * (4 + 4)
    expected = {"full": sizes.parameters, "adapters": sizes.adapters, "gates": 0}[mode]
    assert sizes.parameters == model.num_parameters()
    assert trained == expected + gates


def test_the_formula_is_for_larger_decoders_and_says_what_does_not_fit():
    table = memory.large_table(tokens=2048)
    assert table[0].startswith("By the formula")
    [line] = [line for line in table[2].splitlines() if line.startswith("| 8B |")]
    assert "8.03 billion" in line
    assert line.count("(too much)") == 1
