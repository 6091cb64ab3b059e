"""train.py, remembering what each of its processes keeps; run by test_ranks.py.

DIE_IN_RANK makes a process fail when it is to remove heads.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from gating import find_attention_blocks
from gating.lightning.ranks import rank

remove_heads = train.remove_heads


def remember_kept_heads(work, objective, gates):
    if os.environ.get("DIE_IN_RANK") == str(rank()):
        raise RuntimeError("this process was told to fail")
    remove_heads(work, objective, gates)
    kept = {block.name: list(block.head_ids) for block in find_attention_blocks(work.model)}
    weights = float(sum(weight.double().abs().sum() for weight in work.model.state_dict().values()))
    Path(f"kept-{rank()}.json").write_text(json.dumps([kept, weights]))


if __name__ == "__main__":
    train.remove_heads = remember_kept_heads
    train.main()
