"""Random tokens for a model, with places for the features of its other inputs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gating.proof.inputs.sizes import Request, find_setting

__all__ = ["PLACEHOLDERS", "make_tokens", "splice"]

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
    vocabulary = find_setting(config, "vocab_size") or request.setting("vocab_size", "text_vocab_size") or _UNICODE
    tokens = request.integers(min(3, vocabulary - 1), vocabulary, request.batch_size, length)
    for special in _special_tokens(request):
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


def _special_tokens(request: Request) -> set[int]:
    """Return the tokens that stand for other inputs."""
    names = [name for names, _ in PLACEHOLDERS.values() for name in names]
    return {value for name in names if isinstance(value := getattr(request.model.config, name, None), int)}


def splice(tokens: Tensor, placeholders: Mapping[int, tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Insert runs of placeholder tokens, of a number and a type each, behind the first token of each example.

    Returns:
        Tokens and token types, ``[batch_size, new_length]``.

    Example:
        >>> splice(torch.tensor([[5, 6]]), {9: (2, 1)})
        (tensor([[5, 9, 9, 6]]), tensor([[0, 1, 1, 0]]))
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
