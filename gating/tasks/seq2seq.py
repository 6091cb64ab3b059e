"""Sequence-to-sequence tasks: translation and summarization, for T5, BART, Marian and other encoder-decoders."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from datasets import DatasetDict, Translation
from pydantic import Field
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from gating.data.columns import take_columns
from gating.data.examples import Batch, Examples
from gating.data.tokens import check_texts, special_token_ids, tokenize, truncation_length
from gating.errors import InputError
from gating.models.sources import ModelSource
from gating.tasks.base import Prepared, Sample, TextTask
from gating.tasks.metrics.choice import Metrics
from gating.tasks.metrics.texts import TEXT_METRICS, TOKEN_METRICS, build_text_metrics, update_token_metrics

# Usual names of the columns of sources and targets, in order of precedence.
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


class Seq2Seq(TextTask):
    """Generation of a target text from a source text."""

    auto_class = AutoModelForSeq2SeqLM
    frame = "end"
    known_metrics = TEXT_METRICS

    def __init__(
        self,
        prefix: str = "",
        num_beams: Annotated[int, Field(ge=1)] = 1,
        num_samples: Annotated[int, Field(ge=0)] = 3,
        source_language: str | None = None,
        target_language: str | None = None,
        metrics: Metrics | None = None,
        score: str | None = None,
    ) -> None:
        """Store the settings of generation, and the metrics; they are those of ``conf/task/seq2seq.yaml``."""
        super().__init__(metrics, score)
        self._prefix = prefix
        self._num_beams = num_beams
        self._num_samples = num_samples
        self._languages = {"source": source_language, "target": target_language}
        # Set by prepare(), because they depend on the settings of the data.
        self._processor: PreTrainedTokenizerBase | None = None
        self._target_length = 0

    def load_processor(
        self, source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer, or train one on sources and targets for a new model."""
        tokenizer = super().load_processor(source, meta_model, splits)
        for side, language in self._languages.items():
            if language is not None:
                _set_language(tokenizer, side, language)
        return tokenizer

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        meta_model: PreTrainedModel,
        *,
        max_length: int = 128,
        max_target_length: int | None = None,
        text_column: str | None = None,
        text_pair_column: str | None = None,
    ) -> Prepared:
        """Tokenize sources and targets.

        Targets are truncated to ``max_target_length`` tokens, by default ``max_length``, and as many are generated at
        most. A column such as ``translation.en`` is a field of a nested one.
        """
        columns = _find_columns(examples.splits, text_column, text_pair_column)
        texts = take_columns(examples.splits, columns)
        check_texts(texts, list(columns))
        length = truncation_length(meta_model, max_length)
        longest = max_length if max_target_length is None else max_target_length
        target_length = truncation_length(meta_model, longest, name="data.max_target_length")
        self._processor, self._target_length = processor, target_length
        ids: dict[str, int | None] = {**special_token_ids(processor, meta_model.config)}
        # The collator shifts targets by the model's own method, which differs between families.
        meta_model.config.update(ids)
        collate = _PairCollator(processor, meta_model)
        # Generation starts with the first token of the collated targets: mBART moves the last one to the front.
        ids["decoder_start_token_id"] = collate.first_token
        meta_model.config.update(ids)
        if self._languages["target"] is not None:
            # The saved generation config may force another language.
            ids["forced_bos_token_id"] = _language_token(processor, self._languages["target"])
        vocab_size = meta_model.config.get_text_config(decoder=True).vocab_size
        metrics, score, final_metrics, final_score = build_text_metrics(self._metrics, vocab_size=vocab_size)
        return Prepared(
            splits=_tokenize(texts, processor, prefix=self._prefix, length=length, target_length=target_length),
            collate=collate,
            metrics=metrics,
            score=score,
            config=ids,
            final_metrics=final_metrics,
            final_score=final_score,
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the logits at each position to the label, and, at the end of a phase, generated texts to targets."""
        of_tokens = [metric for metric in metrics.values() if isinstance(metric, TOKEN_METRICS)]
        texts = [metric for metric in metrics.values() if not isinstance(metric, TOKEN_METRICS)]
        update_token_metrics(of_tokens, outputs["logits"], batch["labels"])
        if texts:
            predictions = self._generate(model, batch["input_ids"], batch["attention_mask"])
            for metric in texts:
                metric.update(predictions, batch["metric_target"])

    def write_samples(
        self, model: PreTrainedModel, processor: PreTrainedTokenizerBase, splits: DatasetDict
    ) -> list[Sample]:
        """Generate targets for the first sources of the test split, or else of the validation split."""
        table = splits.get("test", splits["validation"])
        samples = []
        for row in table.take(min(self._num_samples, len(table))):
            ids = torch.tensor([row["input_ids"]], device=model.device)
            (written,) = self._generate(model, ids, torch.ones_like(ids))
            source = str(processor.decode(row["input_ids"], skip_special_tokens=True))
            samples.append({"source": source, "written": written, "right": row["metric_target"]})
        return samples

    def _generate(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        """Return the texts that a model generates by beam search, or greedily with one beam."""
        assert self._processor is not None, "prepare() the data first"
        ids = model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=attention_mask,
            num_beams=self._num_beams,
            max_new_tokens=self._target_length,
            do_sample=False,
        )
        texts: list[str] = self._processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


class _PairCollator:
    """Collator that pads sources and targets; ``metric_target`` are the target texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, meta_model: PreTrainedModel) -> None:
        self._pad = DataCollatorForSeq2Seq(tokenizer, model=meta_model)
        self._start, self._padding = meta_model.config.decoder_start_token_id, meta_model.config.pad_token_id
        target = tokenizer(text_target="a")["input_ids"]
        batch = self([{"input_ids": target, "labels": target, "metric_target": "a"}])
        self.first_token = int(batch["decoder_input_ids"][0, 0])

    def __call__(self, pairs: Iterable[dict[str, Any]]) -> dict[str, Any]:
        pairs = list(pairs)
        batch = self._pad([{name: pair[name] for name in ("input_ids", "labels")} for pair in pairs])
        if "decoder_input_ids" not in batch:
            # Some models shift labels only in their forward pass; a forward pass without labels needs these, too.
            shifted = batch["labels"].roll(1, dims=1)
            shifted[:, 0] = self._start
            batch["decoder_input_ids"] = shifted.masked_fill(shifted == -100, self._padding)
        return {**batch, "metric_target": [pair["metric_target"] for pair in pairs]}


def _find_columns(splits: DatasetDict, text: str | None, text_pair: str | None) -> dict[str, str]:
    """Return the columns of sources and targets; the first two languages of a column ``translation``."""
    present = set(splits["train"].column_names)
    usual = next((pair for pair in _USUAL if present.issuperset(pair)), _USUAL[0])
    if "translation" in present:
        feature = splits["train"].features["translation"]
        languages = feature.languages if isinstance(feature, Translation) else list(feature)
        usual = (f"translation.{languages[0]}", f"translation.{languages[1]}")
    return {"text": text or usual[0], "text_pair": text_pair or usual[1]}


def _tokenize(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, prefix: str, length: int, target_length: int
) -> DatasetDict:
    def tokenize_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        targets = [str(text) for text in batch["text_pair"]]
        sources = [f"{prefix}{text}" for text in batch["text"]]
        tokens = tokenizer(sources, truncation=True, max_length=length)
        labels = tokenizer(text_target=targets, truncation=True, max_length=target_length)
        return {"input_ids": tokens["input_ids"], "labels": labels["input_ids"], "metric_target": targets}

    return tokenize(splits, tokenize_batch, tokenizer=tokenizer)


def _set_language(tokenizer: PreTrainedTokenizerBase, side: str, language: str) -> None:
    """Set the source or target language of a tokenizer, in place; an unknown one would be an unknown token."""
    # M2M100 writes its codes between underscores.
    if not hasattr(tokenizer, "src_lang") or not {language, f"__{language}__"} & set(tokenizer.get_vocab()):
        raise InputError(f"task.{side}_language={language} is not a language of the model's tokenizer.")
    setattr(tokenizer, "src_lang" if side == "source" else "tgt_lang", language)


def _language_token(tokenizer: PreTrainedTokenizerBase, language: str) -> int | None:
    """Return the forced BOS token of a target language; None if targets do not begin with a language."""
    first: int = tokenizer(text_target="a")["input_ids"][0]
    return first if tokenizer.convert_ids_to_tokens(first) in (language, f"__{language}__") else None
