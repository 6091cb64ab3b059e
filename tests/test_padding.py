import torch
from family_models import FAMILIES

import gating
from gating.heads.padding import has_padding


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


def test_models_without_shared_keys_have_no_padding():
    model = FAMILIES["bert"].build()
    gating.prune_heads(model, {0: [0, 2, 3], 1: [3]})
    assert not has_padding(model)
