"""Model classes that remove heads when they are built, so that ``from_pretrained`` fits the saved weights.

This file and those it imports are copied into a saved compact model. There they serve
``AutoModelFor....from_pretrained(directory, trust_remote_code=True)`` on machines without this package. Importing them
defines functions and classes and does nothing else.
"""

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, conversion_mapping, initialization
from transformers.models.auto import modeling_auto

from .integrity import CONFIG, check_checksums, check_download, check_finite, load_whole, write_checksums
from .record import PLAIN_LOADING, RECORD_KEY, plan_from_record, record_of_part

__all__ = [
    "CompactMixin",
    "auto_classes",
    "auto_places",
    "check_built",
    "compact_class",
    "indivisible_left_out",
    "is_indivisible",
]

_ACCESS = "allow_global_per_layer_attribute_access"

# A loader with checks of its own sets this to one that runs on each new model, before its weights are allocated.
check_built: ContextVar[Callable[[PreTrainedModel], None] | None] = ContextVar("check_built", default=None)


class CompactMixin:
    """Methods of a transformers model class that removes heads as its configuration records.

    Attributes:
        is_compact: True, also in copies of this file, where the mixin is another class.
        dense_class: The transformers class that is the other base.
        write_card: Writes the model card of an upload; None in copies of this file, where transformers writes it.
    """

    is_compact = True
    write_card: Any = None
    dense_class: Any
    config: Any

    # Runtimes compare arguments with these types, and every value is an object.
    def __init__(self, config: object, *args: object, **kwargs: object) -> None:
        """Build the dense model and remove the heads that the record in ``config`` does not keep."""
        config = _without_layers(config)
        for values in (kwargs, vars(config)):
            values.pop(PLAIN_LOADING, None)
        with _without_initialization():
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        model = cast("PreTrainedModel", self)
        record = getattr(config, RECORD_KEY, None)
        if record is not None:
            for edit in plan_from_record(model, record):
                edit.apply()
        check = check_built.get()
        if check is not None:
            check(model)
        if record is not None:
            # Without checksums: training changes the weights.
            setattr(config, RECORD_KEY, record_of_part(record, model))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        verify: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Load a model as transformers does; raise ``ValueError`` if its weights do not fit the record.

        With ``verify``, files that differ from their checksums, and weights that are NaN or infinite, are errors, too.
        """
        name = pretrained_model_name_or_path
        load = partial(super().from_pretrained, name, *args, **_as_compact(kwargs))  # type: ignore[misc]
        if name is None or check_built.get() is not None:
            return load()
        if not os.path.isdir(name):
            loaded = load()
            if verify:
                check_finite(_model_of(loaded), name)
                check_download(str(name), kwargs)
            return loaded
        if kwargs.get("variant") or kwargs.get("gguf_file"):
            return load()  # The record is not about these weights.
        folder = Path(name, kwargs.get("subfolder", ""))
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if verify:
            check_checksums(folder, config)
        # Another class has another task head, and ignore_mismatched_sizes asks for a new one.
        has_own_checks = kwargs.get("ignore_mismatched_sizes") or kwargs.get("output_loading_info")
        is_saved_class = cls.__name__ in (config.get("architectures") or ())
        loaded = load_whole(load, folder) if is_saved_class and not has_own_checks else load()
        if verify:
            check_finite(_model_of(loaded), name)
        return loaded

    @classmethod
    def maybe_distribute_model(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Cut a model over several processes as transformers does, without the parameters that cannot be cut."""
        with indivisible_left_out(model):
            return super().maybe_distribute_model(model, *args, **kwargs)  # type: ignore[misc]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save a model as transformers does, with checksums."""
        with _rows_in_place(self):
            super().save_pretrained(save_directory, is_main_process, **kwargs)  # type: ignore[misc]
        # Of a sharded model, one process writes all files; older versions of transformers lack the method.
        writes = getattr(self, "should_save_on_this_rank", bool)
        if writes(is_main_process):
            write_checksums(Path(save_directory), places=auto_places(type(self.config)))

    def _upload_modified_files(
        self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        # save_pretrained(push_to_hub=True) uploads the files before it returns.
        write_checksums(Path(working_dir), places=auto_places(type(self.config)))
        if self.write_card is not None:
            self.write_card(Path(working_dir), repo_id, token=kwargs.get("token"))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, _protocol: object) -> tuple[Any, ...]:
        """Name the dense class: pickle would look the class up by its name and find the dense one."""
        return _new, (self.dense_class, type(self.config)), self.__getstate__()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return the answer of the dense class; of custom code, transformers leaves some buffers uninitialized."""
        return bool(cls.dense_class.is_custom_code())

    def _get_static_cache_init_shape(self) -> None:
        """Let static caches take their size at first use, layer by layer; the configuration has one size for all."""


def _as_compact(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a ``from_pretrained`` without the sentence that ends plain loading."""
    if not isinstance(options.get("config"), PreTrainedConfig):
        return {**options, PLAIN_LOADING: None}
    config = copy.copy(options["config"])
    vars(config).pop(PLAIN_LOADING, None)
    return {**options, "config": config}


def _model_of(loaded: Any) -> Any:
    return loaded[0] if isinstance(loaded, tuple) else loaded


@contextmanager
def _rows_in_place(model: Any) -> Iterator[None]:
    """Leave out of a model's conversions, in a ``with`` block, those that permute the rows of each head.

    On saving and loading, transformers would take the number of heads from the configuration, which is that of the
    dense model. Under the names of the model class, these weights are loaded as they are.
    """
    before = getattr(model, "_weight_conversions", None)
    # Those of a model that was not loaded are all but prefixes, as in transformers.
    known = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    found = before if before is not None else [one for one in known if type(one).__name__ != "PrefixChange"]
    kept = [conversion for conversion in found if not _permutes_rows(conversion)]
    if len(kept) < len(found):
        model._weight_conversions = kept
    try:
        yield
    finally:
        model._weight_conversions = before


def _permutes_rows(conversion: Any) -> bool:
    # By name: versions of transformers have several such operations, or none.
    return any("PermuteForRope" in type(operation).__name__ for operation in getattr(conversion, "operations", ()))


def _without_layers(config: Any) -> Any:
    """Return a configuration without the head counts of each layer that an export for vLLM has put there.

    transformers would build the layers of the dense model with them. A copy: vLLM goes on with the configuration.
    """
    # No class of transformers allows the access by itself.
    if not (hasattr(config, RECORD_KEY) and vars(config).get(_ACCESS)):
        return config
    config = copy.deepcopy(config)
    for name in (_ACCESS, "per_layer_config", "_heterogeneity_spec"):
        vars(config).pop(name, None)
    return config


def is_indivisible(parameter: torch.Tensor) -> bool:
    """Return whether FSDP2 cannot cut a parameter: a scalar, or one of a block without neurons."""
    return parameter.dim() == 0 or parameter.numel() == 0


@contextmanager
def indivisible_left_out(model: nn.Module) -> Iterator[None]:
    """Take scalars and parameters without entries out of a model in a ``with`` block: FSDP2 cannot cut them."""
    found = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and is_indivisible(parameter)
    ]
    for module, name, _ in found:
        module._parameters[name] = None
    try:
        yield
    finally:
        for module, name, parameter in found:
            module._parameters[name] = parameter


_COMPACT_CLASSES: dict[tuple[type, type | None], type[PreTrainedModel]] = {}
# Between the names of a model class and of a configuration class that it was not written for, as of InternLM3.
_OF = "__of__"


def compact_class(base: type[PreTrainedModel], config_class: type | None = None) -> type[PreTrainedModel]:
    """Return the subclass of a transformers model class with :class:`CompactMixin`.

    The subclass has the name of its base, because pipelines look up model classes by name.

    Args:
        base: The class.
        config_class: Class of the configuration, which may be another than that of the model class.
    """
    if getattr(base, "is_compact", False):
        return base
    config_class = config_class or base.config_class
    if (base, config_class) not in _COMPACT_CLASSES:
        auto_names = [name for name, cls in auto_classes(config_class).items() if cls is base]
        members = {
            "__module__": __name__,
            "__qualname__": base.__name__,
            "__doc__": base.__doc__,
            "dense_class": base,
            # transformers compares it with that of the loaded configuration.
            "config_class": config_class,
            # Asks save_pretrained to copy this file and those it imports into the folder.
            "_auto_class": auto_names[0] if auto_names else "AutoModel",
        }
        # transformers renames weights of some families as it loads them, but those of custom classes only if they are
        # registered; the base model could not be loaded from the folder of a model with a task head otherwise.
        conversion_mapping.USER_REGISTERED_MAPPINGS.add(base.__name__)
        _COMPACT_CLASSES[base, config_class] = type(base.__name__, (CompactMixin, base), members)
    return _COMPACT_CLASSES[base, config_class]


def auto_places(config_class: type) -> dict[str, str]:
    """Return the place of the compact class that each Auto class of transformers picks for a configuration."""
    return {
        auto_name: f"compact.{base.__name__}"
        + ("" if base.config_class is config_class else _OF + config_class.__name__)
        for auto_name, base in auto_classes(config_class).items()
    }


def _new(base: type[PreTrainedModel], config_class: type | None = None) -> PreTrainedModel:
    cls = compact_class(base, config_class)
    return cls.__new__(cls)


def __getattr__(name: str) -> type[PreTrainedModel]:
    """Return the compact class of any transformers model by name: one file serves all families."""
    model_name, _, config_name = name.partition(_OF)
    base = None if name.startswith("_") else getattr(transformers, model_name, None)
    if isinstance(base, type) and issubclass(base, PreTrainedModel):
        return compact_class(base, getattr(transformers, config_name) if config_name else None)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _without_initialization() -> AbstractContextManager[None]:
    """Skip the initialization of weights on the meta device; it saves the time that removal takes."""
    return initialization.no_init_weights() if torch.empty(0).is_meta else nullcontext()


def auto_classes(config_class: type | None) -> dict[str, type[PreTrainedModel]]:
    """Return the model class that each Auto class of transformers picks for a configuration."""
    found = {}
    # Not dir(transformers), which takes a fifth of a second.
    for auto_name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None) if auto_name.startswith("AutoModel") else None
        if mapping is not None and config_class in mapping:
            choice = mapping[config_class]
            found[auto_name] = choice[0] if isinstance(choice, tuple) else choice
    return found
