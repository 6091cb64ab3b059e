"""Model classes that remove heads when they are built, so that ``from_pretrained`` fits the saved weights.

This file and those it imports are copied into the folder of a compact model, which loads with them where gating is not
installed: ``AutoModelFor....from_pretrained(folder, trust_remote_code=True)``. Importing them defines functions and
classes and does nothing else.
"""

import copy
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, conversion_mapping, initialization
from transformers.models.auto import modeling_auto
from transformers.utils.hub import cached_file

from .changes import set_attribute
from .integrity import CONFIG, PLAIN_LOADING, RECORD_KEY, check_checksums, check_finite, load_whole, write_checksums
from .parts import PARTS
from .record import plan_from_record, record_of_part

__all__ = ["CompactMixin", "auto_classes", "auto_places", "check_built", "compact_class"]

# A loader with checks of its own sets this to one that runs on each new model, before its weights are allocated.
check_built: ContextVar[Callable[[PreTrainedModel, Any], None] | None] = ContextVar("check_built", default=None)


class CompactMixin:
    """Methods of a transformers model class that removes heads as its configuration records."""

    is_compact = True
    dense_class: Any
    config: Any
    # gating sets these functions: they write the card of an upload, and remove code that a model does not need.
    write_card: Any = None
    choose_parts: Any = None

    # Runtimes compare arguments with these types, and every value is an object.
    def __init__(self, config: object, *args: object, **kwargs: object) -> None:
        """Build the dense model and remove the heads that the record in ``config`` does not keep."""
        config = _without_layers(config)
        for values in (kwargs, vars(config)):
            values.pop(PLAIN_LOADING, None)
        # On the meta device, initialization would only take time.
        with initialization.no_init_weights() if torch.empty(0).is_meta else nullcontext():
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        model = cast("PreTrainedModel", self)
        record = getattr(config, RECORD_KEY, None)
        if record is not None:
            for change in plan_from_record(model, record):
                set_attribute(*change)
            # The checksums are left out, since training changes the weights.
            setattr(config, RECORD_KEY, record_of_part(record, model))
        if (check := check_built.get()) is not None:
            check(model, record)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, verify: bool = True, **kwargs: Any) -> Any:
        """Load a model as transformers does; raise ``ValueError`` if its weights do not fit the record.

        With ``verify``, files that differ from their checksums, and weights that are NaN or infinite, are errors, too.
        """
        name = pretrained_model_name_or_path
        load = partial(super().from_pretrained, name, *args, **_as_compact(kwargs))  # type: ignore[misc]
        # The record is not about weights of a variant or in GGUF.
        if name is None or check_built.get() is not None or kwargs.get("variant") or kwargs.get("gguf_file"):
            return load()
        is_folder, folder = os.path.isdir(name), Path(name, kwargs.get("subfolder", ""))
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if is_folder else {}
        if verify and is_folder:
            check_checksums(folder, config)
        # Another class has another task head, and ignore_mismatched_sizes asks for a new one.
        has_own_checks = kwargs.get("ignore_mismatched_sizes") or kwargs.get("output_loading_info")
        is_saved_class = cls.__name__ in (config.get("architectures") or ())
        loaded = load_whole(load, folder) if is_saved_class and not has_own_checks else load()
        if verify:
            check_finite(loaded[0] if isinstance(loaded, tuple) else loaded, name)
        if verify and not is_folder:
            _check_download(str(name), kwargs)
        return loaded

    @classmethod
    def maybe_distribute_model(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Cut a model over several processes as transformers does, without the parameters that cannot be cut."""
        with PARTS.get("indivisible_left_out", nullcontext)(model):
            return super().maybe_distribute_model(model, *args, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save a model as transformers does, with checksums."""
        with PARTS.get("rows_in_place", nullcontext)(self):
            super().save_pretrained(save_directory, is_main_process, **kwargs)  # type: ignore[misc]
        # One process writes all files of a sharded model.
        if cast(Any, self).should_save_on_this_rank(is_main_process):
            self._finish(Path(save_directory))

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # save_pretrained(push_to_hub=True) uploads the files before it returns.
        self._finish(Path(working_dir))
        if self.write_card is not None:
            self.write_card(Path(working_dir), repo_id, token=kwargs.get("token"))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    def _finish(self, folder: Path) -> None:
        write_checksums(folder, places=auto_places(type(self.config)))
        if self.choose_parts is not None:
            self.choose_parts(folder)

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


def _check_download(name: str, options: Mapping[str, Any]) -> None:
    """Compare the files of a model from the hub, which are in the cache now, with their checksums."""
    places = {key: options[key] for key in ("cache_dir", "revision", "subfolder", "token") if key in options}
    snapshot = Path(str(cached_file(name, CONFIG, local_files_only=True, **places))).parent
    check_checksums(snapshot, json.loads((snapshot / CONFIG).read_text(encoding="utf-8")), whole=False)


def _without_layers(config: Any) -> Any:
    """Return a copy of a configuration without the head counts of each layer that an export for vLLM has put there.

    transformers would build the dense model with them. No class of transformers allows the access by itself.
    """
    if not (hasattr(config, RECORD_KEY) and vars(config).get("allow_global_per_layer_attribute_access")):
        return config
    config = copy.deepcopy(config)
    for name in ("allow_global_per_layer_attribute_access", "per_layer_config", "_heterogeneity_spec"):
        vars(config).pop(name, None)
    return config


_COMPACT_CLASSES: dict[tuple[type, type | None], type[PreTrainedModel]] = {}
# It stands between the names of a model class and of a configuration class of another family, as for InternLM3.
_OF = "__of__"


def compact_class(base: type[PreTrainedModel], config_class: type | None = None) -> type[PreTrainedModel]:
    """Return the subclass of a transformers model class with :class:`CompactMixin`, of the name that pipelines look up.

    Some models have a configuration class that their model class was not written for.
    """
    if getattr(base, "is_compact", False):
        return base
    config_class = config_class or base.config_class
    if (base, config_class) not in _COMPACT_CLASSES:
        members = {
            "__module__": __name__,
            "__qualname__": base.__name__,
            "__doc__": base.__doc__,
            "dense_class": base,
            # transformers compares it with that of the loaded configuration.
            "config_class": config_class,
            # Asks save_pretrained to copy this file and those it imports into the folder.
            "_auto_class": next((name for name, cls in auto_classes(config_class).items() if cls is base), "AutoModel"),
        }
        # transformers renames weights of some families on loading, but those of custom classes only if registered.
        conversion_mapping.USER_REGISTERED_MAPPINGS.add(base.__name__)
        _COMPACT_CLASSES[base, config_class] = type(base.__name__, (CompactMixin, base), members)
    return _COMPACT_CLASSES[base, config_class]


def auto_places(config_class: type) -> dict[str, str]:
    """Return the place of the compact class that each Auto class of transformers picks for a configuration."""
    suffix = _OF + config_class.__name__
    return {
        auto_name: f"compact.{base.__name__}{'' if base.config_class is config_class else suffix}"
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


def auto_classes(config_class: type | None) -> dict[str, type[PreTrainedModel]]:
    """Return the model class that each Auto class of transformers picks for a configuration."""
    found = {}
    # dir(transformers) would take a fifth of a second.
    for auto_name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None) if auto_name.startswith("AutoModel") else None
        if mapping is not None and config_class in mapping:
            choice = mapping[config_class]
            found[auto_name] = choice[0] if isinstance(choice, tuple) else choice
    return found
