"""Batches of a model's own processor, where that is on this machine, and its dummy inputs."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel

from gating.proof.inputs.sizes import Variant, accepted_arguments

__all__ = ["own_batches"]

_SIDE = 64
_SAMPLES = 16_000


def own_batches(model: PreTrainedModel) -> Iterator[Variant]:
    """Yield the batch of a model's processor for a random image, sound and text, then the model's dummy inputs.

    Nothing is downloaded: the processor is taken from the model's folder, or from the cache of the hub.
    """
    accepted = accepted_arguments(model.forward)
    for batch in (_processed(model), _dummy(model)):
        made = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name in accepted}
        if made:
            yield made


def _processed(model: PreTrainedModel) -> Variant:
    if not model.name_or_path:
        return {}
    try:
        processor: Any = AutoProcessor.from_pretrained(model.name_or_path, local_files_only=True)
        takes = inspect.signature(processor.__call__).parameters
        generator = np.random.default_rng(0)
        given: dict[str, Any] = {}
        if "images" in takes:
            given["images"] = generator.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        if "audio" in takes:
            given["audio"] = generator.standard_normal(_SAMPLES).astype(np.float32)
        if "text" in takes:
            places = [getattr(processor, name, None) for name in ("image_token", "audio_token")]
            given["text"] = " ".join([*(place for place in places if isinstance(place, str)), "one two three"])
        return dict(processor(**given, return_tensors="pt"))
    except Exception:  # Each processor asks for inputs of its own kind.
        return {}


def _dummy(model: PreTrainedModel) -> Variant:
    try:
        return dict(model.dummy_inputs)
    except Exception:
        return {}
