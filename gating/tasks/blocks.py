"""Language models of blocks of text: blocks of tokens of equal length, their metrics, and masked language models."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict
from pydantic import Field
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, PreTrainedModel, PreTrainedTokenizerBase

from gating.data.columns import find_column, take_columns
from gating.data.examples import Batch, Examples
from gating.data.tokens import check_texts, special_token_ids, tokenize, truncation_length
from gating.errors import InputError
from gating.tasks.base import Prepared, TextTask
from gating.tasks.metrics.texts import TOKEN_SCORES, build_token_metrics, update_token_metrics

TokenIds = np.ndarray[Any, np.dtype[np.int32]]

# Usual names of the column of texts, in order of precedence.
_TEXT_COLUMNS = ("text", "content", "sentence", "document")


class BlockTask(TextTask):
    """Base of language models of blocks of text, with the metrics ``perplexity`` and ``accuracy``.

    Attributes:
        with_ends: Whether blocks have the tokens between texts.
        shift: Number of positions from a logit to the token that it predicts.
    """

    with_ends: ClassVar[bool]
    shift: ClassVar[int]
    known_metrics = TOKEN_SCORES

    def collator(self, processor: PreTrainedTokenizerBase) -> Callable[[list[Any]], Batch]:
        """Return the function that collates blocks into a batch with labels."""
        raise NotImplementedError

    def config(self, meta_model: PreTrainedModel) -> dict[str, Any]:
        """Return values of the configuration, beside those of special tokens."""
        return {}

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        meta_model: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
    ) -> Prepared:
        """Tokenize texts into blocks of ``max_length`` tokens, whose labels are made when batches are collated."""
        if max_length == 1:
            raise InputError("data.max_length=1 leaves nothing to predict a token from: give at least 2, such as 128.")
        texts = take_columns(examples.splits, {"text": find_column(examples.splits, text_column, _TEXT_COLUMNS)})
        check_texts(texts, ["text"])
        length = truncation_length(meta_model, max_length)
        blocks = cut_into_blocks(texts, processor, length=length, with_ends=self.with_ends)
        vocab_size = meta_model.config.get_text_config().vocab_size
        metrics, score = build_token_metrics(self._metrics, vocab_size=vocab_size)
        return Prepared(
            splits=blocks,
            collate=self.collator(processor),
            metrics=metrics,
            score=score,
            config={**special_token_ids(processor, meta_model.config), **self.config(meta_model)},
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the logits at each position with the token that they predict."""
        labels = batch["labels"][:, self.shift :]
        update_token_metrics(metrics.values(), outputs["logits"][:, : labels.shape[1]], labels)


class MaskedLM(BlockTask):
    """Prediction of masked tokens, in blocks of text."""

    auto_class = AutoModelForMaskedLM
    with_ends, shift = False, 0

    def __init__(
        self,
        hidden: Annotated[float, Field(gt=0, lt=1)] = 0.15,
        metrics: Sequence[str] | None = None,
        score: str | None = None,
    ) -> None:
        """Store the share of tokens to mask, and the metrics."""
        super().__init__(metrics, score)
        self._hidden = hidden

    def collator(self, processor: PreTrainedTokenizerBase) -> "_MaskingCollator":
        """Return the function that masks tokens and pads blocks."""
        return _MaskingCollator(processor, hidden=self._hidden)


class _MaskingCollator:
    """Collator whose random masks depend on the content of the batch alone.

    Each validation uses the same masks, and a resumed run the same as an uninterrupted one. In training, batches and so
    masks differ in every epoch.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, hidden: float) -> None:
        self._collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=hidden)

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, Tensor]:
        seed = zlib.crc32(repr([list(block["input_ids"]) for block in blocks]).encode())
        self._collate.generator = torch.Generator().manual_seed(seed)
        batch = dict(self._collate([{"input_ids": block["input_ids"]} for block in blocks]))
        if (batch["labels"] == -100).all():
            # The loss over no targets would be NaN: the first word is masked.
            tokenizer = self._collate.tokenizer
            is_word = ~torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
            for row, place in is_word.nonzero()[:1].tolist():
                batch["labels"][row, place] = batch["input_ids"][row, place]
                batch["input_ids"][row, place] = tokenizer.mask_token_id
        return batch


def cut_into_blocks(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, length: int, with_ends: bool
) -> DatasetDict:
    """Tokenize the column ``text`` of every split, and cut all texts together into blocks, the column ``input_ids``.

    A block has ``length`` tokens. The last one of a split may be shorter; it is left out if it is a single token, since
    that predicts nothing. With ``with_ends``, each text but the last ends with the EOS token.
    """

    def tokenize_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"input_ids": tokenizer([str(text) for text in batch["text"]])["input_ids"]}

    tokens = tokenize(splits, tokenize_batch, tokenizer=tokenizer)
    end = tokenizer.eos_token_id if with_ends else None
    blocks = {}
    for split, table in tokens.items():
        stream = _concatenate(table, end)
        if len(stream) < 2:
            raise InputError(f"The {split} data has {len(stream)} token(s) of text; training needs two or more.")
        starts = np.arange(0, len(stream) - 1, length)
        bounds = np.append(starts, min(len(stream), starts[-1] + length)).astype(np.int32)
        blocks[split] = Dataset.from_dict({"input_ids": pa.ListArray.from_arrays(bounds, stream)})
    return DatasetDict(blocks)


def _concatenate(table: Dataset, end: int | None) -> TokenIds:
    """Return the tokens of all texts, shape ``(num_tokens,)``, with an EOS token between texts unless it is None."""
    # NumPy and Arrow take about 5 bytes a token besides the table, lists of integers 30.
    column = table.with_format("arrow")["input_ids"][:]
    tokens: TokenIds = pc.list_flatten(column).to_numpy().astype(np.int32, copy=False)
    if end is None:
        return tokens
    lengths = pc.list_value_length(column).to_numpy()
    stops = lengths.cumsum()
    is_closed = lengths > 0
    is_closed[is_closed] = tokens[stops[is_closed] - 1] == end
    is_closed[-1] = True
    return np.insert(tokens, stops[~is_closed], end)
