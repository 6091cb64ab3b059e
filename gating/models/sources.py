"""Sources of models, which ``conf/model`` names: pretrained, or new from a configuration; with weights or without."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.errors import InputError, explain, is_input_error, shorten
from gating.loader.sharded import is_indivisible
from gating.models.hub import PACKAGE, is_gguf, locate
from gating.models.pretrained import Pretrained, check_names
from gating.sharding.plan import shard_model

__all__ = [
    "ModelSource",
    "NewModel",
    "Pretrained",
    "enable_gradient_checkpointing",
    "load_sharded",
    "make_meta_model",
    "short_name",
]


@dataclass(frozen=True)
class NewModel:
    """A model with random weights, to train from scratch.

    Attributes:
        model_type: Name of its family in transformers, such as ``gpt2`` or ``vit``.
        config: Configuration values that differ from the defaults of the family.
        tokenizer: Folder or hub name of a tokenizer or image processor; a new one is made if None.
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None

    @property
    def title(self) -> str:
        """Name of the model in messages and reports."""
        return f"new {self.model_type}"

    @property
    def processor(self) -> str | None:
        """Folder or hub name of the tokenizer or image processor; None if a new one is made."""
        return None if self.tokenizer is None else locate(self.tokenizer)

    @property
    def processor_revision(self) -> str:
        """Branch of the tokenizer or image processor on the hub."""
        return "main"

    def load_config(self, *, forced_bos_token_id: object = None, **changes: Any) -> PreTrainedConfig:
        """Return the configuration of the model that :meth:`load` makes, with some values changed.

        ``forced_bos_token_id`` is left out, which only a generation config has.

        Raises:
            ValueError: The family or a value does not exist.
        """
        family = AutoConfig.for_model(self.model_type)
        check_names(family, self.config)
        # Auto classes with several models for a family choose by the saved model's class; here there is none.
        values = {"architectures": [], **_special_tokens_within(self.config, family), **self.config, **changes}
        return AutoConfig.for_model(self.model_type, **values)

    def load(self, auto_class: type, **changes: Any) -> PreTrainedModel:
        """Return the model with random weights."""
        model: PreTrainedModel = auto_class.from_config(self.load_config(**changes))  # type: ignore[attr-defined]
        return model


def _special_tokens_within(changes: Mapping[str, Any], family: PreTrainedConfig) -> dict[str, int]:
    """Return 0 for each special token of a family that lies outside a smaller vocabulary.

    Embeddings cannot be created otherwise. The task sets the token IDs of the actual tokenizer later.
    """
    size = changes.get("vocab_size")
    tokens = {name: value for name, value in family.to_dict().items() if name.endswith("_token_id")}
    return {name: 0 for name, value in tokens.items() if size and isinstance(value, int) and value >= size}


# A model that can be loaded, and the location of its tokenizer or image processor.
ModelSource = Pretrained | NewModel


def load_sharded(source: ModelSource, auto_class: type, meta_model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
    """Return a model cut over all processes (FSDP2), with the values of ``source.load``. Called by all.

    No process holds a pretrained model whole. Others are made whole in each, and cut then; so are those with scalars,
    which transformers does not leave out.
    """
    leaves_out = getattr(meta_model, "is_compact", False) or not any(map(is_indivisible, meta_model.parameters()))
    if isinstance(source, Pretrained) and leaves_out:
        return source.load_sharded(auto_class, meta_model, **changes)
    return shard_model(source.load(auto_class, **changes))


def short_name(source: ModelSource) -> str:
    """Return a short name of a model for titles: its name on the hub, or that of its package or folder.

    Example:
        >>> short_name(Pretrained("package://some_package/model")), short_name(Pretrained("user/bert-tiny"))
        ('some_package', 'user/bert-tiny')
        >>> short_name(Pretrained("models/llama-1b.Q4_K_M.gguf"))
        'llama-1b.Q4_K_M, dequantized'
    """
    title = getattr(source, "hub_name", None) or source.title
    if is_gguf(title):
        return f"{Path(title).stem}, dequantized"
    if title.startswith(PACKAGE):
        return title.removeprefix(PACKAGE).partition("/")[0]
    return Path(title).resolve().name if Path(title).expanduser().is_dir() else title


def make_meta_model(source: ModelSource, auto_class: type) -> PreTrainedModel:
    """Return a model without weights, on the meta device.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> make_meta_model(NewModel("gpt2", config={"n_layer": 1}), AutoModelForCausalLM).device
        device(type='meta')

    Raises:
        ValueError: transformers cannot create the model, or has no class of this Auto class for its family.
    """
    try:
        config = source.load_config()
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:  # A wrong configuration raises errors of many types.
        if is_input_error(error):
            raise
        # Some list all families.
        reason = shorten(explain(error), most=300)
        raise InputError(
            f"The model {source.title} cannot be used for this task ({auto_class.__name__}): {reason}"
        ) from error
    return model


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Enable gradient checkpointing of a model, in place."""
    # transformers deprecated the second name during version 5.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    # Reentrant checkpoints lose gradients where a layer's inputs need none, and cannot be compiled.
    enable({"use_reentrant": False})
