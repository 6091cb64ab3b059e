"""Emptied layers in training: gradients are those of masked heads, and DDP gets one of each parameter."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import gating
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.in_ranks import run_in_ranks
from tests.support.masked_models import units_masked
from tests.support.tiers import tiered

NAMES = ["bert", "gpt2", "llama", "vit", "t5", "bart", "whisper", "deberta-v2", "mpnet", "beit", "albert", "swin"]


@pytest.mark.parametrize("name", tiered(NAMES))
def test_gradients_are_those_of_masked_heads(name):
    compact, masked = FAMILIES[name].build(), FAMILIES[name].build()
    blocks = gating.find_attention_blocks(masked)
    emptied = {block.name for block in blocks if not block.layer_idx}
    gating.prune_heads(compact, {block.name: block.head_ids for block in blocks if block.name in emptied})
    with units_masked(blocks, {block.name: () if block.name in emptied else block.head_ids for block in blocks}):
        for model in (compact, masked):
            model.eval()
            outputs = model(**make_probe(model))
            sum(v.pow(2).sum() for v in outputs.values() if isinstance(v, torch.Tensor)).backward()
    expected = dict(masked.named_parameters())
    for key, parameter in compact.named_parameters():
        if parameter.shape == expected[key].shape and expected[key].grad is not None:
            torch.testing.assert_close(parameter.grad, expected[key].grad, atol=1e-4, rtol=1e-3)


@pytest.mark.processes
def test_two_processes_train_models_with_emptied_layers():
    names = ["llama", "gpt2", "t5", "vit", "bart"]
    assert run_in_ranks(train_with_emptied_layers, names) == [names, names]


def train_with_emptied_layers(names: list[str]) -> list[str]:
    for name in names:
        for empties_all in (False, True):
            model = FAMILIES[name].build().train()
            blocks = gating.find_attention_blocks(model)
            gating.prune_heads(model, {b.name: b.head_ids for b in blocks if empties_all or not b.layer_idx})
            replica = DistributedDataParallel(model)
            # A parameter without a gradient is an error of the next step.
            for _ in range(3):
                replica(**make_probe(model)).logits.square().mean().backward()
                replica.zero_grad()
    return names
