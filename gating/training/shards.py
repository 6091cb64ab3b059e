"""Checkpoints of sharded training: folders with a file of each process, whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gating.distributed.collectives import gather_objects
from gating.errors import InputError
from gating.training.shard_reader import PlainPlanner, PlainReader

__all__ = ["NUM_PROCESSES", "check_num_processes", "damage_of", "load_shards", "read_metadata", "save_shards"]

# Written last in the temporary folder: the checksums of all other files.
_SUMS = "checksums.json"
# Everything but tensors that are cut; the name is Lightning's.
_METADATA = "meta.pt"
# Name of the number of processes there.
NUM_PROCESSES = "num_processes"


def save_shards(path: Path, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write a checkpoint of all processes as a folder; each writes its own shards. Called by all.

    The folder is written beside its place under a hidden name, flushed to the disk, and renamed. The file system must
    be one that all processes share.

    Args:
        path: Path of the folder.
        state: Nested tables of tensors, distributed or equal in all processes.
        metadata: Plain values and tensors of rank 0.

    Raises:
        OSError: A process cannot write, for example on a full disk; earlier checkpoints stay.
    """
    rank = torch.distributed.get_rank()
    new = path.with_name(f".{path.name}.new")
    problem: str | None = None
    try:
        if rank == 0:
            # A process that was killed while it wrote has left it.
            for left in path.parent.glob(".*.ckpt.new"):
                shutil.rmtree(left)
            new.mkdir(parents=True)
    except OSError as error:
        problem = str(error.strerror)
    _raise_anywhere(path, problem)
    try:
        save(state, checkpoint_id=new)
        if rank == 0:
            torch.save(metadata, new / _METADATA)
        sums = _flush_and_hash(sorted(file.name for file in new.glob(f"__{rank}_*")), new)
        if rank == 0:
            sums |= _flush_and_hash([".metadata", _METADATA], new)
    except (OSError, RuntimeError, CheckpointException) as error:
        sums, problem = {}, _describe(error)
    _raise_anywhere(path, problem, new=new)
    all_sums = {name: value for part in gather_objects(sums) for name, value in part.items()}
    if rank == 0:
        try:
            (new / _SUMS).write_text(json.dumps(all_sums), encoding="ascii")
            _flush([new / _SUMS, new])
            if path.exists():
                shutil.rmtree(path)
            os.replace(new, path)
            _flush([path.parent])
        except OSError as error:
            problem = str(error.strerror)
    _raise_anywhere(path, problem, new=new)


def load_shards(path: Path, state: dict[str, Any]) -> None:
    """Fill tables of tensors with the values in a checkpoint, in place; each process reads its part. Called by all.

    No code in the checkpoint is run.

    Args:
        path: Path of the folder.
        state: Nested tables of tensors, as for :func:`save_shards`.

    Raises:
        InputError: The checkpoint has other tensors.
    """
    try:
        load(state, storage_reader=PlainReader(path), planner=PlainPlanner())
    except (RuntimeError, CheckpointException) as error:
        raise InputError(f"{path} cannot be loaded ({_describe(error)}): it may be of another model.") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the part of a checkpoint that is not cut, without running pickled code."""
    metadata: dict[str, Any] = torch.load(path / _METADATA, map_location="cpu", weights_only=True)
    return metadata


def check_num_processes(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise ``InputError`` if a checkpoint was saved by another number of processes."""
    before, now = checkpoint[NUM_PROCESSES], torch.distributed.get_world_size()
    if before != now:
        raise InputError(
            f"{path} is of {before} processes, and this run has {now}: batches and shards would be others. Resume with "
            "as many as before (trainer.devices, trainer.num_nodes)."
        )


def damage_of(path: Path, *, part: int = 0, num_parts: int = 1) -> str | None:
    """Return why a checkpoint is not as it was written, or None.

    Args:
        path: Path of the folder.
        part: Which of its files to read, if processes share the work: each ``num_parts``-th.
        num_parts: Number of processes that do.
    """
    try:
        sums = json.loads((path / _SUMS).read_text(encoding="ascii"))
        names = sorted(sums)[part::num_parts]
        wrong = [name for name in names if _hash(path / name) != sums[name]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return f"the checksum of {wrong[0]} does not match" if wrong else None


def _flush_and_hash(names: list[str], folder: Path) -> dict[str, str]:
    """Flush files to the disk, and return their checksums by name."""
    _flush([folder / name for name in names])
    return {name: _hash(folder / name) for name in names}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(paths: list[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _raise_anywhere(path: Path, problem: str | None, *, new: Path | None = None) -> None:
    """Raise ``OSError`` in all processes if one has a problem, and remove the temporary folder."""
    found = next((each for each in gather_objects(problem) if each), None)
    if found is not None:
        if new is not None and torch.distributed.get_rank() == 0:
            shutil.rmtree(new, ignore_errors=True)
        raise OSError(f"{path} cannot be written ({found}); earlier checkpoints stay. Mend that and resume.")


def _describe(error: BaseException) -> str:
    """Return the system's error behind an error of DCP, or its first line."""
    failures = getattr(error, "failures", {})
    cause = next(iter(failures.values()))[0] if failures else error
    seen: BaseException | None = cause
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return (str(cause).splitlines() or [type(cause).__name__])[0]
