"""A training with gates in transformers' Trainer, started in each process by torchrun; see test_two_processes.py."""

import sys
from pathlib import Path

import torch

import gating
from tests.integrations.conftest import CHECKPOINTING, make_classifier, make_trainer, weights_of


def main(folder: Path, *, resume: bool) -> None:
    trainer = make_trainer(
        folder / "checkpoints",
        distillation=gating.Distillation(hidden_weight=1.0),
        teacher=make_classifier(5),
        args={"per_device_train_batch_size": 4, "ddp_backend": "gloo", CHECKPOINTING: True},
    )
    trainer.train_and_compact(folder / "compact", resume_from_checkpoint=resume, overwrite=resume)
    weights = torch.cat([tensor.flatten().float() for tensor in weights_of(trainer).values()])
    gathered = trainer.accelerator.gather(weights.unsqueeze(0))
    assert torch.equal(gathered[0], gathered[1])
    assert len(gathered) == 2
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), resume=len(sys.argv) > 2)
