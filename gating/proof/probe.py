"""A small batch for any model, made for it or given."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.proof.batches import candidate_batches
from gating.proof.conditions import check_has_values, part_of_transformers
from gating.proof.outputs import OUT_OF_MEMORY, evaluating, forward_outputs

__all__ = ["make_probe", "run_probe"]

Batch = TypeVar("Batch", bound=Mapping[str, Tensor])
_TEXTS = {"input_ids", "decoder_input_ids"}
# Suffix of classes that pool the state of one token.
_CLASSIFIER = "ForSequenceClassification"


def make_probe(model: nn.Module, *, batch_size: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Make a random input that a transformers model accepts, from its signature and configuration.

    Models of several kinds of input, such as texts and images, get all of them, with placeholder tokens in the text
    where the model asks for them. Of several forms that an input may have, the first that the model runs on is taken.
    An example has ``length`` tokens, or frames of sound.

    Raises:
        InputError: The inputs of the model are unknown, its configuration lacks their sizes, or it runs on none of the
            batches that were made.
    """
    batches = _candidates(model, batch_size=batch_size, length=length)
    first = next(batches, {})
    if first and first.keys() <= _TEXTS:
        return first  # Texts have one form, so that the model need not run.
    return dict(_first_to_run(model, chain([first] if first else [], batches))[0])


def run_probe(model: nn.Module, probe: Mapping[str, Tensor] | None = None) -> tuple[Mapping[str, Tensor], list[Tensor]]:
    """Run a model on a batch, or on a random one that is made for it; return the batch, and its outputs.

    Raises:
        InputError: No batch can be made, or the model does not run on it, or has no weights yet.
    """
    if not isinstance(probe, Mapping | None):
        raise _unusable(model, f"takes no probe of type {type(probe).__name__}")
    check_has_values(model)
    return _first_to_run(model, _candidates(model) if probe is None else iter([probe]))


def _candidates(model: nn.Module, *, batch_size: int = 2, length: int = 12) -> Iterator[dict[str, Tensor]]:
    """Yield the batches that are made for a model, on its device."""
    if not isinstance(model, PreTrainedModel):
        part = part_of_transformers(model)
        raise _unusable(model, "is no model of transformers", f"change its part {part}, or " if part else "")
    if getattr(model.config, "pad_token_id", 0) is None and type(model).__name__.endswith(_CLASSIFIER):
        # Decoders pool the last token before the padding, and refuse batches without a padding token.
        batch_size = 1
    batches = candidate_batches(model, batch_size=batch_size, length=length)
    try:
        while True:
            # Not around the whole: who keeps an unfinished generator would get the modes back at any time.
            with evaluating(model), torch.random.fork_rng():
                batch = next(batches, None)
            if batch is None:
                return
            yield {name: tensor.to(model.device) for name, tensor in batch.items()}
    except (InputError, *OUT_OF_MEMORY):
        raise
    except Exception as error:  # Each family lacks sizes in its own way.
        raise _unusable(model, f"has a configuration without the sizes of its input ({_reason(error)})") from error


def _first_to_run(model: nn.Module, batches: Iterator[Batch]) -> tuple[Batch, list[Tensor]]:
    """Return the first batch that a model runs on, with its outputs; raise ``InputError`` if there is none."""
    problem = "has no inputs that a batch can be made for"
    first: Exception | None = None
    for batch in batches:
        try:
            outputs = forward_outputs(model, batch)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # Models raise errors of all kinds on unsuitable inputs.
            if first is None:
                first, problem = error, f"does not run on {', '.join(batch)} ({_reason(error)})"
            continue
        if outputs:
            return batch, outputs
        if first is None:
            problem = f"returns no tensors for {', '.join(batch)}"
    raise _unusable(model, problem) from first


def _unusable(model: nn.Module, why: str, remedy: str = "") -> ValueError:
    name = type(model).__name__
    return InputError(
        f"{name} {why}: {remedy}pass probe={{argument name: tensor, ...}}, one batch that the model takes."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".: ")
