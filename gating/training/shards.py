"""Checkpoints of sharded training: folders with a file of each process, whole or not there."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gating.distributed.collectives import gather_objects
from gating.errors import InputError
from gating.loader.checksums import digest_file

__all__ = ["NUM_PROCESSES", "check_num_processes", "damage_of", "load_shards", "read_metadata", "save_shards"]

# Written last in the temporary folder: the checksums of all other files.
_SUMS = "checksums.json"
# Everything but tensors that are cut; the name is Lightning's.
_METADATA = "meta.pt"
# Name of the number of processes there.
NUM_PROCESSES = "num_processes"
# Torch's index of the tensors, and the classes and functions that it may name: torch's own reader unpickles any.
_INDEX = ".metadata"
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # Their module in Python 3.13.
}


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
    rank, new = torch.distributed.get_rank(), path.with_name(f".{path.name}.new")
    with _all_or_none(path, new):
        if rank == 0:
            # A process that was killed while it wrote has left it.
            for left in path.parent.glob(".*.ckpt.new"):
                shutil.rmtree(left)
            new.mkdir(parents=True)
    with _all_or_none(path, new):
        save(state, checkpoint_id=new)
        sums = _flush_and_hash(sorted(file.name for file in new.glob(f"__{rank}_*")), new)
        if rank == 0:
            torch.save(metadata, new / _METADATA)
            sums |= _flush_and_hash([_INDEX, _METADATA], new)
    all_sums = {name: value for part in gather_objects(sums) for name, value in part.items()}
    with _all_or_none(path, new):
        if rank == 0:
            (new / _SUMS).write_text(json.dumps(all_sums), encoding="ascii")
            _flush([new / _SUMS, new])
            if path.exists():
                shutil.rmtree(path)
            os.replace(new, path)
            _flush([path.parent])


@contextmanager
def _all_or_none(path: Path, new: Path) -> Iterator[None]:
    """Raise ``OSError`` in all processes if a ``with`` block fails in one, and remove the temporary folder."""
    problem: str | None = None
    try:
        yield
    except (OSError, RuntimeError, CheckpointException) as error:
        problem = _describe(error)
    found = next((each for each in gather_objects(problem) if each), None)
    if found is not None:
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(new, ignore_errors=True)
        raise OSError(f"{path} cannot be written ({found}); earlier checkpoints stay. Mend that and resume.")


def load_shards(path: Path, state: dict[str, Any]) -> None:
    """Fill tables of :func:`save_shards` with the values in a checkpoint, in place. Called by all.

    No code in the checkpoint is run.

    Raises:
        InputError: The checkpoint has other tensors.
    """
    try:
        load(state, storage_reader=_PlainReader(path), planner=_PlainPlanner())
    except (RuntimeError, CheckpointException) as error:
        raise InputError(f"{path} cannot be loaded ({_describe(error)}): it may be of another model.") from error


class _PlainReader(FileSystemReader):
    """Torch's reader of a folder, whose index may name the classes of torch's own indexes only."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the index.

        Raises:
            pickle.UnpicklingError: It names another class or function.
        """
        with (Path(self.path) / _INDEX).open("rb") as file:
            metadata: Metadata = _PlainUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlainPlanner(DefaultLoadPlanner):
    """Torch's planner, which loads plain values and tensors only."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """Put a value that is no tensor into the state."""
        name = read_item.dest_index.fqn
        loaded = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[name], loaded)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not of an index")


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
    """Return why a checkpoint is not as it was written, or None; of ``num_parts`` processes, each reads other files."""
    try:
        sums = json.loads((path / _SUMS).read_text(encoding="ascii"))
        names = sorted(sums)[part::num_parts]
        wrong = [name for name in names if digest_file(path / name) != sums[name]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return f"the checksum of {wrong[0]} does not match" if wrong else None


def _flush_and_hash(names: list[str], folder: Path) -> dict[str, str]:
    """Flush files to the disk, and return their checksums by name."""
    _flush([folder / name for name in names])
    return {name: digest_file(folder / name) for name in names}


def _flush(paths: list[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
