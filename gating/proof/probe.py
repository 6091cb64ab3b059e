"""A small batch for any model, given or made for it; of those made, the most complete that the model runs on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice, product
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.proof.conditions import check_has_values, part_of_transformers
from gating.proof.input_sizes import (
    PLACEHOLDERS,
    Request,
    Variant,
    accepted_arguments,
    make_tokens,
    required_arguments,
    splice,
)
from gating.proof.media import OTHERS, image_variants, spectrogram_variants, video_variants, waveform_variants
from gating.proof.outputs import OUT_OF_MEMORY, evaluating, forward_outputs

Batch = TypeVar("Batch", bound=Mapping[str, Tensor])
_TEXTS = {"input_ids", "decoder_input_ids"}
# Suffix of classes that pool the state of one token.
_CLASSIFIER = "ForSequenceClassification"
_Makers = Callable[[Request, str], Iterator[Variant]]
# Arguments with inputs other than text, their kind and the forms that they may have.
_MEDIA: dict[str, tuple[str, _Makers]] = {
    "pixel_values": ("image", image_variants),
    "hidden_states": ("image", image_variants),
    "flattened_patches": ("image", image_variants),
    "pixel_values_videos": ("video", video_variants),
    "input_features": ("audio", spectrogram_variants),
    "audio_mel": ("audio", spectrogram_variants),
    "input_values": ("audio", waveform_variants),
}
# Attempts for each set of inputs.
_MOST = 16


def make_probe(model: nn.Module, *, batch_size: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Make a random input that a transformers model accepts, from its signature and configuration.

    Models of several kinds of input, such as texts and images, get all of them, with placeholder tokens in the text
    where the model asks for them. Of several forms that an input may have, the first that the model runs on is taken;
    without any, it raises ``InputError``. An example has ``length`` tokens, or frames of sound.
    """
    batches = _candidates(model, batch_size=batch_size, length=length)
    first = next(batches, {})
    if first and first.keys() <= _TEXTS:
        return first  # Texts have one form, so that the model need not run.
    return dict(_first_to_run(model, chain([first] if first else [], batches))[0])


def run_probe(model: nn.Module, probe: Mapping[str, Tensor] | None = None) -> tuple[Mapping[str, Tensor], list[Tensor]]:
    """Run a model on a batch, or on a random one that is made for it; return the batch, and its outputs.

    A model that does not run, or has no weights yet, is an ``InputError``.
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
    batches = _candidate_batches(model, batch_size=batch_size, length=length)
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


def _candidate_batches(model: PreTrainedModel, *, batch_size: int, length: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches that a model may take, those that reach most of its towers first.

    The last one is that of its dummy inputs. Where text has placeholder tokens for images, videos or sound, methods of
    the model such as ``get_image_features`` are run to count them.
    """
    request = Request(model, batch_size, length, torch.Generator().manual_seed(0))
    needed, missing, is_found = required_arguments(model.forward), "", False
    for media in _sets_of_media(request):
        for batch in islice(_batches(request, media), _MOST):
            lacking = sorted(needed - batch.keys())
            if batch and not lacking:
                is_found = True
                yield batch
            elif lacking:
                missing = missing or lacking[0]
    for batch in _dummy(model):
        if batch and needed <= batch.keys():
            is_found = True
            yield batch
    if missing and not is_found:
        raise InputError(
            f"{type(model).__name__} takes {missing}, for which no input can be made from its configuration: pass "
            "probe={argument name: tensor, ...}, one batch that the model takes."
        )


def _sets_of_media(request: Request) -> Iterator[tuple[str, ...]]:
    """Yield sets of arguments with inputs other than text, the largest first; each has those that are required."""
    model = request.model
    needed = {name for name in _MEDIA if name in required_arguments(model.forward) or name == model.main_input_name}
    possible = [name for name in _MEDIA if name in request.accepted and (name != "hidden_states" or name in needed)]
    # A video goes through the same tower as an image, in most models.
    has_tower = any("video_tower" in name for name, _ in model.named_modules())
    chosen = [name for name in possible if name != "pixel_values_videos" or "pixel_values" not in possible or has_tower]
    sets = [tuple(chosen)]
    if len(chosen) > 1:
        sets += [tuple(name for name in chosen if name != left_out) for left_out in chosen]
    sets.append(tuple(name for name in possible if name in needed))
    for one in dict.fromkeys(sets):
        if needed <= set(one):
            yield one


def _batches(request: Request, media: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    model = request.model
    others = _others(request)
    forms = [_fitting(request, name, others) for name in media]
    for variants in product(*forms):
        batch: Variant = {name: tensor for variant in variants for name, tensor in variant.items()}
        batch |= others
        if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in request.accepted:
            batch["decoder_input_ids"] = make_tokens(request, decoder=True)
            if not media and "input_ids" in request.accepted:
                batch["input_ids"] = make_tokens(request)
            elif "input_ids" in request.accepted and model.main_input_name == "input_ids":
                batch |= _text(request, media, batch)
        elif "input_ids" in request.accepted and not ({"states", "past_values"} & batch.keys()):
            batch |= _text(request, media, batch)
        yield {name: batch[name] for name in sorted(batch)}


def _others(request: Request) -> Variant:
    needed = required_arguments(request.model.forward)
    made: Variant = {}
    for name, maker in OTHERS.items():
        is_wanted = name in needed or name in ("bbox", request.model.main_input_name)
        if name in request.accepted and is_wanted:
            made |= maker(request, name)
    return made


def _text(request: Request, media: tuple[str, ...], batch: Variant) -> Variant:
    """Return tokens, with placeholders for the features of the other inputs where the model replaces them."""
    tokens = make_tokens(request)
    placeholders = {}
    for kind in dict.fromkeys(_MEDIA[name][0] for name in media):
        settings, token_type = PLACEHOLDERS[kind]
        token = next((t for name in settings if (t := getattr(request.model.config, name, None)) is not None), None)
        has_mask = kind == "image" and "image_embeds_position_mask" in request.accepted
        number = _count_features(request.model, kind, batch) if isinstance(token, int) or has_mask else None
        if isinstance(token, int) and number:
            placeholders[token] = (number // request.batch_size, token_type)
        elif isinstance(token, int) and kind == "audio" and _features_method(request.model, kind) is None:
            # One for all features of a sound, which the model puts in its place.
            placeholders[token] = (1, token_type)
            batch["attention_mask"] = torch.ones(request.batch_size, tokens.shape[1] + 1, dtype=torch.long)
        elif number and has_mask:
            # A mask names the tokens that features of an image replace.
            spliced, types = splice(tokens, {int(tokens[0, 0]): (number // request.batch_size, 1)})
            return {"input_ids": spliced, "image_embeds_position_mask": types}
    if not placeholders:
        return {"input_ids": tokens}
    spliced, types = splice(tokens, placeholders)
    made: Variant = {"input_ids": spliced}
    if "mm_token_type_ids" in request.accepted:
        made["mm_token_type_ids"] = types
    return made


def _fitting(request: Request, name: str, others: Variant) -> list[Variant]:
    """Return the candidate shapes that ``get_*_features`` of a model accepts, or all if none is accepted."""
    kind, make_variants = _MEDIA[name]
    variants = list(make_variants(request, name))
    if _features_method(request.model, kind) is None:
        return variants
    return [one for one in variants if _count_features(request.model, kind, {**others, **one})] or variants


def _features_method(model: Any, kind: str) -> Any:
    name = f"get_{kind}_features"
    own, inner = getattr(model, name, None), getattr(model.base_model, name, None)
    # The method of some models passes on any arguments to that of their base.
    return inner if inner is not None and (own is None or not accepted_arguments(own)) else own


@torch.no_grad()
def _count_features(model: PreTrainedModel, kind: str, batch: Variant) -> int | None:
    """Return the number of vectors that a model makes of its images, videos or sounds; None if it fails."""
    method = _features_method(model, kind)
    if method is None:
        return None
    # The method of a model may pass further arguments on to that of its base.
    inner = getattr(model.base_model, f"get_{kind}_features", method)
    accepted = accepted_arguments(method) | accepted_arguments(inner)
    try:
        result = method(**{name: value.to(model.device) for name, value in batch.items() if name in accepted})
    except Exception:  # Models raise errors of all kinds on unsuitable inputs.
        return None
    vectors = getattr(result, "pooler_output", None)
    return _count_vectors(getattr(result, "last_hidden_state", result) if vectors is None else vectors)


def _count_vectors(features: Any) -> int | None:
    if isinstance(features, Tensor):
        return int(features.shape[:-1].numel())
    if isinstance(features, (list, tuple)):
        counts = [_count_vectors(one) for one in features]
        return sum(count for count in counts if count)
    return None


def _dummy(model: PreTrainedModel) -> Iterator[Variant]:
    """Yield the dummy inputs of a model, if it has some."""
    accepted = accepted_arguments(model.forward)
    with suppress(Exception):  # Some are made from settings that a configuration lacks.
        made = {name: value for name, value in model.dummy_inputs.items() if isinstance(value, Tensor)}
        yield {name: value for name, value in made.items() if name in accepted}
