"""Causal language modeling: the next token of a text, for GPT, LLaMA and other decoders."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from datasets import DatasetDict
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from gating.data.tokens import truncation_length
from gating.errors import InputError
from gating.tasks.base import Metrics, Sample
from gating.tasks.blocks import BlockTask

__all__ = ["CausalLM"]


class CausalLM(BlockTask):
    """Prediction of the next token, in blocks of text."""

    auto_class = AutoModelForCausalLM
    frame = "none"
    with_ends, shift = True, 1

    def __init__(
        self,
        prompts: Sequence[str] | None = None,
        num_samples: Annotated[int, Field(ge=0)] = 3,
        sample_length: Annotated[int, Field(ge=1)] = 60,
        sample_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
        chat: bool = False,
        metrics: Metrics | None = None,
        score: str | None = None,
    ) -> None:
        """Store the settings of the samples that the finished model generates, and the metrics.

        Args:
            prompts: Texts to continue; the first tokens of validation blocks if None.
            num_samples: Number of prompts taken from the validation data.
            sample_length: Number of tokens to generate.
            sample_seed: Random seed of the first sample; that of the next one is larger by one.
            chat: Whether prompts are messages to a model that answers, in its chat template and without sampling.
            metrics: ``perplexity``, ``accuracy``, or metrics, or classes of metrics by name; these two if None.
            score: Name of the metric by which runs are compared; the first if None.
        """
        if chat and not prompts:
            raise InputError("task.chat=true needs messages: give task.prompts, such as ['What is a llama?'].")
        super().__init__(metrics, score)
        self._prompts = list(prompts or ())
        self._num_samples = num_samples
        self._sample_length = sample_length
        self._sample_seed = sample_seed
        self._chat = chat

    def collator(self, processor: PreTrainedTokenizerBase) -> "_BlockCollator":
        """Return the function that pads blocks; the labels are the tokens themselves."""
        return _BlockCollator(processor)

    def check_settings(self, processor: PreTrainedTokenizerBase) -> None:
        """Raise ``InputError`` for a prompt without tokens, or messages to a tokenizer without a template for them."""
        if self._chat and not processor.chat_template:
            raise InputError(
                "task.chat=true needs a model with a chat template, and its tokenizer has none: leave it out, and give "
                "task.prompts as texts to continue."
            )
        for prompt in self._prompts:
            if not processor(prompt)["input_ids"]:
                raise InputError(f"task.prompts has {prompt!r}, which has no tokens: give a text, or leave it out.")

    def config(self, meta_model: PreTrainedModel) -> dict[str, bool]:
        """Return the configuration values that give an encoder, such as BERT, a causal mask."""
        return {"is_decoder": True} if meta_model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else {}

    def write_samples(
        self, model: PreTrainedModel, processor: PreTrainedTokenizerBase, splits: DatasetDict
    ) -> list[Sample]:
        """Continue the prompts by sampling from the 50 most likely tokens, or answer them."""
        if self._chat:
            # The template is left out of the prompts that readers see.
            return [
                {
                    **self._write(model, processor, _as_message(processor, prompt), seed=self._sample_seed),
                    "prompt": prompt,
                }
                for prompt in self._prompts
            ]
        if self._prompts:
            prompts = [processor(prompt)["input_ids"] for prompt in self._prompts]
        else:
            beginnings = splits["validation"][: self._num_samples]["input_ids"]
            prompts = [ids[: max(1, min(16, len(ids) // 2))] for ids in beginnings]
        return [self._write(model, processor, prompt, seed=self._sample_seed + n) for n, prompt in enumerate(prompts)]

    def _write(
        self, model: PreTrainedModel, processor: PreTrainedTokenizerBase, prompt: list[int], *, seed: int
    ) -> Sample:
        room = truncation_length(model, len(prompt) + self._sample_length)
        # The start of a prompt that fills all positions of the model is cut off.
        prompt = prompt[-max(1, room - self._sample_length) :]
        ids = torch.tensor([prompt], device=model.device)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            written = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **({"do_sample": False} if self._chat else {"do_sample": True, "top_k": 50}),
                max_new_tokens=max(1, room - len(prompt)),
                pad_token_id=processor.pad_token_id,
            )
        continuation = str(processor.decode(written[0, len(prompt) :], skip_special_tokens=True))
        return {"prompt": str(processor.decode(prompt)), "written": continuation}


def _as_message(processor: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the tokens of a message to a model, up to the beginning of its answer."""
    message = [{"role": "user", "content": prompt}]
    encoded: Any = processor.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    tokens: list[int] = encoded["input_ids"]
    return tokens


class _BlockCollator:
    """Collator that pads blocks and copies them to the labels, except their first token.

    ``DataCollatorForLanguageModeling`` would also ignore every EOS token if the tokenizer pads with it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [{"input_ids": block["input_ids"]} for block in blocks]
        batch = dict(self._tokenizer.pad(rows, padding_side="right", return_attention_mask=True, return_tensors="pt"))
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, 0] = -100
        return {**batch, "labels": labels}
