"""Settings of the trainer that are refused, and numbers of processes."""

import pytest

from gating.distributed.launch import check_devices


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
