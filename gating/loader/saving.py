"""The class of compact models in this package: it writes the travelling code, checksums and the card when it saves."""

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, modeling_utils

from gating.loader import modeling
from gating.loader.composing import MODULE, write_code
from gating.loader.modeling import CHECKSUMS, CONFIG, GENERATION, OF, PLAIN_LOADING, RECORD_KEY, CompactMixin
from gating.loader.record import LAYERS_KEY, auto_classes, dense_class, describe
from gating.loader.record_checks import check_fits

# A loader with checks of its own sets this to one that runs on each new model, before its weights are allocated.
check_built: ContextVar[Callable[[PreTrainedModel], None] | None] = ContextVar("check_built", default=None)

# By PLAIN_LOADING, transformers loads weights from another file, and raises an error that ends with its value if that
# is no name of one. Classes with fewer heads ignore it; a plain class would say that sizes may be ignored.
REMEDY_OF_PLAIN_LOADING = (
    "none, because this model has lost heads or neurons, of which its plain class does not know. Load it with an Auto "
    "class or a pipeline and trust_remote_code=True, or with gating.load_compact"
)


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

    @classmethod
    def maybe_distribute_model(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Cut a model over several processes as transformers does, without the parameters that cannot be cut."""
        with indivisible_left_out(model):
            return super().maybe_distribute_model(model, *args, **kwargs)  # type: ignore[misc]

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # save_pretrained(push_to_hub=True) uploads the files before it returns.
        self._finish(Path(working_dir))
        if self.write_card is not None:
            self.write_card(Path(working_dir), repo_id, token=kwargs.get("token"))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    def _finish(self: Any, folder: Path) -> None:
        write_code(self, folder)
        write_checksums(folder, places=auto_places(self))


def write_checksums(folder: Path, *, places: Mapping[str, str] | None = None) -> None:
    """Write the checksums of a folder that was just saved into its record, if it has one.

    The ``places`` are those of the compact class for each Auto class; transformers writes others for some names.
    """
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(config.get(RECORD_KEY), dict):
        return
    if places:
        config["auto_map"] = dict(places)
    if PLAIN_LOADING not in config and lacks_units(config[RECORD_KEY]):
        config[PLAIN_LOADING] = REMEDY_OF_PLAIN_LOADING
    patterns = ("*.safetensors", "*.safetensors.index.json", GENERATION)
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    sums = {file.name: modeling.digest_file(file) for file in files}
    config[RECORD_KEY][CHECKSUMS] = {**sums, CONFIG: modeling.digest_table(config)}
    beside = path.with_name(f".{CONFIG}.new")
    beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)


def lacks_units(record: dict[str, Any]) -> bool:
    """Return whether a record that was just written has other shapes than the dense model."""
    return any("tensors" in entry or "without" in entry for entry in record["modules"].values())


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


def compact_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with the modules of another one, but a compact class, and a configuration with its record."""
    compact = copy.copy(model)
    compact.config = copy.deepcopy(model.config)
    become_compact(compact)
    return compact


def write_config(compact: PreTrainedModel, path: Path, **settings: Any) -> None:
    """Write the configuration of a compact model, with its record and further settings, but no references to code."""
    config = copy.deepcopy(compact.config)
    vars(config).pop("auto_map", None)
    for name, value in {"architectures": [type(compact).__name__], **settings}.items():
        setattr(config, name, value)
    path.write_text(config.to_json_string(), encoding="utf-8")


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
