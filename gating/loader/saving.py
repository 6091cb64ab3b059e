"""The class of compact models in this package: it writes the travelling code, checksums and the card when it saves."""

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, modeling_utils

from gating.loader import modeling
from gating.loader.composing import MODULE, write_code
from gating.loader.integrity import write_checksums
from gating.loader.modeling import OF, RECORD_KEY, CompactMixin
from gating.loader.record import LAYERS_KEY, auto_classes, dense_class, describe
from gating.loader.record_checks import check_fits

__all__ = [
    "SavedMixin",
    "auto_places",
    "become_compact",
    "check_built",
    "compact_class",
    "has_lost_units",
]

# A loader with checks of its own sets this to one that runs on each new model, before its weights are allocated.
check_built: ContextVar[Callable[[PreTrainedModel], None] | None] = ContextVar("check_built", default=None)


class SavedMixin(CompactMixin):
    """Methods of a compact model that saves itself as a folder for transformers alone."""

    # The code of the folder is composed below: transformers would copy the file of this class.
    _auto_class = None
    # gating.report sets this function: it writes the card of an upload.
    write_card: Any = None

    def apply_record(self: Any, record: dict[str, Any]) -> dict[str, Any]:
        """Check a record against the dense model, and change that as it says."""
        check_fits(self, record)
        own = modeling.apply_record(self, record)
        if (check := check_built.get()) is not None:
            check(self)
        return own

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save a model as transformers does, with code and checksums."""
        super().save_pretrained(save_directory, is_main_process, **kwargs)  # type: ignore[misc]
        # One process writes all files of a sharded model; transformers 5.0 to 5.17 saves none.
        if getattr(self, "should_save_on_this_rank", bool)(is_main_process):
            self._finish(Path(save_directory))

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # save_pretrained(push_to_hub=True) uploads the files before it returns.
        self._finish(Path(working_dir))
        if self.write_card is not None:
            self.write_card(Path(working_dir), repo_id, token=kwargs.get("token"))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    def _finish(self: Any, folder: Path) -> None:
        write_code(self, folder)
        write_checksums(folder, places=auto_places(self))


def compact_class(base: Any, config_class: Any = None) -> type[PreTrainedModel]:
    """Return the subclass of a transformers model class that saves and loads compact models of it."""
    found: type[PreTrainedModel] = modeling.compact_class(base, config_class, SavedMixin)
    return found


def become_compact(model: nn.Module) -> None:
    """Change a model whose heads or neurons were removed, in place, to the class that saves and loads it.

    Writes the record into its configuration. Of a module that only holds transformers models, as a SentenceTransformer
    does, those that have lost any units are changed.
    """
    if not isinstance(model, PreTrainedModel):
        for child in model.children():
            if has_lost_units(child):
                become_compact(child)
        return
    record = describe(model)
    model.__class__ = compact_class(type(model), type(model.config))
    # Without the entry that a new model makes, no attentions or hidden states are returned. It is by name before 5.13.
    registry: Any = vars(modeling_utils)["_CAN_RECORD_REGISTRY"]
    registry[str(type(model)) if type(registry) is dict else model] = model._can_record_outputs
    setattr(model.config, RECORD_KEY, record)
    # transformers looks custom code up by Auto class; each one for this configuration gets its class.
    model.config.auto_map = auto_places(model)


def has_lost_units(model: nn.Module) -> bool:
    """Return whether a removal was applied to a module, even one that kept everything."""
    return any(
        hasattr(module, "head_slots") or hasattr(module, "kept_groups") or _has_lost_layers(module)
        for module in model.modules()
    )


def _has_lost_layers(module: nn.Module) -> bool:
    record = getattr(module.config, RECORD_KEY, None) if isinstance(module, PreTrainedModel) else None
    return bool((record or {}).get(LAYERS_KEY))


def auto_places(model: PreTrainedModel) -> dict[str, str]:
    """Return the place of the compact class that each Auto class of transformers picks for a model's configuration."""
    config_class, suffix = type(model.config), OF + type(model.config).__name__
    classes = auto_classes(config_class)
    if dense_class(model) not in classes.values():
        # Parts of other models, such as vision towers, have no Auto class by themselves.
        classes.setdefault("AutoModel", dense_class(model))
    return {
        auto_name: f"{MODULE}.{base.__name__}{'' if base.config_class is config_class else suffix}"
        for auto_name, base in classes.items()
    }


def __getattr__(name: str) -> type[PreTrainedModel]:
    """Return the compact class of any transformers model by name: pickle looks classes up here."""
    found = modeling.__getattr__(name)
    return compact_class(found.dense_class, found.config_class)
