"""nn.MultiheadAttention, whose output projection is no call of a module: a replaced forward while hooks are on it."""

import copy

import pytest
import torch
from torch import Tensor, nn

import gating
from gating.structure.attention import AttentionBlock

MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False] * 4 + [True], [False] * 5])},
    "shared": {"attn_mask": torch.triu(torch.ones(3, 5, dtype=torch.bool), 3)},
    "by head": {"attn_mask": torch.randn(2 * 4, 3, 5, generator=torch.Generator().manual_seed(0))},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_computes_the_same_with_hooks(mask: str, batch_first: bool, need_weights: bool) -> None:
    module = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    module.in_proj_bias.data.normal_()
    block = find_block(module)
    queries, keys = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    inputs = (queries, keys, keys) if batch_first else [x.transpose(0, 1) for x in (queries, keys, keys)]
    arguments = {"need_weights": need_weights, **MASKS[mask]}
    expected = module(*inputs, **arguments)
    seen: list[Tensor] = []
    outer, inner = block.hook_features(seen.append), block.hook_features(lambda _: None)
    inner.remove()
    actual = module(*inputs, **arguments)
    outer.remove()
    assert len(seen) == 1
    assert type(module) is nn.MultiheadAttention
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def find_block(module: nn.Module) -> AttentionBlock:
    (block,) = gating.find_attention_blocks(nn.ModuleDict({"attention": module}))
    assert isinstance(block, AttentionBlock)
    return block


@pytest.mark.parametrize("kept", [(0, 3), (2,), ()], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_heads_are_removed(kept: tuple[int, ...], bias: bool) -> None:
    module = nn.MultiheadAttention(16, 4, batch_first=True, bias=bias).eval()
    queries, keys, mask = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2 * 4, 3, 5)
    block, columns = find_block(module), torch.tensor([head in kept for head in range(4)]).repeat_interleave(4)
    handle = block.hook_features(lambda features: features * columns)
    expected = module(queries, keys, keys, attn_mask=mask)[0]
    handle.remove()
    for edit in block.plan_removal(kept):
        edit.apply()
    for again in (module, copy.deepcopy(module)):
        torch.testing.assert_close(again(queries, keys, keys, attn_mask=mask)[0], expected, rtol=0, atol=1e-6)
    assert find_block(module).head_ids == kept


def test_a_module_without_a_batch_and_one_with_keys_of_its_own() -> None:
    module, states = nn.MultiheadAttention(16, 4).eval(), torch.randn(3, 16)
    expected = module(states, states, states)
    handle = find_block(module).hook_features(lambda _: None)
    torch.testing.assert_close(module(states, states, states), expected, rtol=0, atol=1e-6)
    handle.remove()
    for arguments in ({"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 8, "vdim": 8}):
        with pytest.raises(ValueError, match="Heads cannot be removed"):
            find_block(nn.MultiheadAttention(16, 4, **arguments))
