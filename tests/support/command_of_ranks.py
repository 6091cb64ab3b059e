"""train.py, with a file of the kept heads of each rank; run by distributed/test_two_processes.py.

HAPPENS, as "RANK BATCH EVENT", is an event in one process at a training batch: a signal by its name, "fails"
or "nan". HANGS, as "RANK BATCH", lets another process wait there without end, as NCCL does for a process that is gone.
"""

import itertools
import json
import os
import signal
import threading
from pathlib import Path

import train
from gating import find_attention_blocks
from gating.distributed import watchdog
from gating.distributed.collectives import rank
from gating.run import execute
from gating.training.module import FineTuning

remove, training_step = execute.remove, FineTuning.training_step
batches = itertools.count(1)


def remember_kept_heads(run):
    remove(run)
    kept = {block.name: list(block.head_ids) for block in find_attention_blocks(run.state.model)}
    weights = float(sum(weight.double().abs().sum() for weight in run.state.model.state_dict().values()))
    Path(f"kept-{rank()}.json").write_text(json.dumps([kept, weights]))


def let_it_happen(self, batch, batch_idx):
    loss = training_step(self, batch, batch_idx)
    happens = os.environ.get("HAPPENS", "- - -").split()
    now = [str(rank()), str(next(batches))]
    if os.environ.get("HANGS", "").split() == now:
        watchdog._GRACE_S = 0.5
        threading.Event().wait()
    if happens[:2] == now:
        if happens[2] == "fails":
            raise RuntimeError("this process was told to fail")
        if happens[2] == "nan":
            return loss * float("nan")
        os.kill(os.getpid(), signal.Signals[happens[2]])
    return loss


if __name__ == "__main__":
    execute.remove = remember_kept_heads
    FineTuning.training_step = let_it_happen
    train.main()
