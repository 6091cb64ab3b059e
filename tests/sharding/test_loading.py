"""Sharded models that are loaded and gathered: the same as in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import gating
from gating.errors import InputError
from gating.models.adapters import LoRA
from gating.models.sources import NewModel, Pretrained, load_sharded, make_meta_model
from gating.run.prepare import _check_no_layerdrop
from gating.sharding import gather_model, shard_model
from gating.sharding.copies import copy_sharded
from tests.sharding.models import build, differences, state_of
from tests.support.in_ranks import run_in_ranks

pytestmark = pytest.mark.processes

CASES = {
    "bert with a new head": ("bert", AutoModelForSequenceClassification, {"num_labels": 5}),
    "llama": ("llama", AutoModelForCausalLM, {}),
    "llama with a new head": ("llama", AutoModelForSequenceClassification, {"num_labels": 3}),
    "gpt2, tied": ("gpt2", AutoModelForCausalLM, {}),
    "t5": ("t5", AutoModelForSeq2SeqLM, {}),
}


def load_both(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case, (family, auto_class, changes) in CASES.items():
        source = Pretrained(str(folder / family))
        torch.manual_seed(5)
        one, drawn = source.load(auto_class, **changes), torch.rand(2)
        torch.manual_seed(5)
        two = load_sharded(source, auto_class, make_meta_model(source, auto_class), **changes)
        is_same_draw = torch.equal(drawn, torch.rand(2))
        gathered = gather_model(copy_sharded(two))
        is_whole = gathered is None or (
            differences(one, gathered) == [] and gathered.config.to_dict() == one.config.to_dict()
        )
        found[case] = [differences(one, two), is_same_draw, is_whole]
    new = NewModel("gpt2", config={"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 20})
    torch.manual_seed(5)
    one = new.load(AutoModelForCausalLM)
    torch.manual_seed(5)
    two = load_sharded(new, AutoModelForCausalLM, make_meta_model(new, AutoModelForCausalLM))
    found["new"] = [differences(one, two), True, True]
    return found


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_loaded_in_shards_is_loaded_whole(num_ranks, tmp_path):
    for family in ("bert", "llama", "gpt2", "t5"):
        model = build(family)
        (model.bert if family == "bert" else model).save_pretrained(tmp_path / family)
    for found in run_in_ranks(load_both, tmp_path, num_ranks=num_ranks):
        assert found == {case: [[], True, True] for case in [*CASES, "new"]}


def adapt(is_sharded: bool, num_steps: int = 2) -> dict[str, torch.Tensor]:
    """Train adapters of a model with padding heads, merge them, and return its weights."""
    model = build("llama")
    gating.prune_heads(model, {0: [0], 1: [1, 2, 3]})
    if is_sharded:
        shard_model(model)
    torch.manual_seed(2)
    with LoRA(rank=2, target_modules="all-linear").on(model):
        adapters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in adapters:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    return state_of(model)


def test_adapters_are_merged_exactly_into_shards():
    (one,) = run_in_ranks(adapt, False, num_ranks=1)
    for found in run_in_ranks(adapt, True):
        assert found.keys() == one.keys()
        assert all(torch.equal(found[name], weight) for name, weight in one.items())
    dense = build("llama").state_dict()
    assert not torch.equal(dense["model.layers.2.mlp.up_proj.weight"], one["model.layers.2.mlp.up_proj.weight"])


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_layers_that_are_skipped_at_random_are_refused(rate):
    source = NewModel("bart", config={"encoder_layers": 1, "decoder_layers": 1, "encoder_layerdrop": rate})
    meta_model = make_meta_model(source, AutoModelForSeq2SeqLM)
    if rate:
        with pytest.raises(InputError, match="encoder_layerdrop"):
            _check_no_layerdrop(meta_model)
    else:
        _check_no_layerdrop(meta_model)
