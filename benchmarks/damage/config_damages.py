"""Damages to a compact model's config.json and the record in it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.damage.case import Case

__all__ = ["absurd_size", "edit_any", "edit_record", "lose_block", "no_json", "other_heads"]

_ABSURD = [-1, -(10**9), 10**9, 2**31, 10**12, 2**63, 10**30]
_NASTY = [*_ABSURD, 0, 1, 3, 1.5, 1e300, True, None, "", "x", "../../etc/passwd", [], {}, [0, 0], [[]], {"0": 0}]
_SIZES = ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size", "d_model"]
_SIZES += ["num_labels", "max_position_embeddings", "n_layer", "n_embd", "num_key_value_heads", "head_dim", "d_kv"]


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of each value in a nested table."""
    for key, inside in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inside, (dict, list)):
            yield from _leaves(inside)


def _edit_config(case: Case, change: Callable[[dict[str, Any]], None]) -> None:
    path = case.folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config, indent=2))


def edit_any(case: Case) -> None:
    """Replace any value."""

    def change(config: dict[str, Any]) -> None:
        holder, key = case.rng.choice(list(_leaves(config)))
        holder[key] = case.rng.choice(_NASTY)

    _edit_config(case, change)


def edit_record(case: Case) -> None:
    """Replace a value of the record."""

    def change(config: dict[str, Any]) -> None:
        record = config["head_gating"]
        # Checksums that are gone are no damage, and others are told apart from these in other cases.
        places = list(_leaves({key: record[key] for key in record if key != "sha256"}))
        holder, key = case.rng.choice(places)
        holder[key] = case.rng.choice(_NASTY)

    _edit_config(case, change)


def absurd_size(case: Case) -> None:
    """Replace sizes by absurd ones."""

    def change(config: dict[str, Any]) -> None:
        names = [name for name in _SIZES if name in config] or ["num_hidden_layers"]
        for name in case.rng.sample(names, case.rng.randint(1, len(names))):
            config[name] = case.rng.choice(_ABSURD)

    _edit_config(case, change)


def other_heads(case: Case) -> None:
    """Have the record keep other heads: one more, one less, one twice, in another order, beyond the last."""

    def change(config: dict[str, Any]) -> None:
        units = config["head_gating"]["units"]
        block = units[case.rng.choice([name for name in units if len(units[name].get("head_ids", ())) > 1])]
        heads, total = block["head_ids"], block["num_heads_before"]
        block["head_ids"] = block["head_slots"] = case.rng.choice(
            [heads[1:], [], [*heads, heads[-1]], heads[::-1], [*heads[:-1], total], [-1, *heads[1:]], [heads[0]]]
            + ([list(range(total))] if len(heads) < total else [])
        )

    _edit_config(case, change)


def lose_block(case: Case) -> None:
    """Remove or rename a module of the record."""

    def change(config: dict[str, Any]) -> None:
        modules = config["head_gating"]["modules"]
        name = case.rng.choice(sorted(modules))
        module = modules.pop(name)
        if case.rng.random() < 0.5:
            modules[f"{name}.0"] = module

    _edit_config(case, change)


def no_json(case: Case) -> None:
    """Write text that is not plain JSON."""
    path = case.folder / "config.json"
    text = path.read_text()
    path.write_bytes(
        case.rng.choice(
            [
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
        )
    )
