"""Training steps of models with emptied layers in two processes; run by structure/test_empty.py under torchrun."""

import os
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import gating
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
for name in sys.argv[2:]:
    for empties_all in (False, True):
        model = FAMILIES[name].build().train()
        blocks = gating.find_attention_blocks(model)
        gating.prune_heads(model, {b.name: b.head_ids for b in blocks if empties_all or not b.layer_idx})
        replica = DistributedDataParallel(model)
        for _ in range(3):
            replica(**make_probe(model)).logits.square().mean().backward()
            replica.zero_grad()
        Path(sys.argv[1], f"{name}-{empties_all}-{torch.distributed.get_rank()}").touch()
torch.distributed.barrier()
# DDP keeps gloo's threads alive after its group is destroyed, and Python that ends beside them sometimes aborts:
# https://github.com/pytorch/pytorch/issues/190489
os._exit(0)
