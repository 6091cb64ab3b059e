"""Changes to model configurations, checked by name."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from gating.errors import InputError, nearest_name, shorten

__all__ = ["check_names", "special_token_ids"]


def check_names(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    """Check that a configuration has all values that are changed.

    Raises:
        ValueError: It lacks one; the message suggests a similar name.
    """
    for name in changes:
        if not hasattr(config, name):
            hint = nearest_name(name, config.to_dict(), prefix="model.config.")
            raise InputError(
                f"model.config.{name} is not a value of a {config.model_type} configuration. {shorten(hint)}"
            )


def special_token_ids(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> dict[str, int]:
    """Return the configuration values that follow from a tokenizer.

    A pretrained model has most of them already; a new one has the token IDs of its family's own tokenizer.

    Returns:
        ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` as far as the tokenizer has them; for encoder-decoders
        also ``decoder_start_token_id`` and ``forced_eos_token_id`` if they must change.
    """
    ids: dict[str, int] = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name)
        # Embeddings of the padding token are not trained, so it must not be the EOS token in the model.
        is_borrowed = name == "pad_token_id" and value == tokenizer.eos_token_id
        if value is not None and not is_borrowed:
            ids[name] = value
    if not config.is_encoder_decoder:
        return ids
    start: Any = getattr(config, "decoder_start_token_id", None)
    if start not in tokenizer.all_special_ids:
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    if getattr(config, "forced_eos_token_id", None) is not None:
        ids["forced_eos_token_id"] = tokenizer.eos_token_id
    return ids
