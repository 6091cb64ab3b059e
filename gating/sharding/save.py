"""Compact folders of models that are larger than one process should hold: each process writes its shards."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from gating.compact.files import write_manifest
from gating.compact.save import SAVED_TOLERANCE, Processor, check_outputs
from gating.errors import InputError, OperationError
from gating.loader.modeling import INDEX
from gating.loader.saving import auto_places, become_compact, compact_class, has_lost_units, write_checksums
from gating.proof.conditions import check_no_adapters
from gating.proof.masked import ExpectedOutputs
from gating.report.card import write_card
from gating.report.rows import CompactReport
from gating.sharding.copies import meta_copy, tensors_of, whole_class
from gating.sharding.plan import is_sharded, on_own_device, reshard
from gating.storage.files import replacing_folder
from gating.structure.edits import own_part

__all__ = ["has_room_for", "save_sharded"]

# A whole model is held three times at the end of a run: to save it, to load it for a check, and dense for timings.
_COPIES = 3
_MEMORY, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# Subfolder in which torch writes the shards before it joins them.
_PARTS = "sharded"


def has_room_for(model: PreTrainedModel) -> bool:
    """Return whether rank 0 and its GPU have room for whole copies of a sharded model; the same in all processes."""
    answer = [False]
    if torch.distributed.get_rank() == 0:
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        answer = [_COPIES * size <= min(_free_bytes(), _free_bytes_of(model.device))]
    torch.distributed.broadcast_object_list(answer)
    return answer[0]


def _free_bytes() -> float:
    """Return the bytes of memory that can be allocated; infinity where the system does not say."""
    limits = [float("inf")]
    with suppress(OSError):
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
        limits += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):
        # This is the limit of a container or a job.
        limit, used = ((_GROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        limits.append(float(int(limit) - int(used)))
    return min(limits)


def _free_bytes_of(device: torch.device) -> float:
    """Return the bytes that can be allocated on an accelerator; infinity for the CPU, which is counted already."""
    if device.type == "cpu":
        return float("inf")
    module = torch.get_device_module(device)
    # What torch keeps for later counts as used.
    module.empty_cache()
    return float(module.mem_get_info(device)[0])


def save_sharded(
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    report: CompactReport | None = None,
    overwrite: bool = False,
    probe: Mapping[str, Tensor] | None = None,
    max_file_size: str = "5GB",
) -> Path:
    """Save a sharded model as the folder of :func:`gating.save_compact`, of which no process holds the whole.

    Called by all processes, which need a file system in common. Each writes its shards with torch's writer of
    safetensors files; rank 0 joins them on the disk. Arguments and errors are those of :func:`gating.save_compact`.

    Args:
        model: A sharded model without gates.
        save_directory: Path of the folder.
        tokenizer: The tokenizer, or the image processor.
        report: Measurements for the model card.
        overwrite: Whether a folder at this path may be renamed.
        probe: Batch on which outputs of the saved folder, cut over the same processes, are compared with the model's.
        max_file_size: Size of a file of weights, such as ``5GB``.
    """
    if hasattr(model, "head_gates"):
        raise InputError(
            "The model still has gates: call gating.sharding.finalize_sharded(model, gates) before saving it."
        )
    if not is_sharded(model):
        raise InputError(f"{type(model).__name__} is not sharded: call gating.save_compact(model, ...).")
    check_no_adapters(model)
    reshard(model)
    _check_finite(model)
    copy = meta_copy(model)
    if not has_lost_units(copy):
        become_compact(copy)
    target = Path(save_directory)
    with _folder_of_all(target, overwrite=overwrite) as folder:
        if torch.distributed.get_rank() == 0:
            # This writes everything but the weights.
            copy.save_pretrained(folder, state_dict={})
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            write_card(folder / "README.md", copy, report, False)
        _write_weights(model, copy, folder, max_file_size)
        if torch.distributed.get_rank() == 0:
            write_checksums(folder, places=auto_places(copy))
        torch.distributed.barrier()
        _check_saved(model, folder, probe)
        if torch.distributed.get_rank() == 0:
            write_manifest(folder)
    return target


def _write_weights(model: PreTrainedModel, copy: PreTrainedModel, folder: Path, max_file_size: str) -> None:
    """Write the weights of a model in several files, with an index of their names."""
    # torch has it since 2.8, and merges its files since 2.9.
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    ignored = {*(copy.all_tied_weights_keys or ()), *(copy._keys_to_ignore_on_save or ())}
    tensors = tensors_of(model)
    state = {name: tensors[name] for name in copy.state_dict() if name not in ignored}
    shards = {name: tensor for name, tensor in state.items() if isinstance(tensor, DTensor)}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in shards.items()}
    files = split_torch_state_dict_into_shards(empty, max_shard_size=max_file_size).filename_to_tensors
    numbers = {name: number for number, names in enumerate(files.values(), start=1) for name in names}
    writer = HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping=numbers,
        save_distributed=True,
        enable_consolidation=True,
        thread_count_consolidation=min(8, len(files)),
    )
    save(shards, storage_writer=writer)
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(folder / _PARTS)
        _write_others({name: tensor for name, tensor in state.items() if name not in shards}, folder, len(files))


def _write_others(tensors: Mapping[str, Tensor], folder: Path, num_files: int) -> None:
    """Add tensors that are not cut to the files of weights: torch joins no integers, and nothing without entries."""
    if not tensors:
        return
    name = f"model-00000-of-{num_files:05d}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})
    path = folder / INDEX
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"] |= dict.fromkeys(tensors, name)
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_finite(model: PreTrainedModel) -> None:
    wrong = [name for name, tensor in tensors_of(model).items() if not own_part(tensor).isfinite().all()]
    found: list[list[str]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, wrong)
    names = [name for names in found for name in names]
    if names:
        raise InputError(f"{names[0]} has values that are NaN or infinite: training has diverged. Nothing was written.")


@contextmanager
def _folder_of_all(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that replaces the target when the block ends without an error in any process."""
    with ExitStack() as stack:
        made: list[object] = [None]
        if torch.distributed.get_rank() == 0:
            try:
                made = [stack.enter_context(replacing_folder(target, overwrite=overwrite))]
            except Exception as error:
                torch.distributed.broadcast_object_list([error])
                raise
        torch.distributed.broadcast_object_list(made)
        (folder,) = made
        if not isinstance(folder, Path):
            raise OperationError(f"Rank 0 cannot write {target}: {folder}")
        yield folder
        # Before rank 0 moves the folder to its place.
        torch.distributed.barrier()
    torch.distributed.barrier()


def _check_saved(model: PreTrainedModel, folder: Path, probe: Mapping[str, Tensor] | None) -> None:
    """Raise ``InputError`` if the folder gives another model, cut over the same processes."""
    cls = compact_class(whole_class(model), type(model.config))
    expected = ExpectedOutputs.of(model, probe, tolerance=SAVED_TOLERANCE)
    with on_own_device():
        loaded = cls.from_pretrained(folder, dtype="auto", distributed_config=model.config.distributed_config)
    difference = expected.difference(loaded)
    for each in (model, loaded):
        reshard(each)
    check_outputs(loaded, expected, difference)
