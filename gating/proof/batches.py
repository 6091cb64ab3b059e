"""Candidate batches for a model, the most complete first."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.proof.images import image_variants, video_variants
from gating.proof.input_sizes import (
    PLACEHOLDERS,
    Request,
    Variant,
    accepted_arguments,
    make_tokens,
    required_arguments,
    splice,
)
from gating.proof.other_inputs import OTHERS, spectrogram_variants, waveform_variants

__all__ = ["candidate_batches"]

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


def candidate_batches(model: PreTrainedModel, *, batch_size: int, length: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches that a model may take, those that reach most of its towers first.

    The last one is that of its dummy inputs. Where text has placeholder tokens for images, videos or sound, methods of
    the model such as ``get_image_features`` are run to count them.

    Raises:
        InputError: The model needs an argument that no input can be made for.
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
