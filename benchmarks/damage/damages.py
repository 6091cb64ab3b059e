"""Ways to damage the folder of a compact model, each drawn at random from a seed.

A *signed* damage updates the checksums afterwards, as an attacker would, so that the checks behind the checksums are
tried, too. Only damages that must be noticed without a checksum are signed.
"""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.damage import config_damages
from benchmarks.damage.case import Case
from gating.compact.files import write_manifest
from gating.loader.integrity import write_checksums

__all__ = ["DAMAGES", "SIGNED", "damage"]


def damage(name: str, folder: Path, other: Path, *, seed: int) -> None:
    """Damage a folder in place.

    Args:
        name: One of :data:`DAMAGES`.
        folder: The folder of a compact model.
        other: The folder of another model of the same family, with the same number of heads.
        seed: Seed of the random choices.
    """
    DAMAGES[name](Case(random.Random(f"{name} {seed}"), folder, other))
    if name in SIGNED:
        write_checksums(folder)
        write_manifest(folder)


def _any_file(case: Case) -> Path:
    """Half of the time the weights or the configuration, else any file."""
    important = [*case.folder.glob("*.safetensors"), case.folder / "config.json", *case.folder.glob("*.index.json")]
    return case.rng.choice(sorted(important) if case.rng.random() < 0.6 else sorted(case.folder.iterdir()))


def _weights(case: Case) -> Path:
    return case.rng.choice(sorted(case.folder.glob("*.safetensors")))


def _flip(case: Case, path: Path, start: int, stop: int) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(case.rng.choice([1, 1, 1, 2, 8])):
        content[case.rng.randrange(start, stop)] ^= 1 << case.rng.randrange(8)
    path.write_bytes(content)


def _header_end(path: Path) -> int:
    return 8 + int(struct.unpack("<Q", path.read_bytes()[:8])[0])


def _flip_header(case: Case) -> None:
    path = _weights(case)
    _flip(case, path, 0, _header_end(path))


def _flip_data(case: Case) -> None:
    path = _weights(case)
    _flip(case, path, _header_end(path), path.stat().st_size)


def _flip_config(case: Case) -> None:
    _flip(case, case.folder / "config.json", 0, (case.folder / "config.json").stat().st_size)


def _flip_other(case: Case) -> None:
    path = _any_file(case)
    _flip(case, path, 0, path.stat().st_size)


def _cut(case: Case) -> None:
    path = _any_file(case)
    os.truncate(path, case.rng.randrange(path.stat().st_size))


def _append(case: Case) -> None:
    with _any_file(case).open("ab") as file:
        file.write(case.rng.choice([b"\0" * 4096, b"}", b"garbage", case.rng.randbytes(100)]))


def _zero_page(case: Case) -> None:
    path = _weights(case)
    with path.open("r+b") as file:
        file.seek(case.rng.randrange(path.stat().st_size))
        file.write(b"\0" * min(512, path.stat().st_size - file.tell()))


def _delete(case: Case) -> None:
    _any_file(case).unlink()


def _empty(case: Case) -> None:
    _any_file(case).write_bytes(b"")


def _garbage(case: Case) -> None:
    _any_file(case).write_bytes(case.rng.randbytes(case.rng.randrange(1, 5000)))


def _not_a_file(case: Case) -> None:
    """Put a folder, a pipe, a device or a link in the place of a file."""
    path = _any_file(case)
    moved = case.folder.parent / f"moved-{path.name}"
    path.rename(moved)
    kind = case.rng.choice(["folder", "pipe", "out", "nowhere", "itself", "device"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        targets = {"out": moved, "nowhere": "nowhere", "itself": path.name, "device": "/dev/zero"}
        path.symlink_to(targets[kind])


def _swap_file(case: Case) -> None:
    path = case.rng.choice(sorted([*case.folder.glob("*.safetensors"), *case.folder.glob("*.json")]))
    if (case.other / path.name).exists():
        shutil.copy(case.other / path.name, path)
    else:
        path.unlink()


def _swap_tensors(case: Case) -> None:
    path = _weights(case)
    tensors = load_file(path)
    first = case.rng.choice(sorted(tensors))
    same = [name for name in sorted(tensors) if name != first and tensors[name].shape == tensors[first].shape]
    if not same:
        _flip_data(case)
        return
    second = case.rng.choice(same)
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, path, metadata={"format": "pt"})


def _lose_tensor(case: Case) -> None:
    path = _weights(case)
    tensors = load_file(path)
    name = case.rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    kind = case.rng.choice(["lost", "renamed", "cut", "one more", "integers"])
    if kind == "renamed":
        tensors[f"{name}_"] = tensor
    elif kind == "cut":
        tensors[name] = tensor[:-1].clone()
    elif kind == "one more":
        tensors |= {name: tensor, f"{name}_": tensor.clone()}
    elif kind == "integers":
        tensors[name] = tensor.int() if tensor.is_floating_point() else tensor[:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})


def _bad_index(case: Case) -> None:
    """Put the weights behind an index that leads elsewhere."""
    weights = sorted(case.folder.glob("*.safetensors"))[0]
    outside = case.folder.parent / "outside.safetensors"
    shutil.move(weights, outside)
    place = case.rng.choice(["../outside.safetensors", str(outside), "/dev/zero", "", 7, "config.json"])
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load_file(outside), place)}
    (case.folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _pickle(case: Case) -> None:
    for path in case.folder.glob("*.safetensors"):
        path.unlink()
    # Unpickling it would end the process.
    (case.folder / case.rng.choice(["pytorch_model.bin", "model.pt", "x.pkl"])).write_bytes(b"cos\n_exit\n(I3\ntR.")


DAMAGES: dict[str, Callable[[Case], None]] = {
    "bits flipped in the header of the weights": _flip_header,
    "bits flipped in the weights": _flip_data,
    "bits flipped in config.json": _flip_config,
    "bits flipped in any file": _flip_other,
    "a file cut off": _cut,
    "a file with something behind its end": _append,
    "zeros in the weights": _zero_page,
    "a file deleted": _delete,
    "a file emptied": _empty,
    "a file of noise": _garbage,
    "no file but a folder, pipe, device or link": _not_a_file,
    "a file of another model": _swap_file,
    "two tensors swapped": _swap_tensors,
    "a tensor lost, renamed, cut, doubled or of integers": _lose_tensor,
    "the same, signed": _lose_tensor,
    "a value of config.json replaced": config_damages.edit_any,
    "a value of the record replaced": config_damages.edit_record,
    "a value of the record replaced, signed": config_damages.edit_record,
    "absurd sizes": config_damages.absurd_size,
    "absurd sizes, signed": config_damages.absurd_size,
    "other heads, signed": config_damages.other_heads,
    "a block lost or renamed, signed": config_damages.lose_block,
    "config.json is no plain JSON": config_damages.no_json,
    "an index that leads elsewhere": _bad_index,
    "a pickle": _pickle,
}
SIGNED = {name for name in DAMAGES if name.endswith("signed")}
