"""A text made of another: translation, summaries, with T5, BART, Marian and other encoder-decoders."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import DatasetDict, Translation
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.batches import Batch
from gating.data.columns import take_columns
from gating.data.examples import Examples
from gating.data.text.tokenizers import load_or_train_tokenizer
from gating.data.text.tokens import check_texts, tokenize, truncation_length
from gating.errors import InputError
from gating.models.sources import ModelSource
from gating.models.special_tokens import special_token_ids
from gating.report.score import Score
from gating.tasks.base import Prepared
from gating.tasks.metrics.tokens import PERPLEXITY, token_metrics, update_token_metrics
from gating.tasks.metrics.translation import SacreScore
from gating.tasks.samples import Sample

__all__ = ["Seq2Seq"]

# Names of the column of the source and of that of the target; the first ones that are both there are taken.
_USUAL = (
    ("text_a", "text_b"),
    ("source", "target"),
    ("document", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("text", "text_pair"),
    ("question", "answer"),
)

_TEXT_SCORES = ("bleu", "chrf")


class Seq2Seq:
    """A text made of another."""

    auto_class = AutoModelForSeq2SeqLM

    def __init__(
        self,
        prefix: str = "",
        num_beams: int = 1,
        num_samples: int = 3,
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> None:
        """Say how the model is asked.

        Args:
            prefix: What stands in front of every source, such as T5's ``translate English to German: ``.
            num_beams: How many beams a search for the best text has; 1 takes the likeliest token at each step.
            num_samples: How many texts to show at the end.
            source_language: The source's code in the tokenizer of mBART, NLLB or M2M100, such as ``en_XX``.
            target_language: That of the target.

        Raises:
            ValueError: There is no beam, or a negative number of texts.
        """
        if num_samples < 0:
            raise InputError(f"task.num_samples={num_samples}: give 0 or more.")
        if num_beams < 1:
            raise InputError(f"task.num_beams={num_beams}: a search has at least one beam.")
        self._prefix = prefix
        self._num_beams = num_beams
        self._num_samples = num_samples
        self._languages = {"source": source_language, "target": target_language}
        # How texts are written is known with the data.
        self._write: _Writer | None = None

    def load_processor(
        self, source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer, or learn one, of both texts together, for a new model.

        Raises:
            ValueError: It does not have the languages.
        """
        tokenizer = load_or_train_tokenizer(source, blueprint, splits, frame="end")
        for side, language in self._languages.items():
            if language is not None:
                _set_language(tokenizer, side, language)
        try:
            tokenizer(text_target="a")
        except KeyError as error:  # M2M100's has no language of its own.
            raise InputError(
                "The model's tokenizer marks the language of targets: give task.target_language=..., such as de."
            ) from error
        return tokenizer

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        blueprint: PreTrainedModel,
        *,
        max_length: int = 128,
        max_target_length: int | None = None,
        text_column: str | None = None,
        text_pair_column: str | None = None,
    ) -> Prepared:
        """Tokenize sources and targets.

        Args:
            examples: The data.
            processor: The model's tokenizer.
            blueprint: The model without its weights.
            max_length: Number of tokens after which a source is cut off.
            max_target_length: The same of a target; as for sources when left out. Texts that are written are no longer.
            text_column: Column of the source; ``translation.en`` is a part of a nested column.
            text_pair_column: Column of the target.
        """
        columns = _find_columns(examples.splits, text_column, text_pair_column)
        texts = take_columns(examples.splits, columns)
        check_texts(texts, list(columns))
        length = truncation_length(blueprint, max_length)
        target_length = length
        if max_target_length is not None:
            target_length = truncation_length(blueprint, max_target_length, name="data.max_target_length")
        self._write = _Writer(processor, num_beams=self._num_beams, max_length=target_length)
        ids: dict[str, Any] = dict(special_token_ids(processor, blueprint.config))
        # It shifts targets as the model itself will do, each family in its way.
        blueprint.config.update(ids)
        collate = _PairCollator(processor, blueprint)
        # Some put the last token first. What is written has to begin as what was learned did.
        ids["decoder_start_token_id"] = collate.first_token
        blueprint.config.update(ids)
        if self._languages["target"] is not None:
            # What was saved with the model may force another language.
            ids["forced_bos_token_id"] = _language_token(processor, self._languages["target"])
        return Prepared(
            splits=_tokenize(texts, processor, prefix=self._prefix, length=length, target_length=target_length),
            collate=collate,
            metrics=token_metrics(blueprint.config.get_text_config(decoder=True).vocab_size),
            score=PERPLEXITY,
            config=ids,
            final_metrics=MetricCollection({name: SacreScore(name) for name in _TEXT_SCORES}, compute_groups=False),
            final_score=Score("bleu", unit=""),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare each token with what the right ones before it made the model expect, and what the model writes."""
        update_token_metrics(metrics, outputs["logits"], batch["labels"])
        if "bleu" in metrics:
            assert self._write is not None, "prepare() the data first"
            written = self._write(model, batch["input_ids"], batch["attention_mask"])
            for name in _TEXT_SCORES:
                metrics[name].update(written, batch["metric_target"])

    def write_samples(
        self, model: PreTrainedModel, processor: PreTrainedTokenizerBase, splits: DatasetDict
    ) -> list[Sample]:
        """Let the model answer the first sources of the test data, or of the validation data if there are none."""
        assert self._write is not None, "prepare() the data first"
        table = splits.get("test", splits["validation"])
        samples = []
        for row in table.take(min(self._num_samples, len(table))):
            ids = torch.tensor([row["input_ids"]], device=model.device)
            (written,) = self._write(model, ids, torch.ones_like(ids))
            source = str(processor.decode(row["input_ids"], skip_special_tokens=True))
            samples.append({"source": source, "written": written, "right": row["metric_target"]})
        return samples


class _Writer:
    """Writes the text that a model finds best for a source."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, num_beams: int, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._options = {"num_beams": num_beams, "max_new_tokens": max_length, "do_sample": False}

    def __call__(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        ids = model.generate(  # type: ignore[operator]
            input_ids=input_ids, attention_mask=attention_mask, **self._options
        )
        texts: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


class _PairCollator:
    """Pads sources and targets, and hands the targets on as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, blueprint: PreTrainedModel) -> None:
        self._pad = DataCollatorForSeq2Seq(tokenizer, model=blueprint)
        self._start, self._padding = blueprint.config.decoder_start_token_id, blueprint.config.pad_token_id
        target = tokenizer(text_target="a")["input_ids"]
        batch = self([{"input_ids": target, "labels": target, "metric_target": "a"}])
        self.first_token = int(batch["decoder_input_ids"][0, 0])

    def __call__(self, pairs: Iterable[dict[str, Any]]) -> dict[str, Any]:
        pairs = list(pairs)
        batch = self._pad([{name: pair[name] for name in ("input_ids", "labels")} for pair in pairs])
        if "decoder_input_ids" not in batch:
            # For models that shift targets in their forward pass alone; a pass without targets needs them, too.
            shifted = batch["labels"].roll(1, dims=1)
            shifted[:, 0] = self._start
            batch["decoder_input_ids"] = shifted.masked_fill(shifted == -100, self._padding)
        return {**batch, "metric_target": [pair["metric_target"] for pair in pairs]}


def _language_token(tokenizer: PreTrainedTokenizerBase, language: str) -> int | None:
    """Return the token of a language that targets begin with; None where it is what the decoder starts with."""
    first: int = tokenizer(text_target="a")["input_ids"][0]
    return first if tokenizer.convert_ids_to_tokens(first) in (language, f"__{language}__") else None


def _set_language(tokenizer: PreTrainedTokenizerBase, side: str, language: str) -> None:
    """Tell a tokenizer the language of sources or targets, which it marks with a token."""
    if not hasattr(tokenizer, "src_lang"):
        raise InputError(f"task.{side}_language={language}: the model's tokenizer marks no languages. Leave it out.")
    added = set(tokenizer.get_added_vocab()) - set(tokenizer.special_tokens_map.values())
    known = getattr(tokenizer, "lang_code_to_id", None) or added or tokenizer.get_vocab()
    # M2M100 writes its codes between underscores.
    if not {language, f"__{language}__"} & set(known):
        close = difflib.get_close_matches(language, known, n=1)
        hint = f" Did you mean {close[0].strip('_')}?" if close else ""
        raise InputError(f"task.{side}_language={language} is no language of the model's tokenizer.{hint}")
    setattr(tokenizer, "src_lang" if side == "source" else "tgt_lang", language)


def _find_columns(splits: DatasetDict, text: str | None, text_pair: str | None) -> dict[str, str]:
    """Return the columns of source and target; of a column ``translation`` its two languages in their order."""
    there = set(splits["train"].column_names)
    usual = next((pair for pair in _USUAL if there.issuperset(pair)), _USUAL[0])
    if "translation" in there:
        feature = splits["train"].features["translation"]
        languages = feature.languages if isinstance(feature, Translation) else list(feature)
        usual = (f"translation.{languages[0]}", f"translation.{languages[1]}")
    return {"text": text or usual[0], "text_pair": text_pair or usual[1]}


def _tokenize(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, prefix: str, length: int, target_length: int
) -> DatasetDict:
    def function(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        targets = [str(text) for text in batch["text_pair"]]
        tokens = tokenizer([f"{prefix}{text}" for text in batch["text"]], truncation=True, max_length=length)
        labels = tokenizer(text_target=targets, truncation=True, max_length=target_length)
        return {"input_ids": tokens["input_ids"], "labels": labels["input_ids"], "metric_target": targets}

    return tokenize(splits, function)
