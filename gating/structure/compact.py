"""The model class that repeats a removal when it is built, so that ``from_pretrained`` fits.

This file and its neighbours in ``heads/`` are copied into a saved compact model. There they serve
``AutoModelFor....from_pretrained(directory, trust_remote_code=True)`` on machines without this package.
Importing them defines functions and classes and does nothing else.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, conversion_mapping, initialization
from transformers.models.auto import modeling_auto
from transformers.utils.hub import cached_file

from .blocks import iter_attention_blocks
from .edits import apply_edits
from .files import check_checksums, read_config, write_checksums
from .limits import check_finite, check_fits, checked_folder, is_being_checked, load_whole
from .record import RECORD_KEY, describe_kept_heads, plan_from_record

__all__ = ["auto_classes", "become_compact", "compact_class"]


def become_compact(model: nn.Module) -> None:
    """Make a model whose heads were removed save and load itself, in place.

    Writes the record of kept heads into the model's configuration and turns the model's class into
    :func:`compact_class` of it. Of a module that only holds such models, as a SentenceTransformer does, those that have
    lost heads save and load themselves.
    """
    if not isinstance(model, PreTrainedModel):
        for child in model.children():
            if any(hasattr(module, "head_slots") for module in child.modules()):
                become_compact(child)
        return
    cls = compact_class(type(model))
    model.__class__ = cls
    setattr(model.config, RECORD_KEY, describe_kept_heads(list(iter_attention_blocks(model))))
    module_name = __name__.rpartition(".")[2]
    # Remote code is looked up by Auto class; every one that knows this configuration gets its class.
    model.config.auto_map = {
        auto_name: f"{module_name}.{base.__name__}" for auto_name, base in auto_classes(type(model.config)).items()
    }


_COMPACT_CLASSES: dict[type, type[PreTrainedModel]] = {}


def compact_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the subclass of a transformers model class that removes heads as its configuration records.

    The subclass has the name of its base, because pipelines check model classes by name.
    """
    if getattr(base, "is_compact", False):
        return base
    if base in _COMPACT_CLASSES:
        return _COMPACT_CLASSES[base]

    def build(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:
        with _without_drawing():
            base.__init__(self, config, *args, **kwargs)
        record = getattr(config, RECORD_KEY, None)
        if record is not None:
            apply_edits(plan_from_record(self, record))
        check_fits(self)
        if record is not None:
            # Of this model alone, which may be a part of the one that was saved; and without the checksums: a model in
            # memory can be trained on, and is no longer what they are about.
            setattr(config, RECORD_KEY, describe_kept_heads(list(iter_attention_blocks(self))))

    def from_pretrained(
        cls: type[PreTrainedModel],
        /,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        verify: bool = True,
        **kwargs: Any,
    ) -> Any:
        name = pretrained_model_name_or_path
        load = partial(base.from_pretrained.__func__, cls, name, *args, **kwargs)  # type: ignore[attr-defined]
        if is_being_checked():
            return load()
        is_folder = name is not None and os.path.isdir(name)
        if is_folder:
            folder = Path(str(name), kwargs.get("subfolder", ""))
            if kwargs.get("variant") or kwargs.get("gguf_file"):
                return load()  # These are other weights than those that the record is about.
            # Another class has another task head; and who lets mismatches through wants a new one.
            own_checks = kwargs.get("ignore_mismatched_sizes") or kwargs.get("output_loading_info")
            exact = not own_checks and cls.__name__ in (read_config(folder).get("architectures") or ())
            with checked_folder(folder, verify=verify, exact=exact):
                loaded = load_whole(load) if exact else load()
        else:
            loaded = load()
        if verify and name is not None:
            check_finite(loaded[0] if isinstance(loaded, tuple) else loaded, name)
            if not is_folder:
                # From the hub: its files are known when they are there.
                places = {key: kwargs[key] for key in ("cache_dir", "revision", "subfolder", "token") if key in kwargs}
                snapshot = Path(str(cached_file(str(name), "config.json", local_files_only=True, **places))).parent
                check_checksums(snapshot, read_config(snapshot), whole=False)
        return loaded

    def save_pretrained(
        self: PreTrainedModel, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        base.save_pretrained(self, save_directory, is_main_process, **kwargs)
        # Where a model is cut into parts, one process writes for all; older versions of transformers do not say which.
        writes = getattr(self, "should_save_on_this_rank", bool)
        if writes(is_main_process):
            write_checksums(Path(save_directory))

    def upload(self: PreTrainedModel, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        # save_pretrained(push_to_hub=True) uploads what it has written before it comes back.
        write_checksums(Path(working_dir))
        return base._upload_modified_files(self, working_dir, *args, **kwargs)

    def reduce(self: PreTrainedModel, _: object) -> tuple[Any, ...]:
        # Pickle would look for the class by its name and find the base.
        return _new, (base,), self.__getstate__()

    def is_custom_code(_: type[PreTrainedModel]) -> bool:
        # The code is that of the base. Modules of custom code whose parameters are all loaded keep the buffers that are
        # in no file as they were allocated.
        return bool(base.is_custom_code())

    def no_early_cache(_: PreTrainedModel) -> None:
        # Static caches are sized at their first use then, layer by layer; the configuration knows one size for all.
        return

    auto_names = [name for name, cls in auto_classes(base.config_class).items() if cls is base]
    members = {
        "__init__": build,
        "__reduce_ex__": reduce,
        "from_pretrained": classmethod(from_pretrained),
        "save_pretrained": save_pretrained,
        "_upload_modified_files": upload,
        "_get_static_cache_init_shape": no_early_cache,
        "is_custom_code": classmethod(is_custom_code),
        "__module__": __name__,
        "__qualname__": base.__name__,
        "is_compact": True,
        # Asks save_pretrained to copy this file and those it imports into the folder.
        "_auto_class": auto_names[0] if auto_names else "AutoModel",
    }
    # transformers stores weights of some families under older names and renames them as it loads, but not for classes
    # from elsewhere, unless they are on this list. Without it, a base model could not be loaded from the folder of a
    # model with a task head.
    conversion_mapping.USER_REGISTERED_MAPPINGS.add(base.__name__)
    _COMPACT_CLASSES[base] = type(base.__name__, (base,), members)
    return _COMPACT_CLASSES[base]


def _without_drawing() -> AbstractContextManager[None]:
    """Spare a model that is built to be loaded into, on the meta device, the drawing of weights it does not have.

    It makes up for the time that removal takes.
    """
    return initialization.no_init_weights() if torch.empty(0).is_meta else nullcontext()


def __getattr__(name: str) -> type[PreTrainedModel]:
    """Build the compact class of any transformers model on demand: one file serves all families."""
    base = None if name.startswith("_") else getattr(transformers, name, None)
    if isinstance(base, type) and issubclass(base, PreTrainedModel):
        return compact_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _new(base: type[PreTrainedModel]) -> PreTrainedModel:
    cls = compact_class(base)
    return cls.__new__(cls)


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
