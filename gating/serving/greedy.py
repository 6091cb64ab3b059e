"""Greedy decoding: the tokens that a model writes, and the check of those that a runtime wrote."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import OperationError
from gating.serving.contexts import LONGEST_CHECKED, boundaries

NUM_NEW_TOKENS = 40
# Lengths of the prompts, in tokens.
_LENGTHS = (1, 3, 8, 13, 21)
# Number of tokens of a prompt beyond a boundary, and the boundaries that short prompts are added for.
_BEYOND, _SHORT = 7, 1024
# By the type of the weights: the largest gap, as a share of the largest logit, between the logit of the token that a
# runtime wrote and the largest one. Runtimes sum in another order; types of 16 and 8 bits round weights.
TOLERANCES: Mapping[str, float] = {"f32": 1e-3, "f16": 2e-2, "bf16": 5e-2, "q8_0": 5e-2}
# Gaps that the rounding of the model's own arithmetic causes.
_TOLERANCES_OF_MODELS = {torch.float16: TOLERANCES["f16"], torch.bfloat16: TOLERANCES["bf16"]}


@dataclass(frozen=True)
class TokenCheck:
    """Comparison of the tokens of a runtime with a model's own choices.

    Attributes:
        num_tokens: Number of tokens that the runtime wrote.
        num_equal: Number of those that the model would have written after the same text.
        largest_gap: Largest gap between the logit of a written token and the largest logit, as a share of the latter.
    """

    num_tokens: int
    num_equal: int
    largest_gap: float

    def describe(self, runtime: str) -> str:
        """Return the comparison as a sentence."""
        if self.num_equal == self.num_tokens:
            return f"Checked in {runtime}: all {self.num_tokens} greedy tokens are the model's own"
        return (
            f"Checked in {runtime}: {self.num_equal} of {self.num_tokens} greedy tokens are the model's own; the "
            f"logits of the others are within {100 * self.largest_gap:.2g} % of the largest"
        )


def make_prompts(
    model: PreTrainedModel, *, context: int | None = None, without: Sequence[int] = ()
) -> tuple[list[list[int]], int]:
    """Return prompts of random tokens without special and given ones, and the number of tokens to write after each.

    Some go past each length at which the model computes otherwise, such as the end of a sliding window.
    """
    config = model.config
    context = context or getattr(config, "max_position_embeddings", None) or 2 * NUM_NEW_TOKENS
    context = min(context, LONGEST_CHECKED)
    named = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    special = {*without, *(token for value in named for token in (value if isinstance(value, list) else [value]))}
    allowed = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    generator = torch.Generator().manual_seed(0)
    lengths = [min(length, max(1, context // 2)) for length in _LENGTHS]
    # Prompts end past each boundary and, where there is room, before it, so that the written tokens pass it.
    room = min(NUM_NEW_TOKENS, context // 2)
    for boundary in boundaries(config):
        past, towards = min(boundary + _BEYOND, context - room), boundary - room // 2
        lengths += [past] if past > max(lengths) else []
        lengths += [towards] if 0 < towards < past and boundary <= _SHORT else []
    prompts = [allowed[torch.randint(len(allowed), (length,), generator=generator)].tolist() for length in lengths]
    return prompts, min(NUM_NEW_TOKENS, context - max(lengths))


@torch.inference_mode()
def check_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    written: Sequence[Sequence[int]],
    *,
    never_written: Sequence[int] = (),
    tolerance: float | None,
    runtime: str,
) -> TokenCheck:
    """Compare the tokens that a runtime wrote with the model's own choice after the same text.

    Two logits may be nearly equal, so that another order of summation decides for the other token; all later tokens are
    then compared after that one. ``tolerance`` is the largest gap of logits, as a share of the largest logit; None for
    no limit. Of a model in 16 bits, the rounding of its own arithmetic is allowed, too. ``never_written`` are tokens
    that the runtime leaves out, such as those that end a text.
    """
    # The logits of all tokens take memory.
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    num_tokens = num_equal = 0
    largest_gap = 0.0
    for prompt, tokens in zip(prompts, written, strict=True):
        text = torch.tensor([[*prompt, *tokens]], device=model.device)
        options = {"logits_to_keep": len(tokens) + 1} if keeps else {}
        logits: Tensor = model(input_ids=text, use_cache=False, **options).logits[0, -len(tokens) - 1 : -1].double()
        chosen = logits.gather(-1, text[0, len(prompt) :].unsqueeze(-1)).squeeze(-1)
        logits[:, list(never_written)] = 0.0 - logits.abs().amax(-1, keepdim=True)
        gaps = (logits.amax(-1) - chosen).clamp_min(0.0) / logits.abs().amax(-1).clamp_min(1e-30)
        num_tokens += len(tokens)
        num_equal += int((gaps == 0).sum())
        gap = float(gaps.max())
        # A gap that is NaN stays the largest.
        largest_gap = largest_gap if gap <= largest_gap else gap
    most = math.inf if tolerance is None else max(tolerance, _TOLERANCES_OF_MODELS.get(model.dtype, 0.0))
    if not largest_gap <= most:
        raise OperationError(
            f"{runtime} writes other tokens than the model: only {num_equal} of {num_tokens} are the model's own, and "
            f"the logits of the others are up to {100 * largest_gap:.2g} % below the largest. Nothing was written."
        )
    return TokenCheck(num_tokens, num_equal, largest_gap)
