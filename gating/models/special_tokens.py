"""IDs of special tokens that a model shares with its tokenizer."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["special_token_ids"]


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
