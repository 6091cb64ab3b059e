"""Settings of the trainer that are refused, and numbers of processes."""

import pytest
import torch

from gating.distributed.launch import check_devices

REFUSED = {
    "fsdp1 object": ({"strategy": {"_target_": "pytorch_lightning.strategies.FSDPStrategy"}}, "FSDP1 .* trainer=fsdp"),
    "fsdp2 object": (
        {"strategy": {"_target_": "pytorch_lightning.strategies.ModelParallelStrategy"}},
        "tensor parallelism .* trainer=fsdp",
    ),
    "deepspeed": ({"strategy": "deepspeed_stage_3"}, "DeepSpeed .* trainer=fsdp"),
    "fsdp1 by name": ({"strategy": "FSDP"}, "FSDP1 .* trainer=fsdp"),
    "fsdp in bfloat16": ({"strategy": "fsdp", "devices": 2, "precision": "bf16-true"}, "not that of gates"),
    "fsdp alone": ({"strategy": "fsdp"}, "trainer.devices=1 starts one"),
    "fsdp in float16": (
        {"strategy": "fsdp", "devices": 2, "precision": "16-mixed"},
        "precision=16-mixed .* bf16-mixed",
    ),
    "spawn": ({"strategy": "ddp_spawn"}, "trainer.strategy=ddp_spawn"),
    "unknown": ({"strategy": "horovod"}, "trainer.strategy=horovod"),
    "no device": ({"devices": 0}, "trainer.devices=0"),
    "unknown argument": ({"epochs": 3}, "epochs"),
    "unknown precision": ({"precision": "bf17"}, "bf17"),
    "of each run": ({"logger": False}, "trainer.logger=False would have no effect, .*: choose logger=wandb or"),
    "unknown device": ({"accelerator": "abacus"}, "trainer.accelerator=abacus"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_be_run_are_refused(case):
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        check_devices({"accelerator": "cpu", "devices": 1, **settings})


def test_missing_gpus_are_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"trainer\.accelerator=gpu"):
        check_devices({"accelerator": "gpu", "devices": 1})


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
