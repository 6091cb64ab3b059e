"""Where the attention heads of a model are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .families import find_spec
from .spec import AttentionSpec

__all__ = ["AttentionBlock", "find_attention_blocks", "get_by_path", "in_features"]


@dataclass(frozen=True)
class AttentionBlock:
    """One attention module of a model with its projections.

    Attributes:
        name: Dotted name of the attention module, relative to the model without its task head.
        layer_idx: Number of the layer the block belongs to.
        module: The attention module.
        parent: The module that holds it.
        spec: How the class lays out its heads.
        num_heads: Number of (query) heads that are there now.
        num_key_value_heads: Number of key-value heads; smaller than ``num_heads`` with grouped queries.
        head_dim: Width of one head.
        head_ids: For each head that is there now, the number it had in the model before any removal.
        num_heads_before: Number of heads before any removal.
    """

    name: str
    layer_idx: int
    module: nn.Module
    parent: nn.Module
    spec: AttentionSpec
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    head_ids: tuple[int, ...]
    num_heads_before: int

    @property
    def is_cross_attention(self) -> bool:
        """Whether keys and values come from another sequence."""
        return self.spec.is_cross_attention

    @property
    def output_projection(self) -> nn.Module:
        """The layer that mixes the heads; its input is ``[..., num_heads * head_dim]``, head-major."""
        holder, attribute = self.locate(self.spec.output_projection)
        module = getattr(holder, attribute)
        assert isinstance(module, nn.Module)
        return module

    def locate(self, path: str) -> tuple[nn.Module, str]:
        """Return the module that holds the submodule at a path of the spec, and the attribute's name there."""
        start = self.parent if path.startswith("^") else self.module
        *way, attribute = path.removeprefix("^").split(".")
        return get_by_path(start, way), attribute


def find_attention_blocks(model: nn.Module) -> list[AttentionBlock]:
    """Find the attention blocks of a model, in the order of its modules.

    Args:
        model: A transformers model, or any module that holds attention classes of the registry.

    Returns:
        One entry for each attention module whose class, or a class it inherits from, is registered.

    Raises:
        ValueError: No attention class of the model is registered.
    """
    blocks = list(_walk(model))
    if not blocks:
        seen = sorted({type(m).__name__ for m in model.modules() if re.search("attention", type(m).__name__, re.I)})
        raise ValueError(
            f"No attention block of {type(model).__name__} is known: its attention classes are "
            f"{', '.join(seen) or 'none by name'}. Describe one with gating.register_attention_spec("
            f"{(seen or ['MyAttention'])[0]!r}, gating.AttentionSpec(projections=..., output_projection=...))."
        )
    return blocks


def get_by_path(start: nn.Module, way: list[str]) -> nn.Module:
    """Follow attribute names from a module to a submodule."""
    return start.get_submodule(".".join(way))


def in_features(linear: nn.Module) -> int:
    """Return the width of a linear layer's input, read from its weight."""
    weight = linear.weight
    return int(weight.shape[1])  # type: ignore[index]


def _walk(model: nn.Module) -> Iterator[AttentionBlock]:
    prefix = _base_prefix(model)
    modules = dict(model.named_modules())
    order = 0
    for full_name, module in modules.items():
        spec = find_spec(type(module))
        if spec is None or not hasattr(module, spec.head_dim):
            continue
        name = full_name.removeprefix(prefix)
        layer_number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        layer_idx = int(layer_number.group(1)) if layer_number else order
        yield _describe(name, layer_idx, module, modules[full_name.rpartition(".")[0]], spec)
        order += 1


def _describe(name: str, layer_idx: int, module: nn.Module, parent: nn.Module, spec: AttentionSpec) -> AttentionBlock:
    head_dim = int(getattr(module, spec.head_dim))
    unfinished = AttentionBlock(name, layer_idx, module, parent, spec, 0, 0, head_dim, (), 0)
    num_heads = in_features(unfinished.output_projection) // head_dim
    # What removal left behind; a model that was never touched has all its heads, numbered in order.
    head_ids: tuple[int, ...] = getattr(module, "head_ids", tuple(range(num_heads)))
    num_heads_before = int(getattr(module, "num_heads_before", num_heads))
    num_key_value_heads = _count_key_value_heads(unfinished, num_heads) if num_heads else 0
    return AttentionBlock(
        name, layer_idx, module, parent, spec, num_heads, num_key_value_heads, head_dim, head_ids, num_heads_before
    )


def _count_key_value_heads(block: AttentionBlock, num_heads: int) -> int:
    for path, layout in block.spec.projections:
        holder, attribute = block.locate(path)
        num_blocks = int(getattr(holder, attribute).weight.shape[0]) // block.head_dim
        if layout in ("k", "v"):
            return num_blocks
        if layout in ("qkv", "gqkv"):
            return (num_blocks - num_heads) // 2
    return num_heads


def _base_prefix(model: nn.Module) -> str:
    """Names are relative to the base model, so that a record fits every task head on top of it."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""
