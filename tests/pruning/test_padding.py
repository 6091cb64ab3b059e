"""Padding heads and emptied layers stay silent in further training."""

import copy

import peft
import pytest
import torch

import gating
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.gated import has_padding
from tests.support.masked_models import units_masked


def test_padding_heads_stay_silent_in_further_training():
    model = FAMILIES["llama"].build().train()
    gating.prune_heads(model, {0: [0, 2, 3], 1: [5]})  # groups of two query heads
    assert has_padding(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    batch = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        gating.silence_padding(model)
    for block in gating.find_attention_blocks(model):
        columns = block.output_projection.weight.unflatten(1, (-1, block.head_dim)).abs().amax(dim=(0, 2))
        silent = [head for head, size in zip(block.head_slots, columns.tolist(), strict=True) if size == 0]
        assert silent == [head for head in block.head_slots if head not in block.head_ids]


def test_removed_heads_stay_removed_in_a_plain_loop(tmp_path):
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {0: [0, 2, 3], 1: [5]})
    folder = gating.save_compact(model, tmp_path / "compact")
    for compact in (model, copy.deepcopy(model), gating.load_compact(folder)):
        optimizer = torch.optim.SGD(compact.train().parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
        batch = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            compact(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        blocks = gating.find_attention_blocks(compact)
        assert any(block.head_slots != block.head_ids for block in blocks)
        with units_masked(blocks, {block.name: block.head_ids for block in blocks}):
            masked = forward_outputs(compact, {"input_ids": batch})
        assert max_relative_difference(masked, forward_outputs(compact, {"input_ids": batch})) == 0
        for block in blocks:
            columns = block.output_projection.weight.unflatten(1, (-1, block.head_dim)).abs().amax(dim=(0, 2))
            assert [h for h, size in zip(block.head_slots, columns.tolist(), strict=True) if size] == [*block.head_ids]


def test_padding_that_is_removed_later_leaves_a_plain_projection():
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {0: [0]})
    assert type(gating.find_attention_blocks(model)[0].output_projection) is not torch.nn.Linear
    gating.prune_heads(model, {0: [2, 4, 6]})
    assert type(gating.find_attention_blocks(model)[0].output_projection) is torch.nn.Linear


def test_models_without_shared_keys_have_no_padding():
    model = FAMILIES["bert"].build()
    gating.prune_heads(model, {0: [0, 2, 3], 1: [3]})
    assert not has_padding(model)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "phi3"])
@pytest.mark.parametrize("targets", [["o_proj"], "all-linear"])
def test_adapters_of_a_plain_loop_do_not_bring_removed_heads_back(family, targets):
    model = FAMILIES[family].build()
    names = [block.name for block in gating.find_attention_blocks(model)]
    gating.prune_heads(model, {names[0]: [0], names[1]: [2, 3, 4]})
    batch = make_probe(model)
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        wrapped(**batch).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = forward_outputs(wrapped, batch)
    blocks = gating.find_attention_blocks(wrapped.get_base_model())
    with units_masked(blocks, {block.name: block.head_ids for block in blocks}):
        assert max_relative_difference(trained, forward_outputs(wrapped, batch)) == 0
    assert max_relative_difference(trained, forward_outputs(wrapped.merge_and_unload(), batch)) < 1e-5
