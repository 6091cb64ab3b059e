"""Checkpoints of shards, read without running code in them: torch's reader unpickles their index and plain values."""

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

__all__ = ["PlainPlanner", "PlainReader"]

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
}


class PlainReader(FileSystemReader):
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


class PlainPlanner(DefaultLoadPlanner):
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
