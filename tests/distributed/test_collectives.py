"""Numbers of processes, collectives in a single one, and errors of lost connections."""

import pytest
import torch
import torch.distributed

from gating.distributed import collectives
from gating.distributed.collectives import (
    all_reduce_max,
    all_reduce_sum,
    broadcast,
    gather_objects,
    is_lost_connection,
    is_rank_zero,
)
from gating.distributed.launch import check_devices
from gating.distributed.watchdog import LostProcess


def test_collectives_do_nothing_in_one_process():
    assert is_rank_zero()
    assert all_reduce_max(2, -3) == (2, -3)
    assert all_reduce_sum(3) == 3
    assert broadcast("here") == "here"
    assert gather_objects("here") == ["here"]


LOST = [
    torch.distributed.DistBackendError("NCCL error"),
    torch.distributed.DistNetworkError("The client socket has timed out"),
]
# Of gloo, or a fault.
UNCLEAR = [RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), RuntimeError("another fault")]
OTHERS = [torch.OutOfMemoryError("CUDA out of memory"), ValueError("gloo"), OSError("Connection reset by peer")]


@pytest.mark.parametrize("lost", [None, LostProcess(1, "was killed by SIGKILL")], ids=["none lost", "one lost"])
@pytest.mark.parametrize("error", [*LOST, *UNCLEAR, *OTHERS], ids=str)
def test_lost_connections_are_recognized_in_distributed_runs_only(error, lost, monkeypatch):
    monkeypatch.setattr(collectives, "find_lost_process", lambda **_: lost)
    assert not is_lost_connection(error)
    monkeypatch.setattr(collectives, "is_distributed", lambda: True)
    assert is_lost_connection(error) == (error in LOST or (error in UNCLEAR and lost is not None))


def test_processes_of_a_launcher_are_counted(monkeypatch):
    assert check_devices({"accelerator": "cpu", "devices": 2}).num_processes == 2
    assert check_devices({"accelerator": "cpu", "devices": 2, "strategy": "fsdp"}).is_sharded
    assert check_devices({"accelerator": "cpu", "devices": 1, "num_nodes": 3}).num_processes == 3
    assert (
        check_devices({"accelerator": "cpu", "devices": 1, "plugins": [{"_target_": "some.Plugin"}]}).num_processes == 1
    )
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 have been started"):
        check_devices({"accelerator": "cpu", "devices": 2})
