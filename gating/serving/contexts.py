"""Lengths of texts beyond which a model computes otherwise: those of windows, of chunks and of its first context."""

from collections.abc import Iterator, Mapping
from typing import Any

# Longest text of a check, in tokens; attention takes memory by the square of it.
LONGEST_CHECKED = 8192
# Settings of configurations that name a length.
_NAMES = frozenset(
    {
        *("sliding_window", "sliding_window_size", "window_size", "local_attention", "attention_window"),
        *("attention_chunk_size", "local_attn_chunk_length", "local_radius", "attention_window_size"),
        # These are lengths of blocks of local attention and recurrent layers, and of selections of sparse attention.
        *("lsh_attn_chunk_length", "local_attention_window_len", "block_size", "global_block_size", "chunk_size"),
        *("mamba_chunk_size", "keep_window_size", "index_topk", "floor_scale"),
    }
)
_SHORT = 2048
# Rotary embeddings whose frequencies depend on the length of the text.
_DYNAMIC, _LONG = CHANGING = ("dynamic", "longrope")


def boundaries(config: Any) -> list[int]:
    """Return the lengths that a configuration and its parts name, in tokens, in ascending order."""
    found = [length for name, value in settings_of(config) if name in _NAMES for length in _listed(value)]
    # Frequencies of other rotary embeddings, such as YaRN's, do not depend on the length of a text: the first context
    # of these is passed where that costs little.
    first = [rope.get("original_max_position_embeddings") for rope in _rotary_parameters(config)]
    found += [length for length in first if type(length) is int and length <= _SHORT]
    return sorted({length for length in [*found, steady_context(config)] if type(length) is int and length > 1})


def steady_context(config: Any) -> int | None:
    """Return the longest text for which the frequencies of rotary embeddings stay; None if they always do.

    Beyond it, dynamic and long ones are others for all tokens, those in a cache included.
    """
    for rope in _rotary_parameters(config):
        if rope.get("rope_type") in CHANGING:
            first = rope.get("original_max_position_embeddings") if rope["rope_type"] == _LONG else None
            return first or getattr(config, "original_max_position_embeddings", None) or _longest(config)
    return None


def checked_context(config: Any) -> tuple[int | None, str | None]:
    """Return the context of an export in tokens, and a sentence if it is shorter than the model's; None for no limit.

    It ends where the frequencies of rotary embeddings change, and before a boundary that is too long to be checked.
    """
    longest, steady = _longest(config), steady_context(config)
    if steady is not None:
        return steady, (
            f"The context is {steady} tokens: beyond them, the model's rotary embeddings change with the length of the "
            "text, which this export does not"
        )
    for length in boundaries(config):
        if LONGEST_CHECKED <= length < (longest or length + 1):
            return length, (
                f"The context is {length} tokens: the model computes otherwise beyond them, which is too long to check"
            )
    return longest, None


def _text_config(config: Any) -> Any:
    try:
        return config.get_text_config()
    except ValueError:  # It has several parts for texts.
        return config


def _longest(config: Any) -> int | None:
    length = getattr(_text_config(config), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _rotary_parameters(config: Any) -> list[Mapping[str, Any]]:
    """Return the parameters of rotary embeddings, for each kind of layers if they differ."""
    parameters = getattr(_text_config(config), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]


def settings_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a configuration, of its parts and of its tables, those without effect left out."""
    values = config if isinstance(config, Mapping) else vars(config)
    kinds = " ".join(map(str, values.get("layer_types") or ["sliding", "chunked"]))
    is_used = {
        "sliding_window": "sliding" in kinds and values.get("use_sliding_window") is not False,
        "attention_chunk_size": "chunked" in kinds,
    }
    for name, value in values.items():
        if is_used.get(name, True):
            yield name, value
        if isinstance(value, Mapping) or hasattr(value, "to_diff_dict"):
            yield from settings_of(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
