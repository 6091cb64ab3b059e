"""Classes of transformers models with units removed: the dense model is built, and changed as a record says.

``config.json`` has under ``head_gating`` the differences: for each module, shapes of tensors, attributes, and names of
parts of this file that change its class. Importing this file defines functions and classes and does nothing else.
"""

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
PLAIN_LOADING = "transformers_weights"  # With this setting, a plain class refuses to load the weights.


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


OF = "__of__"  # Between the names of a model class and of a configuration class of another family.
_EXPERTS = "_can_set_experts_implementation"  # It looks for a decorator in the file of a class.


def apply_record(model: PreTrainedModel, record: dict[str, Any]) -> dict[str, Any]:
    """Give a dense model all of a compact one but values, and return the record of the modules that it has."""
    modules, places = dict[str, Any](model.named_modules()), places_of(model, record)
    for name in record["modules"].keys() & places.keys():
        try:
            _apply(modules[places[name]], record["modules"][name])
        except AttributeError as error:
            raise renamed_error(model, f"{name}: {error}") from error
    for name in record["units"].keys() & places.keys():
        modules[places[name]].__dict__.update({key: freeze(value) for key, value in record["units"][name].items()})
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


def places_of(model: PreTrainedModel, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the full names of recorded modules that a model has; in the record, they lack the prefix of its base."""
    known, prefix = dict(model.named_modules()), base_prefix(model)
    names = (*record["modules"], *record["units"])
    places = {name: full for name in names for full in (name, prefix + name) if full in known}
    missing = sorted(record["modules"].keys() - places.keys())
    # A part of the saved model, such as an encoder alone, lacks some.
    if missing and (not places or model.config.architectures == [type(model).__name__]):
        raise renamed_error(model, missing[0])
    return places


def base_prefix(model: nn.Module) -> str:
    """Return the prefix that names in a record lack, so that it fits every task head."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def renamed_error(model: PreTrainedModel, missing: str) -> ValueError:
    """Return the error about a version of transformers in which a family has other modules."""
    saved = getattr(model.config, "transformers_version", None)
    return ValueError(
        f"This {model.config.model_type} model was saved with transformers {saved}; {type(model).__name__} of the "
        f"installed transformers {transformers.__version__} has other modules ({missing}): install {saved}."
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
        """Load a model as transformers does; raise ``ValueError`` for files of a folder that are not as saved."""
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
        """Return False: transformers leaves buffers of such code uninitialized; 5.3 to 5.12 ask is_remote_code."""
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


def compact_class(base: Any, config_class: Any = None, mixin: Any = CompactMixin) -> Any:
    """Return the subclass of a class of models, of its name, which pipelines look up; some have a foreign config."""
    key = (base, config_class := config_class or base.config_class, mixin)
    if not getattr(base, "is_compact", False) and key not in CLASSES:
        members = {"__module__": mixin.__module__, "__qualname__": base.__name__, "__doc__": base.__doc__}
        members["__qualname__"] += "" if base.config_class is config_class else OF + config_class.__name__
        members |= {"dense_class": base, "config_class": config_class, _EXPERTS: getattr(base, _EXPERTS, None)}
        members |= {} if hasattr(base, "is_custom_code") else {"is_remote_code": mixin.is_custom_code}
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
