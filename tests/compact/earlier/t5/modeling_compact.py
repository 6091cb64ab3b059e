"""A model of transformers with units removed: the class of its architecture, and what differs from the dense model.

``config.json`` has under ``head_gating`` the differences: for each module, shapes of tensors, attributes, and names of
parts of this file that change its class. Importing this file defines functions and classes and does nothing else.
"""

import copy
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

# Functions and classes that a record can name, and base classes of every compact model.
PARTS: dict[str, Any] = {}
MIXINS: list[type] = []
CLASSES: dict[tuple[object, ...], type[Any]] = {}

def part(function: Any) -> Any:
    """Register a function or class under its name, so that records can name it."""
    PARTS[function.__name__] = function
    return function

def subclass(base: type[nn.Module], *parts: tuple[Any, ...]) -> type[nn.Module]:
    """Return the subclass of a class with the members that parts return: functions of it and of their arguments."""
    base = getattr(base, "original_class", base)
    key = (base, *parts)
    if parts and key not in CLASSES:
        members = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        # Pickle would look the class up by its name and find the base.
        members |= {"original_class": base, "parts": parts, "__reduce_ex__": lambda self, _: (_new, key, vars(self))}
        for make_members, *arguments in parts:
            members |= make_members(base, *arguments)
        CLASSES[key] = type(base.__name__, (base,), members)
    return CLASSES.get(key, base)

def _new(*key: Any) -> nn.Module:
    cls = subclass(*key)
    return cls.__new__(cls)

def freeze(value: Any) -> Any:
    """Return a value with tuples for lists."""
    return tuple(map(freeze, value)) if isinstance(value, list) else value

RECORD_KEY, CHECKSUMS, CANARY = "head_gating", "sha256", "canary"
CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

def changed_file(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the name of the first file of a folder that differs from the checksums in its configuration, or None."""
    sums: dict[str, str] = config[RECORD_KEY].get(CHECKSUMS) or {}
    # transformers prefers one file of weights to several, so that a new one would replace the saved ones.
    present = {name for name in (CONFIG, WEIGHTS, INDEX, GENERATION) if (folder / name).exists()}
    changed = (name for name in sorted({*sums, *present}) if sums.get(name) != digest_file(folder / name))
    return next(changed, None) if sums else None

def digest_file(path: Path) -> str:
    """Return the checksum of a file; that of JSON does not depend on its layout, which git changes on some systems."""
    if path.suffix == ".json":
        return digest_table(json.loads(path.read_text(encoding="utf-8")))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()

def digest_table(table: Any) -> str:
    """Return the checksum of the content of a JSON file, without the checksums in a record."""
    record = table.get(RECORD_KEY) if isinstance(table, dict) else None
    table = {**table, RECORD_KEY: {**record, CHECKSUMS: None}} if isinstance(record, dict) else table
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()

@part
def sliced_inputs(base: type[nn.Module], inputs: tuple[tuple[str, int], ...], num_heads: int) -> dict[str, Any]:
    """Return the members of a subclass that takes the entries of its own heads from some arguments and dimensions.

    The arguments have entries for the ``num_heads`` heads of the original model.
    """
    bind = _bind_arguments(base)

    def forward(self: Any, *args: object, **kwargs: object) -> object:
        arguments = bind(args, kwargs)
        for name, dim in inputs:
            arguments[name] = _take_heads(self, arguments.get(name), dim, num_heads)
        return base.forward(self, **arguments)

    return {"forward": forward}

@part
def shared_bias(base: Any, num_heads: int) -> dict[str, Any]:
    """Return the members of a subclass of T5's attention.

    The first layer computes a position bias for all ``num_heads`` original heads and passes it to the others in its
    return value; each layer takes the entries of its own heads. The zeros that cross-attention uses as bias are not
    passed on, because layers differ in their number of heads.
    """
    bind = _bind_arguments(base)

    def compute_bias(self: Any, *args: object, **kwargs: object) -> Tensor:
        # Exporters would see an assignment.
        self.__dict__["full_bias"] = bias = base.compute_bias(self, *args, **kwargs)
        return cast("Tensor", _take_heads(self, bias, 1, num_heads))

    def forward(self: Any, *args: object, **kwargs: object) -> tuple[Any, ...]:
        arguments = bind(args, kwargs)
        is_cross_attention = arguments.get("key_value_states") is not None
        full_bias = None if is_cross_attention else arguments.get("position_bias")
        arguments["position_bias"] = _take_heads(self, full_bias, 1, num_heads)
        # Below transformers 5.20, probabilities follow only if they are asked for.
        output, own_bias, *probabilities = base.forward(self, **arguments)
        computed = self.__dict__.pop("full_bias", None)
        if computed is not None and not is_cross_attention:
            _, _, *lengths = own_bias.shape
            full_bias = computed[:, :, -lengths[0] :, : lengths[1]]
            # Below transformers 5.10, the first layer adds the mask, which has no heads.
            added = own_bias[:, :1] - _take_heads(self, full_bias, 1, num_heads)[:, :1]
            full_bias = full_bias + added
        return output, full_bias, *probabilities

    return {"forward": forward, "compute_bias": compute_bias}

def _bind_arguments(cls: type[nn.Module]) -> Callable[[tuple[object, ...], Mapping[str, object]], dict[str, Any]]:
    """Return a function that names the arguments of ``forward``; ``torch.compile`` does not trace ``inspect``."""
    names = list(inspect.signature(cls.forward).parameters)[1:]
    return lambda args, kwargs: {**dict(zip(names, args)), **kwargs}  # noqa: B905

def _take_heads(module: Any, value: Any, dim: int, num_heads: int) -> Any:
    """Index a tensor with an entry for each original head; tensors that broadcast over heads stay.

    The first dimension may be that of batch and heads together.
    """
    if not isinstance(value, Tensor) or value.dim() <= dim:
        return value
    if dim == 0 and value.shape[0] % num_heads == 0:
        return value.unflatten(0, (-1, num_heads)).index_select(1, module.head_index).flatten(0, 1)
    return torch.index_select(value, dim, module.head_index) if value.shape[dim] == num_heads else value

@dataclass(frozen=True)
class HeadMask:
    """A forward pre-hook of an output projection that sets the outputs of some heads to zero.

    Attributes:
        is_kept: For each head with columns in the projection, whether its outputs stay.
        head_dim: Width of one head.
    """

    is_kept: tuple[bool, ...]
    head_dim: int

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Mask the first input, ``[..., num_heads * head_dim]``."""
        head_outputs, *rest = inputs
        mask = head_outputs.new_tensor(self.is_kept).repeat_interleave(self.head_dim)
        return (head_outputs * mask, *rest)

@part
def silenced(base: type[nn.Module], is_kept: tuple[bool, ...], head_dim: int) -> dict[str, Any]:
    """Return the members of a subclass of an output projection that masks the outputs of padding heads.

    Their columns of the weight are zero and get a gradient of zero, so that training does not revive removed heads.
    """
    mask = HeadMask(is_kept, head_dim)

    def forward(self: Any, head_outputs: Tensor) -> object:
        return base.forward(self, mask(self, (head_outputs,))[0])

    return {"forward": forward}

@part
def padded(base: type[nn.Module], is_kept: tuple[bool, ...], head_dim: int, projection: str) -> dict[str, Any]:
    """Return the members of a subclass of attention that masks the input of adapters of its output projection, too."""
    mask = HeadMask(is_kept, head_dim)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        wraps_projection = name == projection and isinstance(value, nn.Module) and hasattr(value, "base_layer")
        if wraps_projection and mask not in value._forward_pre_hooks.values():
            value.register_forward_pre_hook(mask)
        base.__setattr__(self, name, value)

    return {"__setattr__": set_attribute}

PLAIN_LOADING = "transformers_weights"  # With this setting, a plain class refuses to load the weights.
OF = "__of__"  # Between the names of a model class and of a configuration class of another family.

def apply_record(model: PreTrainedModel, record: dict[str, Any]) -> dict[str, Any]:
    """Give a dense model all of a compact one but values, and return the record of the modules that it has."""
    modules, entries, units = dict[str, Any](model.named_modules()), record["modules"], record["units"]
    places = places_of(model, (*entries, *units))
    missing = sorted(entries.keys() - places.keys())
    # A part of the saved model, such as an encoder alone, lacks some.
    if missing and (not places or model.config.architectures == [type(model).__name__]):
        raise renamed_error(model, missing[0])
    for name in entries.keys() & places.keys():
        try:
            _apply(modules[places[name]], entries[name])
        except AttributeError as error:
            raise renamed_error(model, f"{name}: {error}") from error
    for name in units.keys() & places.keys():
        modules[places[name]].__dict__.update({key: freeze(value) for key, value in units[name].items()})
    own = {kind: {name: one for name, one in record[kind].items() if name in places} for kind in ("modules", "units")}
    # Training changes the weights, and what was computed from them.
    return {**{name: one for name, one in record.items() if name not in (CHECKSUMS, CANARY)}, **own}

def _apply(module: nn.Module, entry: Mapping[str, Any]) -> None:
    for key, shape in entry.get("tensors", {}).items():
        before = getattr(module, key)
        values: Tensor = before.detach()[tuple(map(slice, shape))].clone()
        is_parameter = isinstance(before, nn.Parameter)
        setattr(module, key, nn.Parameter(values, requires_grad=before.requires_grad) if is_parameter else values)
    for key, shape in entry.get("added", {}).items():
        module.register_buffer(key, torch.zeros(shape, dtype=torch.long))
    for key in entry.get("without", ()):
        getattr(module, key)
        if isinstance(module, nn.ModuleList):
            del module[-1]
        else:
            setattr(module, key, None)
            # from_pretrained would initialize projections that are gone.
            module._is_hf_initialized = True  # type: ignore[assignment]
    counts = {key: value for key, value in entry.get("counts", {}).items() if key in vars(module)}
    for key, value in {**entry.get("attributes", {}), **counts}.items():
        setattr(module, key, tuple(value) if isinstance(getattr(module, key), tuple) else value)
    if "config" in entry:
        module.config = PARTS["ConfigView"](module.config, entry["config"])
    if "parts" in entry:
        parts = [[PARTS[name], *(PARTS.get(str(one), one) for one in others)] for name, *others in entry["parts"]]
        module.__class__ = subclass(type(module), *freeze(parts))

def places_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the full names of recorded modules that a model has; in the record, they lack the prefix of its base."""
    known, prefix = dict(model.named_modules()), base_prefix(model)
    found = {name: prefix + name if prefix + name in known else name for name in names}
    return {name: full for name, full in found.items() if full in known}

def base_prefix(model: nn.Module) -> str:
    """Return the prefix that names in a record lack, so that it fits every task head."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""

def renamed_error(model: PreTrainedModel, missing: str) -> ValueError:
    """Return the error about a version of transformers in which a family has other modules."""
    saved = getattr(model.config, "transformers_version", None)
    return ValueError(
        f"This {model.config.model_type} model was saved with transformers {saved}; {type(model).__name__} of the "
        f"installed transformers {transformers.__version__} has other modules ({missing}): install {saved}, or newer."
    )

class CompactMixin:
    """Methods of a transformers model class that removes units as its configuration records."""

    is_compact = True
    canary: dict[str, Any] | None = None
    apply_record: Any = apply_record
    dense_class: Any
    config: Any

    # Runtimes compare arguments with these types, and every value is an object.
    def __init__(self, config: object, *args: object, **kwargs: object) -> None:
        """Build the dense model, and change it as the record in ``config`` says."""
        kwargs.pop(PLAIN_LOADING, vars(config).pop(PLAIN_LOADING, None))
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        record = getattr(config, RECORD_KEY, None)
        if record is not None:
            self.canary = record.get(CANARY)
            setattr(self.config, RECORD_KEY, self.apply_record(record))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, verify: bool = True, **kwargs: Any) -> Any:
        """Load a model as transformers does; ``ValueError`` tells files in a folder that are not what was saved."""
        name = pretrained_model_name_or_path
        wants_info, kwargs = kwargs.pop("output_loading_info", False), {PLAIN_LOADING: None, **kwargs}
        if isinstance(kwargs.get("config"), transformers.PretrainedConfig):
            kwargs["config"] = copy.copy(kwargs["config"])
            vars(kwargs["config"]).pop(PLAIN_LOADING, kwargs.pop(PLAIN_LOADING))
        folder = Path(str(name), kwargs.get("subfolder") or "")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else {}
        if verify and RECORD_KEY in config and not kwargs.get("variant") and (file := changed_file(folder, config)):
            raise ValueError(f"{folder / file} is not what was saved: it is damaged or was replaced.")
        model, found = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        lost = sorted(map(str, (*found["missing_keys"], *found["unexpected_keys"])))
        # Another class has another task head.
        if lost and config.get("architectures") == [cls.__name__] and not kwargs.get("ignore_mismatched_sizes"):
            raise ValueError(f"{folder} is damaged or mixed from two models: {lost[0]} is not in both of them.")
        return (model, found) if wants_info else model

    def check_canary(self: Any, *, tolerance: float = 3e-3) -> float:
        """Compare outputs with those that the saved model had on a small batch; return the relative difference.

        Call it after loading, before training. A ``ValueError`` tells other outputs, or that the folder has none.
        """
        if self.canary is None or self.canary["class"] != type(self).__name__:
            raise ValueError(f"There are no outputs of {type(self).__name__} to compare with.")
        expected = torch.tensor(self.canary["outputs"])
        difference = (canary_outputs(self, self.canary) - expected).abs().max() / expected.abs().max()
        if not difference <= max(tolerance, 4 * torch.finfo(self.dtype).eps):
            raise ValueError(
                f"{type(self).__name__} has other outputs with transformers {transformers.__version__} than when it "
                f"was saved with transformers {self.canary['transformers']}: they differ by {difference:.1e}."
            )
        return float(difference)

    @property
    def _auto_class(self: Any) -> str | None:
        """The Auto class that loads this class; it asks save_pretrained to copy this file into a folder."""
        places = self.config.auto_map.items()
        return next((name for name, place in places if place.endswith("." + type(self).__qualname__)), None)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: of custom code, transformers leaves some buffers uninitialized."""
        return False

    def _get_static_cache_init_shape(self) -> None:
        """Let static caches take their size at first use, layer by layer; the configuration has one size for all."""

@torch.no_grad()
def canary_outputs(model: Any, canary: Mapping[str, Any], *, size: int = 64) -> Tensor:
    """Return numbers of the first output of a model, ``[size]``, for integers, and a sine in the shapes of the rest."""
    batch = {name: torch.tensor(values, device=model.device) for name, values in canary["integers"].items()}
    for name, shape in canary["shapes"].items():
        batch[name] = torch.arange(math.prod(shape)).mul(0.37).sin().reshape(shape).to(model.device, model.dtype)
    training = [module for module in model.modules() if module.training]
    outputs = model.eval()(**batch)
    for module in training:
        module.training = True
    outputs = outputs.values() if isinstance(outputs, Mapping) else outputs
    first = next(value for value in outputs if isinstance(value, Tensor) and value.is_floating_point())
    return first.float().cpu().flatten()[:: max(1, first.numel() // size)][:size]

def compact_class(base: Any, config_class: Any = None, mixin: type = CompactMixin) -> Any:
    """Return the subclass of a class of models, of its name, which pipelines look up; some have a foreign config."""
    config_class = config_class or base.config_class
    key = (base, config_class, mixin)
    if not getattr(base, "is_compact", False) and key not in CLASSES:
        members = {"__module__": mixin.__module__, "__qualname__": base.__name__, "__doc__": base.__doc__}
        members["__qualname__"] += "" if base.config_class is config_class else OF + config_class.__name__
        members |= {"dense_class": base, "config_class": config_class}
        # transformers renames weights of some families on loading, but those of custom classes only if registered.
        conversions = getattr(transformers, "conversion_mapping", None)
        getattr(conversions, "USER_REGISTERED_MAPPINGS", set[str]()).add(base.__name__)
        CLASSES[key] = type(base.__name__, (*MIXINS, mixin, base), members)
    return CLASSES.get(key, base)

def __getattr__(name: str) -> Any:
    """Return the compact class of any transformers model by name: one file serves all families."""
    model_name, _, config_name = name.partition(OF)
    base = None if name.startswith("_") else getattr(transformers, model_name, None)
    if isinstance(base, type) and issubclass(base, PreTrainedModel):
        return compact_class(base, getattr(transformers, config_name) if config_name else None)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
