"""A tokenizer for a model from scratch: byte-level pairs (BPE), learned from the training data."""

import tempfile
from collections.abc import Iterator
from typing import Any, Literal

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gating.data.text.tokens import load_tokenizer
from gating.errors import InputError
from gating.models.sources import ModelSource

__all__ = ["load_or_train_tokenizer", "train_tokenizer"]

PAD, BEGIN, END, MASK = SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")

# What goes around a text: nothing, an end, or a beginning and an end.
Frame = Literal["none", "end", "both"]


def load_or_train_tokenizer(
    source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict, *, frame: Frame
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, or learn one from all texts of the training data for a model that has none.

    Args:
        source: Where the model comes from.
        blueprint: The model without its weights; its configuration says how many tokens there may be.
        splits: The data.
        frame: What a new tokenizer puts around a text.

    Raises:
        ValueError: The tokenizer has more tokens than the model, or the model has too few for a new one.
    """
    size = blueprint.config.get_text_config().vocab_size
    if source.processor is None:
        made = train_tokenizer(splits["train"], size=size, frame=frame)
        loaded = _class_when_loaded(made, blueprint)
        if loaded is type(made):
            return made
        # The new Qwens: their tokenizers are loaded as that of their family, whatever they are.
        other: PreTrainedTokenizerBase = loaded().train_new_from_iterator(
            _texts(splits["train"]), size, show_progress=False
        )
        return other
    tokenizer = load_tokenizer(source)
    if len(tokenizer) > size:
        raise InputError(
            f"The tokenizer {source.processor} has {len(tokenizer)} tokens, and the {source.title} knows {size}: let "
            f"model.config.vocab_size={len(tokenizer)}, or take another tokenizer."
        )
    return tokenizer


def train_tokenizer(table: Dataset, *, size: int, frame: Frame) -> PreTrainedTokenizerFast:
    """Learn a tokenizer that knows every text: what it has no token for, it spells in bytes.

    Args:
        table: Examples; every column of text counts.
        size: Number of tokens at most, special ones included.
        frame: What it puts around a text.

    Raises:
        ValueError: So few tokens do not hold all bytes, or there is no text.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size < len(alphabet) + len(SPECIAL):
        raise InputError(
            f"model.config.vocab_size={size} is too small: a new tokenizer has a token for each of {len(alphabet)} "
            f"bytes and {len(SPECIAL)} special ones. Give {len(alphabet) + len(SPECIAL)} or more, such as 4000."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(table), trainer)
    if frame != "none":
        first = f"{BEGIN} " if frame == "both" else ""
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first}$A {END}",
            pair=f"{first}$A {END} $B:1 {END}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        mask_token=MASK,
        # A classifier's names for them.
        cls_token=BEGIN,
        sep_token=END,
        clean_up_tokenization_spaces=False,
    )


def _class_when_loaded(tokenizer: PreTrainedTokenizerFast, blueprint: PreTrainedModel) -> type[Any]:
    """Return what AutoTokenizer makes of a tokenizer that is saved with a model."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        blueprint.config.save_pretrained(folder)
        return type(AutoTokenizer.from_pretrained(folder))


def _texts(table: Dataset) -> Iterator[list[str]]:
    flat = table.flatten()
    columns = [name for name, feature in flat.features.items() if getattr(feature, "dtype", "").endswith("string")]
    if not columns:
        raise InputError(f"The training data has no column of text, only {', '.join(table.column_names)}.")
    for batch in flat.select_columns(columns).iter(batch_size=1000):
        for texts in batch.values():
            yield [text for text in texts if text]
