"""Removing chosen heads with torch-pruning, in the two ways its documentation shows.

https://github.com/VainF/Torch-Pruning, examples/transformers/prune_hf_bert.py and prune_hf_vit.py: a pruner that is
told the number of heads of every query, key and value projection, and the attributes set right afterwards. Its heads
are chosen by an importance that one may write; ours says which heads are to go. The other way is the dependency graph
itself, as in the project's introduction.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

Heads = Mapping[int, list[int]]
_NAMES = {"BertSelfAttention": ("query", "key", "value"), "ViTAttention": ("q_proj", "k_proj", "v_proj")}


def attentions(model: nn.Module) -> list[nn.Module]:
    """Return the attention modules of a BERT or ViT of transformers 5, by layer."""
    return [module for module in model.modules() if type(module).__name__ in _NAMES]


def projections(attention: nn.Module) -> list[nn.Linear]:
    """Return the query, key and value projections."""
    return [getattr(attention, name) for name in _NAMES[type(attention).__name__]]


def count_heads(model: nn.Module, head_dim: int) -> int:
    """Count the heads that the query projections have rows for, whatever attributes say.

    A layer that head-gating emptied has no projections any more.
    """
    queries = [projections(attention)[0] for attention in attentions(model)]
    return sum(query.out_features // head_dim for query in queries if query is not None)


def prune_by_graph(model: nn.Module, heads: Heads, batch: Mapping[str, Tensor], head_dim: int) -> None:
    """Remove the heads' rows from each query projection; the graph finds the dependent layers.

    ``check_pruning_group`` is not asked: it forbids to remove all rows of a layer, which works, though.
    """
    import torch_pruning

    with _quiet():
        graph = torch_pruning.DependencyGraph().build_dependency(model, _example(batch), output_transform=_to_scalar)
        for layer, attention in enumerate(attentions(model)):
            rows = [head * head_dim + row for head in heads.get(layer, ()) for row in range(head_dim)]
            if rows:
                query = projections(attention)[0]
                graph.get_pruning_group(query, torch_pruning.prune_linear_out_channels, rows).prune()
    _set_attributes(model, head_dim)


def prune_by_pruner(model: nn.Module, heads: Heads, batch: Mapping[str, Tensor], head_dim: int) -> None:
    """Let ``BasePruner`` remove as many heads as are named, with an importance that ranks them lowest."""
    import torch_pruning

    qkv = {p: attention.num_attention_heads for attention in attentions(model) for p in projections(attention)}
    total = sum(qkv.values()) // 3
    # Half a head less, because the pruner rounds (1 - ratio) * total down.
    ratio = (sum(map(len, heads.values())) - 0.5) / total
    with _quiet():
        pruner = torch_pruning.pruner.BasePruner(
            model,
            _example(batch),
            importance=_Chosen(model, heads, head_dim),
            global_pruning=True,
            # With 0 it prunes nothing at all, heads neither.
            pruning_ratio=0.5,
            # Only heads shall go.
            ignored_layers=[m for m in model.modules() if not list(m.children()) and m not in qkv],
            num_heads=qkv,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
            output_transform=_to_scalar,
            # The defaults are dictionaries that all pruners of a process share.
            in_channel_groups={},
            out_channel_groups={},
        )
        for group in pruner.step(interactive=True):
            group.prune()
    _set_attributes(model, head_dim)


class _Chosen:
    """An importance of 0 for the channels of some heads and 1 for all others."""

    def __init__(self, model: nn.Module, heads: Heads, head_dim: int) -> None:
        self._scores = {}
        for layer, attention in enumerate(attentions(model)):
            score = torch.ones(attention.num_attention_heads)
            score[heads.get(layer, [])] = 0
            self._scores[projections(attention)[0]] = score.repeat_interleave(head_dim)

    def __call__(self, group: object) -> Tensor | None:
        for dependency, _ in group:
            if dependency.target.module in self._scores:
                return self._scores[dependency.target.module]
        return None


def _set_attributes(model: nn.Module, head_dim: int) -> None:
    """Set the attributes that the examples set; only the attention of transformers 4 reads them.

    The examples divide by the number of heads for the width of one, which fails for a layer without heads; it stays.
    """
    for attention in attentions(model):
        width = projections(attention)[0].out_features
        attention.num_attention_heads = width // head_dim
        attention.all_head_size = width


def _example(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first example alone, as small an input to trace as those of the project's examples."""
    return {name: tensor[:1] for name, tensor in batch.items()}


def _to_scalar(outputs: object) -> Tensor:
    return outputs.logits.sum()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out its notice about parameters outside of layers, here embeddings that are not to be touched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
