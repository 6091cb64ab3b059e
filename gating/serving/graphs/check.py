"""Check of an exported graph: its outputs on padded batches of several sizes, or the tokens that it writes."""

import math
from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import OperationError
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.serving.contexts import checked_context
from gating.serving.exporting import special_tokens, writes_text
from gating.serving.graphs.batches import batches_to_check, real_positions
from gating.serving.graphs.runtime import GraphModel
from gating.serving.greedy import TOLERANCES, check_tokens, make_prompts

__all__ = ["check_graph", "named_outputs"]

# Largest relative difference: runtimes sum in another order and fuse operations.
_TOLERANCE = 1e-4
# Rows of a padded batch take the memory of the longest one.
_LONGEST_OF_BATCH = 256


def check_graph(
    model: PreTrainedModel, graph: GraphModel, processor: object, runtime: str, *, int8: bool = False
) -> tuple[float | None, list[str]]:
    """Compare a graph with a model: a decoder token by token, alone and in a padded batch, others on padded batches.

    With ``int8``, weights are 8-bit integers: the difference is reported, and only numbers that are not finite fail.

    Returns:
        The largest relative difference, None for a decoder, and sentences for people.

    Raises:
        RuntimeError: The results differ.
    """
    if writes_text(model):
        return None, _check_tokens(model, graph, processor, f"{runtime} with 8-bit weights" if int8 else runtime, int8)
    difference, lengths, sides, number = 0.0, list[int](), set[str](), 0
    for batch, side in batches_to_check(model, list(graph.inputs), processor):
        number += 1
        outputs = forward_outputs(model, batch), list(named_outputs(graph(**batch)).values())
        real = [[real_positions(output, batch) for output in some] for some in outputs]
        difference = max(difference, max_relative_difference(*real))
        lengths += [batch["input_ids"].shape[1]] if "input_ids" in batch else []
        sides |= set() if side is None else {side}
    if math.isinf(difference) or not (int8 or difference <= _TOLERANCE):
        raise OperationError(
            f"The outputs in {runtime} differ from the model's by {difference:.1e}, more than rounding. "
            "Nothing was written."
        )
    if int8:
        return difference, [f"With 8-bit weights, its outputs on random batches differ by {difference:.1e}"]
    named = ", ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in graph.inputs.items())
    tokens = f" of {min(lengths)} to {max(lengths):,} tokens" if lengths else ""
    padded = f", padded {' and '.join(sorted(sides))}" * bool(sides)
    checked = f"Checked in {runtime} on {number} batches{tokens}{padded}"
    return difference, [f"Its inputs are {named}", f"{checked}: its outputs differ by {difference:.1e}"]


def _check_tokens(model: PreTrainedModel, graph: GraphModel, processor: object, runtime: str, int8: bool) -> list[str]:
    pad = (*special_tokens("pad", model, processor), 0)[0]
    prompts, count = make_prompts(model, context=checked_context(model.config)[0])
    rows = [prompt for prompt in prompts if len(prompt) <= _LONGEST_OF_BATCH]
    alone = [graph.write([prompt], count, pad_token_id=pad)[0] for prompt in prompts]
    together = graph.write(rows, count, pad_token_id=pad)
    tolerance = None if int8 else TOLERANCES["f32"]
    return [
        check_tokens(model, texts, written, tolerance=tolerance, runtime=runtime).describe(place)
        for texts, written, place in (
            (prompts, alone, runtime),
            (rows, together, f"a batch of {len(rows)} prompts, padded on the left"),
        )
    ]


def named_outputs(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the floating-point outputs of a graph by name."""
    return {name: tensor for name, tensor in outputs.items() if tensor.is_floating_point()}
