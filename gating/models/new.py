"""New models with random weights, from a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.errors import InputError, nearest_name, shorten
from gating.models.configs import check_names, load_checked, without_generation_values
from gating.models.hub import locate

__all__ = ["NewModel"]


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

    def load_config(self, **changes: Any) -> PreTrainedConfig:
        """Return the configuration of the model that :meth:`load` makes, with some values changed.

        Raises:
            ValueError: The family or a value does not exist, or a value has the wrong type.
        """
        types = transformers.CONFIG_MAPPING.keys()
        if self.model_type not in types:
            hint = nearest_name(self.model_type, types)
            raise InputError(f"model.model_type={self.model_type} is not a model type of transformers. {shorten(hint)}")
        family = AutoConfig.for_model(self.model_type)
        check_names(family, self.config)
        # Auto classes with several models for a family choose by the saved model's class; here there is none.
        values = {"architectures": [], **_special_tokens_within(self.config, family), **self.config, **changes}
        return load_checked(lambda: AutoConfig.for_model(self.model_type, **values))

    def load(self, auto_class: type, **changes: Any) -> PreTrainedModel:
        """Return the model with random weights."""
        config = self.load_config(**without_generation_values(changes))
        model: PreTrainedModel = auto_class.from_config(config)  # type: ignore[attr-defined]
        return model


def _special_tokens_within(changes: Mapping[str, Any], family: PreTrainedConfig) -> dict[str, int]:
    """Return 0 for each special token of a family that lies outside a smaller vocabulary.

    Embeddings cannot be created otherwise. The task sets the token IDs of the actual tokenizer later.
    """
    size = changes.get("vocab_size")
    tokens = {name: value for name, value in family.to_dict().items() if name.endswith("_token_id")}
    return {name: 0 for name, value in tokens.items() if size and isinstance(value, int) and value >= size}
