"""The state of a training with gates in a checkpoint of transformers' Trainer, and the checkpoint to resume from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from gating.errors import DamageError, InputError, MissingFileError
from gating.storage.files import replacing_file

__all__ = ["GateState", "find_checkpoint"]

# File of the state of the gates in a checkpoint.
_FILE = "gates.pt"


@dataclass(frozen=True)
class GateState:
    """State of a training with gates between two steps.

    Attributes:
        search_steps: Optimizer steps of the search.
        search: State of the search, with gates and objective; empty after the removal.
        record: Record of the compact model, from its configuration; None before the removal.
        settings: Settings of the trainer that decide its result.
        training: Identity of the training.
        below: Digest of the weights below the adapters of the recovery; None without them.
        others: Weights beside the transformer in a model of sentence-transformers and in its losses.
    """

    search_steps: int
    search: dict[str, Any]
    record: dict[str, Any] | None
    settings: dict[str, Any]
    training: str
    below: str | None
    others: dict[str, Tensor]

    @property
    def is_end_of_search(self) -> bool:
        """Whether the search is complete, and nothing has been removed."""
        return self.record is None and self.search["reason"] is not None

    def save(self, checkpoint: Path) -> None:
        """Save the state in the folder of a checkpoint."""
        # Plain values load without code.
        with replacing_file(checkpoint / _FILE) as new:
            torch.save(vars(self), new)

    @classmethod
    def load(cls, checkpoint: Path) -> "GateState":
        """Load the state from the folder of a checkpoint.

        Raises:
            FileNotFoundError: The checkpoint was not saved by a trainer with gates.
            ValueError: The file is damaged.
        """
        path = checkpoint / _FILE
        if not path.is_file():
            raise MissingFileError(
                f"{checkpoint} has no {_FILE}: it is not a checkpoint of a trainer with gates. Resume from another one."
            )
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise DamageError(f"{path} is damaged: {error}. Resume from an earlier checkpoint.") from error


def find_checkpoint(resume: str | bool | None, output_dir: str) -> Path | None:
    """Return the folder of the checkpoint to resume from; None to begin a phase.

    Args:
        resume: The checkpoint, or True for the last one.
        output_dir: Folder of the checkpoints.

    Raises:
        FileNotFoundError: There is no checkpoint.
        InputError: The last one may be that of another training in the same folder.
    """
    if resume is not True:
        return Path(resume) if resume else None
    found = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if found is None:
        raise MissingFileError(
            f"There is no checkpoint in args.output_dir={output_dir} to resume from: call train() without "
            "resume_from_checkpoint=True."
        )
    by_training = {_training_of(path): path for path in sorted(Path(found).parent.glob("checkpoint-*"))}
    by_training.pop(None, None)
    if len(by_training) > 1:
        names = " and ".join(path.name for path in by_training.values())
        raise InputError(
            f"args.output_dir={output_dir} has checkpoints of several trainings, such as {names}: give the path of the "
            "one to resume from as resume_from_checkpoint, or move those of the others away."
        )
    return Path(found)


def _training_of(checkpoint: Path) -> str | None:
    """Return the identity of the training of a checkpoint; None if it cannot be read."""
    try:
        return GateState.load(checkpoint).training
    except (MissingFileError, DamageError):
        return None
