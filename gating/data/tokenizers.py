"""Tokenizers for new models: byte-level BPE, trained on the training data."""

import re
import tempfile
from collections.abc import Iterator
from typing import Any, Literal

from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gating.data.tokens import load_tokenizer
from gating.errors import InputError
from gating.models.sources import ModelSource
from tokenizers import ByteLevelBPETokenizer, Tokenizer, pre_tokenizers, processors

PAD, BEGIN, END, MASK = SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")

# Special tokens around a text: none, EOS, or BOS and EOS.
Frame = Literal["none", "end", "both"]


def load_or_train_tokenizer(
    source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict, *, frame: Frame
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, or train one on all texts of the training data if the model has none."""
    size = meta_model.config.get_text_config().vocab_size
    if source.processor is None:
        trained = train_tokenizer(splits["train"], size=size, frame=frame)
        with tempfile.TemporaryDirectory() as folder:
            trained.save_pretrained(folder)
            meta_model.config.save_pretrained(folder)
            loaded: Any = type(AutoTokenizer.from_pretrained(folder))
        if loaded is type(trained):
            return trained
        # Families such as Qwen: AutoTokenizer always loads their own class, so that class is trained.
        other: PreTrainedTokenizerBase = loaded().train_new_from_iterator(
            _texts(splits["train"]), size, show_progress=False
        )
        return other
    tokenizer = load_tokenizer(source)
    if len(tokenizer) > size:
        raise InputError(
            f"The tokenizer {source.processor} has {len(tokenizer)} tokens, and the {source.title} has "
            f"model.config.vocab_size={size}: change one of them."
        )
    return tokenizer


def train_tokenizer(table: Dataset, *, size: int, frame: Frame) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which encodes every text."""
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL)
    if size < smallest:
        raise InputError(f"model.config.vocab_size={size} is too small for a new tokenizer: give {smallest} or more.")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        _texts(table), vocab_size=size, min_frequency=0, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer = Tokenizer.from_str(bpe.to_str())
    first, last = f"{BEGIN} " if frame == "both" else "", "" if frame == "none" else f" {END}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}$A{last}",
        pair=f"{first}$A{last} $B:1{last and f'{last}:1'}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        mask_token=MASK,
        # Names of the same tokens in classifiers.
        cls_token=BEGIN,
        sep_token=END,
        clean_up_tokenization_spaces=False,
    )


def _texts(table: Dataset) -> Iterator[list[str]]:
    """Yield batches of the texts in all columns of texts, nested ones included."""
    flat = table.flatten()
    columns = [name for name, feature in flat.features.items() if getattr(feature, "dtype", "").endswith("string")]
    if not columns:
        raise InputError(f"The training data has no column of text, only {', '.join(table.column_names)}.")
    for batch in flat.select_columns(columns).iter(batch_size=1000):
        for texts in batch.values():
            yield [piece for text in texts if text for piece in _pieces(text)]


def _pieces(text: str) -> list[str]:
    """Cut words of thousands of characters, on which training takes quadratic time; other words stay whole."""
    return re.findall(r"\s*\S{1,1000}|\s+", text) if re.search(r"\S{1001}", text) else [text]
