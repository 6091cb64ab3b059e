"""The architecture of llama.cpp that runs a decoder, and the reasons why others do not run.

Most of llama.cpp's architectures read one number of heads for all layers. Three read one for each: ``deci`` (LLaMA with
optional biases, and layers without attention), ``openelm`` (norms of queries and keys, tied embeddings) and ``step35``
(such norms, and an output embedding of its own). Their loaders and graphs are in ``src/models`` of llama.cpp.
"""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from gating.errors import InputError
from gating.serving.contexts import checked_context
from gating.serving.decoders import sizes_of


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp.

    Attributes:
        name: Its name in a file.
        rotates_pairs: Whether rotary embeddings turn neighbouring values, not the halves of a head as in transformers:
            the rows of queries and keys then change places.
        has_norms: Whether queries and keys of each head are normalized.
        is_fused: Whether one tensor has queries, keys and values.
        sizes_per_layer: Sizes that may differ between layers: ``heads`` and ``neurons``.
        may_be_empty: Whether a layer may have no attention.
        ties: Whether the output embedding has to be tied to the input embedding (True), must not be (False), or either.
        rope_types: Types of rotary embeddings, in transformers' words.
    """

    name: str
    rotates_pairs: bool = False
    has_norms: bool = False
    is_fused: bool = False
    sizes_per_layer: tuple[str, ...] = ()
    may_be_empty: bool = False
    ties: bool | None = None
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")


_LLAMA = Architecture("llama", rotates_pairs=True, rope_types=("default", "linear", "llama3", "yarn"))
_DECI = replace(_LLAMA, name="deci", sizes_per_layer=("heads", "neurons"), may_be_empty=True)
_QWEN3 = Architecture("qwen3", has_norms=True)
_OPENELM = Architecture("openelm", has_norms=True, is_fused=True, sizes_per_layer=("heads", "neurons"), ties=True)
# Its full attention rotates half of a head, so each layer gets a sliding window as long as the context.
_STEP35 = Architecture("step35", has_norms=True, sizes_per_layer=("heads",), ties=False, rope_types=("default",))

# Each family has an architecture for even sizes and some for uneven ones. Qwen2 is run as llama, which has biases, too:
# the architecture qwen2 has as many query rows as hidden values.
_FAMILIES: dict[str, tuple[Architecture, tuple[Architecture, ...]]] = {
    "llama": (_LLAMA, (_DECI,)),
    "mistral": (_LLAMA, (_DECI,)),
    "qwen2": (_LLAMA, (_DECI,)),
    "qwen3": (_QWEN3, (_OPENELM, _STEP35)),
}
# Settings of YaRN that a file has no place for.
_YARN_DEFAULTS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")


def find_architecture(model: PreTrainedModel) -> Architecture:
    """Return the architecture of llama.cpp for a decoder; raise ``InputError`` with the reason if it has none."""
    sizes, config, name = sizes_of(model), model.config, type(model).__name__
    if config.model_type not in _FAMILIES or not name.endswith("ForCausalLM"):
        raise _refusal(
            model,
            "only LLaMA, Mistral, Qwen2 and Qwen3 have an architecture there with sizes that differ between layers"
            + " (llama.cpp's own convert_hf_to_gguf.py may know its stock folder)" * sizes.is_even,
        )
    even, uneven = _FAMILIES[config.model_type]
    is_tied = bool(config.tie_word_embeddings)
    found = even if sizes.is_even else next(one for one in uneven if one.ties in (None, is_tied))
    if config.hidden_act not in ("silu", "swish"):
        raise _refusal(model, f"its activation {config.hidden_act!r} is not the SiLU of the architecture {found.name}")
    kind = rope_type(config)
    if kind not in found.rope_types:
        raise _refusal(model, f"the architecture {found.name} has no rotary embeddings of the type {kind!r}")
    rope = config.rope_parameters or {}
    if float(rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise _refusal(model, f"the architecture {found.name} rotates whole heads, and this model a part of each")
    changed = next((name for name in _YARN_DEFAULTS if rope.get(name) is not None), None)
    if kind == "yarn" and changed:
        raise _refusal(model, f"YaRN with {changed} is not that of llama.cpp")
    biased = next((name for name, _ in model.named_parameters() if name.endswith(".bias")), None)
    if found.has_norms and biased is not None:
        raise _refusal(model, f"the architecture {found.name} has no biases, and the model has {biased}")
    return found


def blocks_to_fill(model: PreTrainedModel, architecture: Architecture) -> tuple[str, ...]:
    """Return the names of the emptied attention blocks in whose place an architecture needs a dummy group."""
    sizes = sizes_of(model)
    if not architecture.may_be_empty:
        return sizes.emptied
    # Its first layer stands for the model's number of heads; a layer without attention has no output bias there.
    biased = {name for name in sizes.emptied if any(key.endswith(f"{name}.o_proj.bias") for key in model.state_dict())}
    return tuple(name for name in sizes.emptied if name == sizes.names[0] or name in biased)


def context_length(config: Any) -> tuple[int, str | None]:
    """Return the longest context of a file, in tokens, and a note if it is shorter than the model's.

    The architectures attend to all earlier tokens; a sliding window makes no difference before its end, nor do dynamic
    rotary embeddings before that of the context.
    """
    longest, rotation = checked_context(config)
    assert longest is not None
    types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in types if types else getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if slides else None
    if window is None or window >= longest:
        return longest, rotation
    return window, (
        f"The context is {window} tokens instead of {longest}: the model's layers have a sliding window of that "
        "length, and those of the file attend to everything"
    )


def rope_type(config: Any) -> str:
    """Return the type of rotary embeddings of a configuration, such as ``default`` or ``llama3``."""
    kind = str((config.rope_parameters or {}).get("rope_type") or "default")
    # Dynamic ones are the default ones up to the context of the model.
    return "default" if kind == "dynamic" else kind


def _refusal(model: PreTrainedModel, reason: str) -> InputError:
    return InputError(f"{type(model).__name__} cannot be exported to GGUF: {reason}.")
