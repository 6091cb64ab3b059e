"""Where a model comes from: with its weights from a hub or folder, or new, from a configuration."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.errors import InputError, explain, loading
from gating.models.hub import locate

__all__ = ["ModelSource", "NewModel", "Pretrained", "make_blueprint", "teacher_source"]


_REMEDY = "Load it once with transformers 5 and save it again, or download it again."
# How what is written begins; other than the rest, it may be another than the model was saved with.
_BEGINNINGS = ("decoder_start_token_id", "forced_bos_token_id")
_OF_A_LAYER = re.compile(r"\.\d+\.")


class ModelSource(Protocol):
    """What gives a model and names what prepares its inputs."""

    @property
    def title(self) -> str:
        """What the model is called."""

    @property
    def processor(self) -> str | None:
        """Where its tokenizer or image processor is; None if there is none yet."""

    @property
    def processor_revision(self) -> str:
        """Which version of that: branch, tag or commit."""

    def load_config(self, **changes: Any) -> PreTrainedConfig:
        """Return the configuration, with some values changed."""

    def load(self, auto_class: type, **changes: Any) -> PreTrainedModel:
        """Return the model as one of an Auto class, with some values of its configuration changed."""


@dataclass(frozen=True)
class Pretrained:
    """A model with its weights.

    Attributes:
        name: A folder, a name on the hub, or ``package://NAME/FOLDER``.
        use_safetensors: Whether weights are only read from safetensors files, which cannot run code.
        revision: Branch, tag or commit on the hub.
        attn_implementation: Attention kernel, such as ``eager``; the library's choice when left out.
        tokenizer: Where the tokenizer or image processor is; with the model when left out.
        config: Values of the model's configuration to change.
    """

    name: str
    use_safetensors: bool = True
    revision: str = "main"
    attn_implementation: str | None = None
    tokenizer: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the model is called."""
        return self.name

    @property
    def processor(self) -> str | None:
        """Where its tokenizer or image processor is."""
        return locate(self.tokenizer or self.name, revision=self.processor_revision)

    @property
    def processor_revision(self) -> str:
        """Which version of that: the model's, where it comes with the model."""
        return self.revision if self.tokenizer is None else "main"

    def load_config(self, **changes: Any) -> PreTrainedConfig:
        """Return the configuration, with some values changed.

        Raises:
            FileNotFoundError: The folder or package does not exist.
            ConnectionError: The hub cannot be reached.
            ValueError: The configuration has no such value, or a value is of the wrong kind.
        """
        name = locate(self.name, revision=self.revision)
        with loading(f"The configuration of model.name={self.name}", remedy=_REMEDY):
            _check_names(AutoConfig.from_pretrained(name, revision=self.revision), self.config)
        # Auto classes with a choice of models for a family take the one that was saved, which need not be for training.
        values = {"architectures": [], **self.config, **changes}
        return _checked(lambda: AutoConfig.from_pretrained(name, revision=self.revision, **values))

    def load(self, auto_class: type, **changes: Any) -> PreTrainedModel:
        """Return the model, with a new head of the task where its own has another shape.

        Raises:
            ValueError: The weights cannot be read, or do not fit what the configuration says below the head.
        """
        # In full precision, whatever it was stored in: small steps are lost in half of it. The trainer's precision
        # decides what is computed in.
        options = {"dtype": torch.float32, "use_safetensors": self.use_safetensors, "revision": self.revision}
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        config = self.load_config(**_for_config(changes))
        options |= {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
        load = partial(auto_class.from_pretrained, locate(self.name, revision=self.revision))  # type: ignore[attr-defined]
        with loading(f"The weights of model.name={self.name}", remedy=_REMEDY):
            model: PreTrainedModel
            model, found = load(**options)
            renamed = _other_prefix(model, found)
            if renamed is not None:
                model, found = load(**options, key_mapping=renamed)
        for name, stored, expected in sorted(found["mismatched_keys"]):
            if name.startswith(f"{model.base_model_prefix}."):
                raise InputError(
                    f"model.name={self.name}: {name} is stored as {list(stored)}, but its configuration with "
                    f"model.config={self.config} asks for {list(expected)}. Leave out what changes sizes."
                )
        # A head, and what pools for it, may be new; a layer may not.
        for name in sorted(found["missing_keys"]):
            if name.startswith(f"{model.base_model_prefix}.") and _OF_A_LAYER.search(name):
                raise InputError(
                    f"model.name={self.name}: its weights lack {name}, so its configuration is of a larger model. "
                    "Correct its config.json, or model.config."
                )
        generation = model.generation_config if model.can_generate() else None
        for name, value in changes.items():
            # What a model writes with is kept apart from its configuration, and may lack what that has now.
            is_missing = name.endswith("_token_id") and getattr(generation, name, value) is None
            if generation is not None and (is_missing or name in _BEGINNINGS):
                setattr(generation, name, value)
        return model


def _for_config(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what only the settings of generation have a place for."""
    return {name: value for name, value in changes.items() if name != "forced_bos_token_id"}


def _other_prefix(model: PreTrainedModel, found: Mapping[str, Any]) -> dict[str, str] | None:
    """Return how to rename weights, if all that a model lacks was stored under another name for its base model.

    Models with some task heads call it ``transformer`` where all others of their family call it ``model``.
    """
    own = f"{model.base_model_prefix}."
    lacking = {name.removeprefix(own) for name in found["missing_keys"] if name.startswith(own)}
    for prefix in sorted({name.partition(".")[0] for name in found["unexpected_keys"]}):
        stored = {name.removeprefix(f"{prefix}.") for name in found["unexpected_keys"]}
        if lacking and lacking <= stored:
            return {rf"^{prefix}\.": own}
    return None


@dataclass(frozen=True)
class NewModel:
    """A model without weights, to train from scratch.

    Attributes:
        model_type: The name of its family in transformers, such as ``gpt2`` or ``vit``.
        config: Values of its configuration that are not the family's defaults.
        tokenizer: Folder or hub name of a tokenizer or image processor; one is made when left out.
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None

    @property
    def title(self) -> str:
        """What the model is called."""
        return f"new {self.model_type}"

    @property
    def processor(self) -> str | None:
        """Where its tokenizer or image processor is; None if it is to be made."""
        return None if self.tokenizer is None else locate(self.tokenizer)

    @property
    def processor_revision(self) -> str:
        """Which version of that."""
        return "main"

    def load_config(self, **changes: Any) -> PreTrainedConfig:
        """Return the configuration, with some values changed.

        Raises:
            ValueError: There is no such family or value, or a value is of the wrong kind.
        """
        types = transformers.CONFIG_MAPPING.keys()
        if self.model_type not in types:
            close = difflib.get_close_matches(self.model_type, types, n=1) or ["gpt2"]
            raise InputError(
                f"model.model_type={self.model_type} is no family of transformers. Did you mean {close[0]}?"
            )
        family = AutoConfig.for_model(self.model_type)
        _check_names(family, self.config)
        # Auto classes with a choice of models for a family look for the one that was saved; there is none.
        values = {"architectures": [], **_special_tokens_within(self.config, family), **self.config, **changes}
        return _checked(lambda: AutoConfig.for_model(self.model_type, **values))

    def load(self, auto_class: type, **changes: Any) -> PreTrainedModel:
        """Return the model with random weights."""
        config = self.load_config(**_for_config(changes))
        model: PreTrainedModel = auto_class.from_config(config)  # type: ignore[attr-defined]
        return model


def teacher_source(*, teacher: str | None) -> ModelSource | None:
    """Return where the dense model to learn from comes from; None if the run trains it.

    Args:
        teacher: A folder, a name on the hub, or ``package://NAME/FOLDER``.
    """
    return None if teacher is None else Pretrained(teacher)


def make_blueprint(source: ModelSource, auto_class: type) -> PreTrainedModel:
    """Return the model without its weights, on the meta device: enough to count its heads.

    Raises:
        ValueError: transformers does not know the model, or has none of this Auto class for it.
    """
    config = source.load_config()
    known = getattr(auto_class, "_model_mapping", None)
    if known is not None and type(config) not in known:
        raise InputError(
            f"The model {source.title} cannot be used for this task ({auto_class.__name__}): transformers has no such "
            f"model of the family {config.model_type}. Choose another model, or another task."
        )
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:  # what a library makes of a configuration is not only ValueErrors
        reason = explain(error)
        raise InputError(
            f"The model {source.title} cannot be used for this task ({auto_class.__name__}): {reason}"
        ) from error
    return model


def _special_tokens_within(changes: Mapping[str, Any], family: PreTrainedConfig) -> dict[str, int]:
    """Return values for the special tokens of a family that a smaller vocabulary has no numbers for.

    Embeddings are not made with them. The right ones are those of the tokenizer, which the task sets.
    """
    size = changes.get("vocab_size")
    tokens = {name: value for name, value in family.to_dict().items() if name.endswith("_token_id")}
    return {name: 0 for name, value in tokens.items() if size and isinstance(value, int) and value >= size}


def _check_names(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    for name in changes:
        if not hasattr(config, name):
            close = difflib.get_close_matches(name, config.to_dict(), n=1)
            hint = f" Did you mean model.config.{close[0]}?" if close else ""
            raise InputError(f"model.config.{name} is no value of a {config.model_type} configuration.{hint}")


def _checked(load: Any) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = load()
    except StrictDataclassError as error:
        raise InputError(f"model.config cannot be used: {' '.join(str(error).split())}") from error
    return config
