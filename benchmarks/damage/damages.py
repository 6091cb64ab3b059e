"""Ways to damage the folder of a compact model, each drawn at random from a seed.

A *signed* damage updates the checksums afterwards, as an attacker would, so that the checks behind the checksums are
tried, too. Only damages that must be noticed without a checksum are signed.
"""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

from gating.compact.files import write_manifest
from gating.loader.saving import write_checksums

_ABSURD = [-1, -(10**9), 10**9, 2**31, 10**12, 2**63, 10**30]
_NASTY = [*_ABSURD, 0, 1, 3, 1.5, 1e300, True, None, "", "x", "../../etc/passwd", [], {}, [0, 0], [[]], {"0": 0}]
_SIZES = ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size", "d_model"]
_SIZES += ["num_labels", "max_position_embeddings", "n_layer", "n_embd", "num_key_value_heads", "head_dim", "d_kv"]


class Case(NamedTuple):
    """A folder to damage, another one of the same family, and the generator of random choices."""

    rng: random.Random
    folder: Path
    other: Path


def damage(name: str, folder: Path, other: Path, *, seed: int) -> None:
    """Damage the folder of a compact model in place; ``other`` has a model of the same family with as many heads."""
    DAMAGES[name](Case(random.Random(f"{name} {seed}"), folder, other))
    if name.endswith("signed"):
        write_checksums(folder)
        write_manifest(folder)


def _any_file(case: Case) -> Path:
    """Half of the time the weights or the configuration, else any file."""
    important = [*case.folder.glob("*.safetensors"), case.folder / "config.json", *case.folder.glob("*.index.json")]
    return case.rng.choice(sorted(important) if case.rng.random() < 0.6 else sorted(case.folder.iterdir()))


def _weights(case: Case) -> Path:
    return case.rng.choice(sorted(case.folder.glob("*.safetensors")))


def _flip(case: Case, path: Path, start: int = 0, stop: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(case.rng.choice([1, 1, 1, 2, 8])):
        content[case.rng.randrange(start, stop or len(content))] ^= 1 << case.rng.randrange(8)
    path.write_bytes(content)


def _header_end(path: Path) -> int:
    return 8 + int(struct.unpack("<Q", path.read_bytes()[:8])[0])


def _flip_header(case: Case) -> None:
    path = _weights(case)
    _flip(case, path, 0, _header_end(path))


def _flip_data(case: Case) -> None:
    path = _weights(case)
    _flip(case, path, _header_end(path))


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


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of each value in a nested table."""
    for key, inside in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inside, (dict, list)):
            yield from _leaves(inside)


@contextmanager
def _config(case: Case) -> Iterator[dict[str, Any]]:
    """Yield the configuration, to be changed."""
    path = case.folder / "config.json"
    config = json.loads(path.read_text())
    yield config
    path.write_text(json.dumps(config, indent=2))


def _edit_any(case: Case) -> None:
    with _config(case) as config:
        holder, key = case.rng.choice(list(_leaves(config)))
        holder[key] = case.rng.choice(_NASTY)


def _edit_record(case: Case) -> None:
    with _config(case) as config:
        record = config["head_gating"]
        # Checksums that are gone are no damage, and others are told apart from these in other cases.
        holder, key = case.rng.choice(list(_leaves({key: record[key] for key in record if key != "sha256"})))
        holder[key] = case.rng.choice(_NASTY)


def _absurd_size(case: Case) -> None:
    with _config(case) as config:
        names = [name for name in _SIZES if name in config] or ["num_hidden_layers"]
        for name in case.rng.sample(names, case.rng.randint(1, len(names))):
            config[name] = case.rng.choice(_ABSURD)


def _other_heads(case: Case) -> None:
    """Have the record keep other heads: one more, one less, one twice, in another order, beyond the last."""
    with _config(case) as config:
        units = config["head_gating"]["units"]
        block = units[case.rng.choice([name for name in units if len(units[name].get("head_ids", ())) > 1])]
        heads, total = block["head_ids"], block["num_heads_before"]
        others = [heads[1:], [], [*heads, heads[-1]], heads[::-1], [*heads[:-1], total], [-1, *heads[1:]], [heads[0]]]
        others += [list(range(total))] if len(heads) < total else []
        block["head_ids"] = block["head_slots"] = case.rng.choice(others)


def _lose_block(case: Case) -> None:
    """Remove or rename a module of the record."""
    with _config(case) as config:
        modules = config["head_gating"]["modules"]
        name = case.rng.choice(sorted(modules))
        module = modules.pop(name)
        if case.rng.random() < 0.5:
            modules[f"{name}.0"] = module


def _no_json(case: Case) -> None:
    """Write text that is not plain JSON."""
    path = case.folder / "config.json"
    text = path.read_text()
    texts = [
        text.replace("{", '{"model_type": "gpt2",', 1).encode(),
        text.replace("{", '{"x": NaN,', 1).encode(),
        text.replace("{", '{"x": -Infinity,', 1).encode(),
        text.replace("{", f'{{"x": {"9" * 5000},', 1).encode(),
        ("[" * 100_000).encode(),
        ('{"a":' * 100_000).encode(),
        text.encode("utf-16"),
        b"\xef\xbb\xbf" + text.encode(),
        text.replace('"', "'").encode(),
        b"null",
    ]
    path.write_bytes(case.rng.choice(texts))


DAMAGES: dict[str, Callable[[Case], object]] = {
    "bits flipped in the header of the weights": _flip_header,
    "bits flipped in the weights": _flip_data,
    "bits flipped in config.json": lambda case: _flip(case, case.folder / "config.json"),
    "bits flipped in any file": lambda case: _flip(case, _any_file(case)),
    "a file cut off": _cut,
    "a file with something behind its end": _append,
    "zeros in the weights": _zero_page,
    "a file deleted": lambda case: _any_file(case).unlink(),
    "a file emptied": lambda case: _any_file(case).write_bytes(b""),
    "a file of noise": lambda case: _any_file(case).write_bytes(case.rng.randbytes(case.rng.randrange(1, 5000))),
    "no file but a folder, pipe, device or link": _not_a_file,
    "a file of another model": _swap_file,
    "two tensors swapped": _swap_tensors,
    "a tensor lost, renamed, cut, doubled or of integers": _lose_tensor,
    "the same, signed": _lose_tensor,
    "a value of config.json replaced": _edit_any,
    "a value of the record replaced": _edit_record,
    "a value of the record replaced, signed": _edit_record,
    "absurd sizes": _absurd_size,
    "absurd sizes, signed": _absurd_size,
    "other heads, signed": _other_heads,
    "a block lost or renamed, signed": _lose_block,
    "config.json is no plain JSON": _no_json,
    "an index that leads elsewhere": _bad_index,
    "a pickle": _pickle,
}
