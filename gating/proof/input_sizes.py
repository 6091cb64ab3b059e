"""Sizes of a model's inputs, from its configuration and those of its towers, and tokens of these sizes."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

# Inputs by argument name.
Variant = dict[str, Tensor]


@dataclass(frozen=True)
class Request:
    """The model that inputs are made for, and their sizes; the length is in tokens, or frames of sound."""

    model: PreTrainedModel
    batch_size: int
    length: int
    generator: torch.Generator

    @property
    def accepted(self) -> set[str]:
        """Names of the arguments of ``forward``."""
        return accepted_arguments(self.model.forward)

    def setting(self, *names: str, tower: str = "", config: PreTrainedConfig | None = None) -> Any:
        """Return the first of some settings that the model's configuration, or one inside it, has; None without one.

        A configuration inside whose name has the ``tower`` in it is asked first.
        """
        levels = list(nested_configs(self.model.config if config is None else config))
        ordered = [one for path, one in levels if tower and tower in path] + [one for _, one in levels]
        values = (getattr(one, name, None) for one in ordered for name in names)
        return next((value for value in values if value is not None), None)

    def random(self, *shape: int) -> Tensor:
        """Return normally distributed values."""
        return torch.randn(*shape, generator=self.generator)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return whole numbers from ``low`` to ``high - 1``."""
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator)


def accepted_arguments(function: Any) -> set[str]:
    """Return the names of a function's arguments, without those for any others."""
    return {name for name, one in inspect.signature(function).parameters.items() if one.kind not in _ANY}


def required_arguments(function: Any) -> set[str]:
    """Return the names of a function's arguments without a default."""
    parameters = inspect.signature(function).parameters.items()
    return {name for name, one in parameters if one.default is one.empty and one.kind not in _ANY}


def nested_configs(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    """Yield a configuration and those in it, with the dotted path before the names of their settings."""
    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from nested_configs(value, f"{path}{name}.")


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


# For each kind of input, the settings that name its placeholder token, and the number of its token type.
PLACEHOLDERS: dict[str, tuple[tuple[str, ...], int]] = {
    "image": (("image_token_id", "image_token_index"), 1),
    "video": (("video_token_id", "video_token_index"), 2),
    "audio": (("audio_token_id", "audio_token_index"), 3),
}
_UNICODE = 1000


def make_tokens(request: Request, *, decoder: bool = False) -> Tensor:
    """Return random tokens, ``[batch_size, length]``, without special ones except an end of text."""
    config = request.model.config.get_text_config(decoder=decoder)
    if config is request.model.config:
        # That of the decoder in models without another text, whose own settings may be those of its defaults.
        config = getattr(config, "text_config", None) or config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions")]
    positions = min([limit for limit in limits if isinstance(limit, int) and limit] or [request.length + 4])
    # Some families number positions from the padding index on.
    length = min(request.length, max(1, positions - 4))
    # Models of characters have no vocabulary.
    vocabulary = (
        request.setting("vocab_size", config=config) or request.setting("vocab_size", "text_vocab_size") or _UNICODE
    )
    tokens = request.integers(min(3, vocabulary - 1), vocabulary, request.batch_size, length)
    for name in (name for names, _ in PLACEHOLDERS.values() for name in names):
        # Tokens that stand for other inputs.
        if isinstance(special := getattr(request.model.config, name, None), int):
            tokens[tokens == special] = 0
    question = getattr(config, "question_token_id", None)
    if isinstance(question, int):
        tokens[:, 1] = question
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < vocabulary:
        # One end of text in each example: classifiers of some families require equal numbers.
        tokens[tokens == end] = 0
        tokens[:, -1] = end
    return tokens


def splice(tokens: Tensor, placeholders: Mapping[int, tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return tokens and token types, ``[batch_size, new_length]``, with placeholders behind each first token.

    Each placeholder token has the length of its run and its token type.
    """
    rows = len(tokens)
    parts, types = [tokens[:, :1]], [torch.zeros(rows, 1, dtype=torch.long)]
    for index, (token, (number, token_type)) in enumerate(placeholders.items()):
        if index:
            # Runs of different inputs do not touch.
            parts.append(tokens[:, 1:2])
            types.append(torch.zeros(rows, 1, dtype=torch.long))
        parts.append(torch.full((rows, number), token))
        types.append(torch.full((rows, number), token_type))
    parts.append(tokens[:, 1:])
    types.append(torch.zeros(rows, tokens.shape[1] - 1, dtype=torch.long))
    return torch.cat(parts, 1), torch.cat(types, 1)
