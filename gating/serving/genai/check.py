"""Check of a folder for ONNX Runtime GenAI: the tokens that the runtime writes, alone and in a padded batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gating.errors import OperationError, explain, shorten
from gating.serving.genai.graph import TokenIds
from gating.serving.greedy import TOLERANCES, check_alone_and_in_batch, make_prompts

__all__ = ["check_in_genai", "check_tokenizer"]

_RUNTIME = "ONNX Runtime GenAI"
_TEXTS = ("Hello world! It's 2026, isn't it?", "naïve café\n\n  x = [1, 2]")


def check_in_genai(genai: Any, model: PreTrainedModel, folder: Path, *, dtype: str, tokens: TokenIds) -> list[str]:
    """Compare the tokens that the runtime writes with a decoder's own, and return the result as sentences.

    Tokens that end a text are left out, since texts may end after a few tokens otherwise. Quantized weights may change
    the tokens: then the change is measured, and only runs that fail are errors.

    Raises:
        RuntimeError: The weights are not quantized, and the runtime's tokens or logits differ from the decoder's.
    """
    prompts, count = make_prompts(model, without=(tokens.pad, *tokens.eos))
    runtime, change, tolerance = genai.Model(str(folder)), 0.0, TOLERANCES.get(dtype)

    def write(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        nonlocal change
        written, logits = _write(genai, runtime, rows, tokens.pad, count)
        if len(rows) == 1:
            change = max(change, _change_of_logits(model, rows[0], written[0], logits[0]))
        return written

    alone, batch = check_alone_and_in_batch(
        model, prompts, write, never_written=tokens.eos, tolerance=tolerance, runtime=_RUNTIME, side="right"
    )
    if tolerance is not None and not change <= tolerance:
        raise OperationError(
            f"The logits of {_RUNTIME} differ from the model's by {100 * change:.2g} % of the largest, more than "
            "rounding. Nothing was written."
        )
    share = f"{100 * change:.2g} %" if change >= 1e-4 else f"{change:.0e}"
    return [f"{alone}, and its logits differ by up to {share} of the largest", batch]


def _write(
    genai: Any, runtime: Any, prompts: Sequence[Sequence[int]], pad: int, count: int
) -> tuple[list[list[int]], list[np.ndarray[Any, Any]]]:
    """Return the tokens that the runtime writes after prompts, and its logits, ``[tokens, vocab_size]`` for each."""
    longest, parameters = max(map(len, prompts)), genai.GeneratorParams(runtime)
    length = longest + count
    parameters.set_search_options(min_length=length, max_length=length, batch_size=len(prompts), do_sample=False)
    generator = genai.Generator(runtime, parameters)
    padded = [[*prompt, *[pad] * (longest - len(prompt))] for prompt in prompts]
    generator.append_tokens(np.array(padded, dtype=np.int32))
    steps, logits = [], []
    while not generator.is_done():
        logits.append(np.array(generator.get_logits()).reshape(len(prompts), -1))
        generator.generate_next_token()
        steps.append(np.array(generator.get_next_tokens()))
    return np.stack(steps, axis=1).tolist(), list(np.stack(logits, axis=1))


@torch.inference_mode()
def _change_of_logits(
    model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int], logits: np.ndarray[Any, Any]
) -> float:
    """Return the largest difference of logits after the same text, as a share of the largest logit."""
    text = torch.tensor([[*prompt, *tokens]], device=model.device)
    expected = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1].float().cpu()
    return float((torch.from_numpy(logits) - expected).abs().max() / expected.abs().max())


def check_tokenizer(genai: Any, folder: Path, tokenizer: Any) -> list[str]:
    """Compare the runtime's tokens of some texts with the tokenizer's, and return a sentence if they differ."""
    remedy = "give the runtime token ids that transformers' tokenizer makes"
    try:
        runtime = genai.Tokenizer(genai.Model(str(folder)))
        made = [runtime.encode(text).tolist() for text in _TEXTS]
    except Exception as error:  # The runtime knows a part of the tokenizers, and raises errors of all kinds.
        return [f"The runtime cannot use this tokenizer ({shorten(explain(error), most=120)}): {remedy}"]
    if made == [tokenizer(text)["input_ids"] for text in _TEXTS]:
        return []
    if made == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in _TEXTS]:
        first = tokenizer.decode(tokenizer(_TEXTS[0])["input_ids"][:1])
        return [f"The runtime leaves out the special tokens that the tokenizer adds: write {first} in the prompt"]
    return [f"The runtime makes other tokens of some texts than the tokenizer: {remedy}"]
