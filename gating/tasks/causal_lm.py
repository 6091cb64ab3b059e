"""Causal language modeling: the next token of a text, for GPT, LLaMA and other decoders."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from datasets import DatasetDict
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from gating.data.tokens import truncation_length
from gating.errors import InputError
from gating.models.sources import ModelSource, Pretrained
from gating.tasks.base import Sample
from gating.tasks.blocks import BlockTask


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
        metrics: Sequence[str] | None = None,
        score: str | None = None,
    ) -> None:
        """Store the settings of samples, and the metrics; they are those of ``conf/task/causal_lm.yaml``."""
        if chat and not prompts:
            raise InputError("task.chat=true needs messages: give task.prompts, such as ['What is a llama?'].")
        super().__init__(metrics, score)
        self._prompts = list(prompts or ())
        self._num_samples = num_samples
        self._sample_length = sample_length
        self._sample_seed = sample_seed
        self._chat = chat

    def collator(self, processor: PreTrainedTokenizerBase) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Return the function that pads blocks; the labels are the tokens themselves."""
        return partial(_collate, processor)

    def load_processor(
        self, source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer, or train one for a new model; it must fit the prompts."""
        config = meta_model.config
        if isinstance(source, Pretrained) and self.config(meta_model) and getattr(config, "is_decoder", None) is False:
            raise InputError(
                f"{source.title} is an encoder ({config.model_type}), trained to read the words on both sides: give a "
                "decoder, as with model=pretrained model.name=openai-community/gpt2, or train it as one with "
                "+model.config.is_decoder=true."
            )
        tokenizer = super().load_processor(source, meta_model, splits)
        if self._chat and not tokenizer.chat_template:
            raise InputError(
                "task.chat=true needs a model with a chat template, and its tokenizer has none: leave it out, and give "
                "task.prompts as texts to continue."
            )
        for prompt in self._prompts:
            if not tokenizer(prompt)["input_ids"]:
                raise InputError(f"task.prompts has {prompt!r}, which has no tokens: give a text, or leave it out.")
        return tokenizer

    def config(self, meta_model: PreTrainedModel) -> dict[str, bool]:
        """Return the configuration values that give an encoder, such as BERT, a causal mask."""
        return {"is_decoder": True} if meta_model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else {}

    def write_samples(
        self, model: PreTrainedModel, processor: PreTrainedTokenizerBase, splits: DatasetDict
    ) -> list[Sample]:
        """Continue the prompts by sampling from the 50 most likely tokens, or answer them."""
        if self._prompts:
            prompts = [self._encode(processor, prompt) for prompt in self._prompts]
        else:
            beginnings = splits["validation"][: self._num_samples]["input_ids"]
            prompts = [ids[: max(1, min(16, len(ids) // 2))] for ids in beginnings]
        samples = [self._write(model, processor, ids, seed=self._sample_seed + n) for n, ids in enumerate(prompts)]
        # The template is left out of the prompts that readers see.
        shown = self._prompts if self._chat else [sample["prompt"] for sample in samples]
        return [{**sample, "prompt": prompt} for sample, prompt in zip(samples, shown, strict=True)]

    def _encode(self, processor: PreTrainedTokenizerBase, prompt: str) -> list[int]:
        """Return the tokens of a prompt; of a message, up to the beginning of its answer."""
        if not self._chat:
            return list(processor(prompt)["input_ids"])
        message = [{"role": "user", "content": prompt}]
        encoded: Any = processor.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def _write(
        self, model: PreTrainedModel, processor: PreTrainedTokenizerBase, prompt: list[int], *, seed: int
    ) -> Sample:
        """Return a prompt and its continuation."""
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


def _collate(tokenizer: PreTrainedTokenizerBase, blocks: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad blocks, and copy them to the labels, except their first token.

    ``DataCollatorForLanguageModeling`` would also ignore every EOS token if the tokenizer pads with it.
    """
    rows = [{"input_ids": block["input_ids"]} for block in blocks]
    batch = dict(tokenizer.pad(rows, padding_side="right", return_attention_mask=True, return_tensors="pt"))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    return {**batch, "labels": labels}
