"""Check of an exported graph: its outputs on padded batches of several sizes, or the tokens that it writes.

The inputs of a model, and the batch that an export is traced with, are made here, too.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from gating.errors import OperationError
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.serving.contexts import LONGEST_CHECKED, boundaries, checked_context
from gating.serving.exporting import special_tokens, writes_text
from gating.serving.graphs.runtime import GraphModel
from gating.serving.greedy import TOLERANCES, check_tokens, make_prompts

Side = Literal["left", "right"]

_MASKS = ("attention_mask", "decoder_attention_mask")
# Lengths of the rows of each batch, different from each other so that axes cannot be mixed up.
_TRACED = (12, 7)
_CHECKED = ((9, 6, 1), (9,), (6,), (1,))
# Attention takes memory by the square of the length.
_LONGEST_CHECKED = 1024
# Number of tokens beyond a length at which the model computes otherwise.
_BEYOND = 7
# Largest relative difference: runtimes sum in another order and fuse operations.
_TOLERANCE = 1e-4
# Rows of a padded batch take the memory of the longest one.
_LONGEST_OF_BATCH = 256


def check_graph(
    model: PreTrainedModel, graph: GraphModel, processor: object, runtime: str, *, int8: bool = False
) -> tuple[float | None, list[str]]:
    """Compare a graph with a model: a decoder token by token, alone and in a padded batch, others on padded batches.

    With ``int8``, weights are 8-bit integers: the difference is reported, and only numbers that are not finite fail.
    Return the largest relative difference, None for a decoder, and sentences for people.
    """
    if writes_text(model):
        return None, _check_tokens(model, graph, processor, f"{runtime} with 8-bit weights" if int8 else runtime, int8)
    difference, lengths, sides, number = 0.0, list[int](), set[str](), 0
    for batch, side in batches_to_check(model, list(graph.inputs), processor):
        number += 1
        found = [tensor for tensor in graph(**batch).values() if tensor.is_floating_point()]
        outputs = forward_outputs(model, batch), found
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


def input_names(model: PreTrainedModel, processor: object = None) -> list[str]:
    """Return the names of a model's inputs that its processor makes, and of those that it needs.

    Without a processor, the inputs are those of the family's usual tokenizer, image processor or feature extractor.
    """
    accepts = set(inspect.signature(model.forward).parameters)
    needed = set(make_probe(model))
    if type(model).__name__.endswith(("ForSequenceClassification", "ForQuestionAnswering")):
        needed -= {"decoder_input_ids"}  # Derived from the encoder's tokens.
    made = _usually_made(model, needed) if processor is None else set(getattr(processor, "model_input_names", ()))
    if "decoder_input_ids" in needed:
        made |= {"decoder_attention_mask"} & accepts
    takes = needed | ({*_MASKS, "token_type_ids"} & accepts)
    return sorted(needed | (made & takes), key=lambda name: (name.startswith("decoder_"), name not in needed, name))


def _usually_made(model: PreTrainedModel, needed: set[str]) -> set[str]:
    config = model.config
    if "input_ids" in needed:
        types = getattr(config.get_text_config(), "type_vocab_size", None) or 0
        return {"attention_mask"} | ({"token_type_ids"} if types > 1 else set())
    # Whisper and audio models with a norm over time have no mask: padding is part of their input.
    reads_padding = hasattr(config, "max_source_positions") or getattr(config, "feat_extract_norm", None) == "group"
    return set() if "pixel_values" in needed or reads_padding else {"attention_mask"}


def batch_to_trace(model: PreTrainedModel, names: Sequence[str], processor: object = None) -> dict[str, Tensor]:
    """Return the batch to trace an export with."""
    lengths = _shortened(_TRACED[: _most_rows(model)], _longest(model, processor))
    return _make_batch(model, names, lengths, _pad_token_id(model, processor), "right")


def batches_to_check(
    model: PreTrainedModel, names: Sequence[str], processor: object = None
) -> Iterator[tuple[dict[str, Tensor], Side | None]]:
    """Yield batches of the named inputs in different sizes and lengths, from 1 up to the model's longest.

    Rows of different lengths are padded on either side, which comes with the batch if the model can see it.
    """
    pad_token_id = _pad_token_id(model, processor)
    pads, longest, most = any(name in names for name in _MASKS), _longest(model, processor), _most_rows(model)
    candidates = [_TRACED, *_CHECKED, (longest,), _TRACED[:1]]
    # Texts go past each boundary, also past one that is beyond the longest text of other checks.
    furthest = _longest(model, processor, most=LONGEST_CHECKED)
    candidates += [(min(length + _BEYOND, furthest),) for length in boundaries(model.config) if length < furthest]
    for lengths in (_shortened(lengths, furthest) for lengths in candidates if len(lengths) <= most):
        sides: tuple[Side, ...] = ("right", "left") if pads and len(lengths) > 1 else ("right",)
        for side in sides:
            batch = _make_batch(model, names, lengths, pad_token_id, side)
            yield batch, side if len(sides) > 1 else None


def _shortened(lengths: Sequence[int], longest: int) -> list[int]:
    return [min(length, longest) for length in lengths]


def _most_rows(model: PreTrainedModel) -> int:
    """Return the largest batch size: 1 for decoders without a padding token, which reject batches."""
    rows = len(next(iter(make_probe(model, batch_size=2).values())))
    return rows if rows == 1 else max(map(len, _CHECKED))


def _pad_token_id(model: PreTrainedModel, processor: object) -> int:
    known = getattr(getattr(processor, "tokenizer", processor), "pad_token_id", None)
    return known if known is not None else getattr(model.config.get_text_config(), "pad_token_id", None) or 0


def _longest(model: PreTrainedModel, processor: object, *, most: int = _LONGEST_CHECKED) -> int:
    """Return the largest number of tokens of a batch, up to a limit for the check."""
    of_processor = getattr(getattr(processor, "tokenizer", processor), "model_max_length", None)
    most = min(limit for limit in (of_processor, most, checked_context(model.config)[0]) if limit is not None)
    # A probe stays a little below the largest number of positions.
    ids = make_probe(model, batch_size=1, length=most).get("input_ids")
    return most if ids is None else ids.shape[1]


def _make_batch(
    model: PreTrainedModel, names: Sequence[str], lengths: Sequence[int], pad_token_id: int, side: Side
) -> dict[str, Tensor]:
    """Return a batch of padded random rows; without a mask, all rows have the largest length."""
    if not any(name in names for name in _MASKS):
        lengths = [max(lengths)] * len(lengths)
    rows = [_make_row(model, names, number, lengths) for number in range(len(lengths))]
    return {
        name: pad_sequence(
            [row[name] for row in rows],
            batch_first=True,
            padding_value=pad_token_id if name.endswith("input_ids") else 0,
            padding_side=side,
        )
        for name in names
    }


def _make_row(model: PreTrainedModel, names: Sequence[str], number: int, lengths: Sequence[int]) -> dict[str, Tensor]:
    row: dict[str, Tensor] = {}
    # Encoder and decoder get different lengths.
    for prefix, length in (("decoder_", max(1, lengths[-1 - number] - 2)), ("", lengths[number])):
        probe = make_probe(model, batch_size=len(lengths), length=length)
        own = [name for name in names if name in probe and name.startswith("decoder_") == bool(prefix)]
        row |= {name: probe[name][number] for name in own}
        if f"{prefix}attention_mask" in names:
            # Tokenizers make masks of int64, feature extractors of int32.
            dtype = torch.int64 if f"{prefix}input_ids" in row else torch.int32
            row[f"{prefix}attention_mask"] = torch.ones(_width(model, row, prefix), dtype=dtype)
    if "token_type_ids" in names:
        types, width = getattr(model.config.get_text_config(), "type_vocab_size", 2), _width(model, row, "")
        row["token_type_ids"] = (torch.arange(width) >= width // 2).long().clamp(max=types - 1)
    return {name: tensor.to(model.device) for name, tensor in row.items()}


def _width(model: PreTrainedModel, row: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of tokens, samples or frames that a mask covers."""
    ids = row.get(f"{prefix}input_ids")
    values = ids if ids is not None else row[model.main_input_name]
    return values.shape[-1 if hasattr(model.config, "num_mel_bins") else 0]


def real_positions(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return an output, ``[batch, length, ...]`` with a vector for each token, without its padding positions."""
    for name in _MASKS:
        if name in batch and output.shape[:2] == batch[name].shape:
            return output[batch[name].bool()]
    return output
