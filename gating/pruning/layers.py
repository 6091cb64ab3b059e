"""Layers that leave a model: their list, and the settings of a configuration that has them layer by layer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import combinations
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, initialization

from gating.errors import InputError, shorten
from gating.loader.modeling import RECORD_KEY, base_prefix
from gating.loader.record import LAYERS_KEY, dense_class, dense_config, describe, renamed
from gating.loader.saving import compact_class
from gating.proof.input_sizes import nested_configs
from gating.structure.blocks import share_specs
from gating.structure.edits import ABSENT, Edit, Undo, apply_edits, undo_edits
from gating.structure.layers import LayerList, dense_name, find_layer_lists, layers_record

_PLAIN = (bool, int, float, str, type(None))
# Values of settings of a configuration and of those in it, by dotted name.
Settings = dict[str, Any]

_COUNT = re.compile(r"(layers?|depth|num_blocks)$")
_PER_LAYER = re.compile(r"layer|block|attn|attention|mlp|moe|rope|window|pattern|kv_heads|key_value|limit")
# Numbers of layers; of those without rotary embedding, there is a mark for each layer.
_NUMBERS = re.compile(r"((?<!no_rope_)layers|idxs|idx|indexes|indices|layer_ids)$")
# Settings with a number of first layers, and with one of last layers.
_FIRST = re.compile(r"first_k_dense_replace|max_window_layers|n(um)?_dense_layers")
_LAST = re.compile(r"num_kv_shared_layers")


def drop_layers(model: PreTrainedModel, layers: LayerList, kept: Sequence[int]) -> list[Undo]:
    """Take all layers but the kept ones out of a list, in place, without a comparison of outputs.

    The new settings are those with which the class builds the same modules, but for their numbers. Without any, it
    raises ``InputError``, and the model is as before. The result undoes it.
    """
    config, differences = model.config, describe(model)
    before = _built(model, config, differences)
    moved = nn.ModuleList(layers.layers[number] for number in kept)
    moved.training = layers.layers.training
    path, _, attribute = layers.full_name.rpartition(".")
    record = _record_without(model, layers, kept)
    done = apply_edits([Edit(model.get_submodule(path), attribute, moved)])
    try:
        reasons, former, prefix = [], _former_names(model, layers, kept), base_prefix(model)
        names = {old.removeprefix(prefix): name.removeprefix(prefix) for name, (old, *_) in former.items()}
        differences = renamed(differences, names)
        for settings in settings_without_layers(config, kept, num_layers=len(layers.layers)):
            try:
                built = _built(model, changed(config, settings), differences)
                _check_cache(built)
                edits = _plan(model, before, built, former)
            except Exception as error:  # Classes raise any error for settings that they cannot have.
                reasons.append(str(error))
                continue
            values = {name: _setting_of(config, name) for name in settings} | record.get("config", {})
            memory = {**differences, LAYERS_KEY: {**record, "config": values}}
            done += apply_edits([*edits, *_plan_alignment(model, layers, kept), Edit(config, RECORD_KEY, memory)])
            return done
        reason = next(iter(reasons), "it has no setting with the number of these layers").rstrip(".")
        gone = sorted({*range(len(layers.layers))} - {*kept})
        raise InputError(
            f"{type(config).__name__} cannot describe {type(model).__name__} without the layers {gone} of "
            f"{layers.name}: {shorten(reason, most=300)}. Nothing was changed; remove others, or heads and neurons."
        )
    except BaseException:
        undo_edits(done)
        raise


def _built(model: PreTrainedModel, config: PreTrainedConfig, record: Mapping[str, Any]) -> PreTrainedModel:
    """Build a model as it is loaded from a compact folder, without memory."""
    recorded = changed(config, {})
    setattr(recorded, RECORD_KEY, record)
    return build_recorded(model, reread(recorded))


def _check_cache(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` if the cache of generation has fewer layers than the decoder: T5 counts its encoder."""
    if model.config.is_encoder_decoder and model.can_generate():
        num_cached = len(DynamicCache(config=model.config).layers)
        needed = max((len(layers.layers) for layers in find_layer_lists(model.get_decoder())), default=0)
        if num_cached < needed:
            raise ValueError(f"generate would have a cache of {num_cached} layers, and the decoder has {needed}")


def _former_names(model: nn.Module, layers: LayerList, kept: Sequence[int]) -> dict[str, tuple[str, int, int]]:
    """Return for each module its former name, and the former and the present number of its layer, or -1."""
    start, former = f"{layers.full_name}.", {}
    for name, _ in model.named_modules():
        number, _, rest = name.removeprefix(start).partition(".") if name.startswith(start) else ("", "", "")
        place = (int(number), kept[int(number)]) if number else (-1, -1)
        former[name] = (f"{start}{place[1]}.{rest}".rstrip(".") if number else name, place[1], place[0])
    return former


def _plan(
    model: nn.Module, before: nn.Module, built: nn.Module, former: Mapping[str, tuple[str, int, int]]
) -> list[Edit]:
    """Plan the attributes that its class gives a model without layers; ``ValueError`` if it would compute otherwise."""
    shapes, needed = ({n: tuple(t.shape) for n, t in one.state_dict().items()} for one in (model, built))
    if differing := sorted(n for n in shapes.keys() | needed.keys() if shapes.get(n) != needed.get(n)):
        raise ValueError(
            f"{differing[0]} would have the shape {needed.get(differing[0])}, not {shapes.get(differing[0])}"
        )
    modules, originals = dict(built.named_modules()), dict(before.named_modules())
    edits: list[Edit] = []
    for name, module in model.named_modules():
        old_name, old, new = former[name]
        if type(module).__name__ != type(modules[name]).__name__:
            raise ValueError(f"{name} would be a {type(modules[name]).__name__}")
        edits += _plan_module(name, module, originals[old_name], modules[name], (old, new))
    tied = getattr(built, "all_tied_weights_keys", None)
    if tied != getattr(model, "all_tied_weights_keys", None):
        edits.append(Edit(model, "all_tied_weights_keys", tied))
    return edits


def _plan_module(name: str, module: Any, before: Any, built: Any, number: tuple[int, int]) -> list[Edit]:
    """Plan to give a module the attributes that its place decides; an attribute that is no number of it is an error."""
    edits: list[Edit] = []
    for key, value in vars(built).items():
        former, present = vars(before).get(key), vars(module).get(key)
        if isinstance(value, PreTrainedConfig) and isinstance(present, PreTrainedConfig):
            edits += _plan_settings(former, present, value)
        elif _is_plain(value) and _is_plain(former) and value != present and former == present:
            # Probabilities of dropping a layer in training grow from layer to layer.
            is_number = type(former) is int and type(value) is int and former - value == number[0] - number[1]
            if number[0] >= 0 and not is_number and "drop" not in key:
                raise ValueError(f"{name} would have {key}={value!r}, not {present!r}")
            edits.append(Edit(module, key, value))
    return edits


def _plan_settings(former: PreTrainedConfig, present: PreTrainedConfig, new: PreTrainedConfig) -> list[Edit]:
    """Plan to give a configuration that a module has the settings that layers have changed."""
    olds, presents, edits = dict(nested_configs(former)), dict(nested_configs(present)), list[Edit]()
    for path, part in nested_configs(new):
        for key, value in vars(part).items():
            is_changed = key not in (RECORD_KEY, "_commit_hash") and vars(olds[path]).get(key) != value
            if is_changed and not isinstance(value, PreTrainedConfig) and key in vars(presents[path]):
                edits.append(Edit(presents[path], key, value))
    return edits


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, (tuple, list)) else isinstance(value, _PLAIN)


def _plan_alignment(model: nn.Module, layers: LayerList, kept: Sequence[int]) -> list[Edit]:
    """Plan the update of Whisper's ``alignment_heads``, pairs of a decoder layer and a head, if those leave."""
    config: Any = getattr(model, "generation_config", None)
    pairs = getattr(config, "alignment_heads", None)
    members = [block for blocks in layers.blocks for block in blocks]
    if not pairs or not any(getattr(block, "is_cross_attention", False) for block in members):
        return []
    moved = [[kept.index(number), head] for number, head in pairs if number in kept]
    return [Edit(config, "alignment_heads", moved or ABSENT)]


def _record_without(model: PreTrainedModel, layers: LayerList, kept: Sequence[int]) -> dict[str, Any]:
    """Return the part of the record about layers that left, after some layers more have."""
    record: dict[str, Any] = layers_record(model)
    numbers = record.get("kept", {}).get(layers.name, range(len(layers.layers)))
    sizes: dict[str, dict[str, int]] = {}
    for number, blocks in enumerate(layers.blocks):
        for block in () if number in kept else blocks:
            of_unit = sizes.setdefault(block.unit, dict(record.get(block.unit, {})))
            of_unit[dense_name(record, block.name)] = block.size_before
    now = {**record.get("kept", {}), layers.name: [numbers[number] for number in kept]}
    return {**record, **sizes, "kept": now}


def build_recorded(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Build the compact model of a configuration with a record, without memory; its blocks have their former sizes."""
    cls = compact_class(dense_class(model), type(config))
    with torch.device("meta"), initialization.no_init_weights():
        built: PreTrainedModel = cls._from_config(deepcopy(config), dtype=model.dtype)
    return built


def build_original(
    model: PreTrainedModel, config: PreTrainedConfig, *, device: str | torch.device = "meta"
) -> PreTrainedModel:
    """Build the dense model of a configuration with a record: all heads and neurons, and random weights."""
    former = getattr(config, RECORD_KEY, {}).get(LAYERS_KEY, {}).get("config", {})
    with torch.device(device):
        original = changed(dense_config(config), former)
        built: PreTrainedModel = dense_class(model)._from_config(original, dtype=model.dtype)
    share_specs(model, built)
    return built


def settings_without_layers(config: PreTrainedConfig, kept: Sequence[int], *, num_layers: int) -> Iterator[Settings]:
    """Yield settings that may describe a model of which some layers are left, the likeliest first.

    A number of layers is found by its value, lists by their length; only a model that is built tells the right ones.
    """
    for path, part in nested_configs(config):
        fields = {name: value for name, value in vars(part).items() if name != RECORD_KEY and name[0] != "_"}
        counts = [n for n, v in fields.items() if type(v) is int and v == num_layers and _COUNT.search(n)]
        others = {
            f"{path}{name}": new
            for name, value in fields.items()
            if name not in counts and (new := _without(name, value, kept, num_layers)) != value
        }
        stages = fields.get("stage_names")
        has_stages = isinstance(stages, list) and len(stages) == num_layers + 1
        if stages and has_stages and getattr(part, "out_features", None) == stages[-1:]:
            # Vision models whose layers are stages: those that return the last one.
            stages = stages[: len(kept) + 1]
            others |= {f"{path}stage_names": stages, f"{path}out_features": stages[-1:]}
        for size in range(1, min(len(counts), 3) + 1):
            for chosen in combinations(counts, size):
                numbers = {f"{path}{name}": len(kept) for name in chosen}
                yield {**numbers, **others}
                if others:
                    yield numbers
        if others:
            yield others


def changed(config: PreTrainedConfig, settings: Settings) -> PreTrainedConfig:
    """Return a copy of a configuration with other values of some settings."""
    copied = deepcopy(config)
    parts = dict(nested_configs(copied))
    for name, value in settings.items():
        path, _, last = name.rpartition(".")
        setattr(parts[f"{path}." if path else ""], last, deepcopy(value))
    return copied


def reread(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a configuration as it is written and read again: sizes are checked, and some are derived from others."""
    # In transformers 5.0 configurations have no checks but those of their constructors.
    if (check := getattr(config, "validate", None)) is not None:
        check()
    return type(config).from_dict(config.to_dict())


def _setting_of(config: PreTrainedConfig, name: str) -> Any:
    """Return the value of a setting of a configuration, or of one in it, by its dotted name."""
    path, _, last = name.rpartition(".")
    return getattr(dict(nested_configs(config))[f"{path}." if path else ""], last)


def _without(name: str, value: Any, kept: Sequence[int], num_layers: int) -> Any:
    """Return the value of a setting without its entries for the layers that leave."""
    if type(value) is int:
        if _FIRST.fullmatch(name):
            return sum(layer < value for layer in kept)
        return sum(layer >= num_layers - value for layer in kept) if _LAST.fullmatch(name) else value
    if not (isinstance(value, (list, tuple)) and value):
        return value
    is_numbers = all(type(item) is int for item in value) and _NUMBERS.search(name) and "out_" not in name
    if is_numbers and list(value) == sorted(set(value)) and value[-1] < num_layers:
        return type(value)(kept.index(item) for item in value if item in kept)
    if len(value) == num_layers and _PER_LAYER.search(name):
        return type(value)(value[layer] for layer in kept)
    return value
