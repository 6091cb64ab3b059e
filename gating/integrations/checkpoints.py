"""Files of a training with gates: the state of its search, the start of its recovery, and the checkpoint to resume."""

import logging
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gating.compact.load import load_compact
from gating.compact.save import save_compact
from gating.errors import InputError
from gating.gates import HeadGates
from gating.integrations.wrappers import merged
from gating.loader.modeling import RECORD_KEY
from gating.pruning.plan import remove_recorded
from gating.storage.files import move_aside, replacing_file

# Folder of the recovery in that of the search, and in it the compact model that it begins with.
_RECOVERY, _START = "recovery", "start"
# The dense model from which the recovery learns, in its folder.
_DENSE = "dense.safetensors"
# State of the gates, and of losses, in a checkpoint; in the folder of the recovery, what the compact model lacks.
_STATE = "gates.pt"
_log = logging.getLogger(__name__)


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Save plain values and tensors in the folder of a checkpoint, or of the recovery."""
    with replacing_file(folder / _STATE) as new:
        torch.save(dict(state), new)


def read_state(folder: Path) -> dict[str, Any]:
    """Load values and tensors of a folder; ``FileNotFoundError`` for one of a trainer without gates."""
    state: dict[str, Any] = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    return state


def find_checkpoint(resume: str | bool | None, output_dir: Path) -> tuple[Path | None, Path | None]:
    """Return the folder of the recovery to resume, and the checkpoint: None for the search, and for a new phase."""
    if not resume:
        return None, None
    folder = output_dir / _RECOVERY if resume is True else Path(resume).parent
    recovery = folder if (folder / _START).is_dir() else None
    last = _last_checkpoint(recovery or output_dir) if resume is True else Path(resume)
    if last is None and recovery is None:
        raise FileNotFoundError(f"There is no checkpoint in args.output_dir={output_dir} to resume from.")
    if last is not None and not (last / OPTIMIZER_NAME).is_file():
        raise InputError(f"{last} has no {OPTIMIZER_NAME}: it was written with save_only_model=True.")
    return recovery, last


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint whose state, which the trainer writes last, is there."""
    written = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    steps = {path: path.name.partition("-")[2] for path in written}
    return max((path for path in written if steps[path].isdecimal()), key=lambda path: int(steps[path]), default=None)


def set_aside(output_dir: Path) -> None:
    """Move checkpoints and recovery of an earlier training into ``earlier``, so that nothing resumes from them."""
    checkpoints = [path.parent for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{_STATE}")]
    if found := [*checkpoints, *output_dir.glob(_RECOVERY)]:
        place = output_dir / "earlier"
        move_aside(place)
        place.mkdir()
        for path in found:
            path.rename(place / path.name)
        _log.warning(f"Checkpoints of an earlier training were moved to {place}.")


def recovery_args(args: TrainingArguments, *, steps: int, total: int) -> TrainingArguments:
    """Return the arguments of a recovery: its folder, steps and seed, and the shares of warm-up and decay of the whole.

    Another seed has the data in another order: the steps may be fewer than those of an epoch.
    """
    args, share, options = copy(args), steps / total, dict[str, Any](args.lr_scheduler_kwargs or {})  # type: ignore[arg-type]
    args.output_dir = str(Path(str(args.output_dir)) / _RECOVERY)
    args.max_steps, args.seed = steps, args.seed + 1
    if args.warmup_steps >= 1:
        args.warmup_steps = round(share * args.warmup_steps)
    args.lr_scheduler_kwargs = {
        name: round(share * value) if name.endswith("_steps") else value for name, value in options.items()
    }
    return args


def save_start(
    output_dir: Path,
    compact: PreTrainedModel,
    state: Mapping[str, Any],
    *,
    tokenizer: Any,
    dense: nn.Module | None = None,
) -> None:
    """Save the model that a recovery begins with, without adapters, as a compact folder, and the state beside it.

    A dense model from which the recovery learns is saved, too.
    """
    if dense is not None:
        with replacing_file(output_dir / _RECOVERY / _DENSE) as new:
            save_model(dense, str(new))
    write_state(output_dir / _RECOVERY, state)
    save_compact(compact, output_dir / _RECOVERY / _START, tokenizer=tokenizer, stock=False, overwrite=True)


def load_dense(folder: Path, model: nn.Module) -> nn.Module:
    """Load the dense model from which a recovery learns, in place of the weights of one, and return it."""
    dense = merged(model)
    load_model(dense, folder / _DENSE)
    return dense


def load_start(folder: Path, model: nn.Module, gates: HeadGates) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Make a model with gates the one that a recovery began with, in place; return it without adapters, and the state.

    Its settings stay. The recovery of another model is an ``InputError``.
    """
    state, saved = read_state(folder), load_compact(folder / _START)
    compact = merged(model)
    gates.remove()
    remove_recorded(compact, getattr(saved.config, RECORD_KEY))
    compact.load_state_dict(saved.state_dict())
    return compact, state
