"""How a model is cut over all processes, and trained with gates: groups of parameters, and their gradients."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from gating.errors import OperationError
from gating.loader.saving import indivisible_left_out
from gating.proof.conditions import is_sharded as is_sharded
from gating.structure.blocks import Block
from gating.structure.edits import fill, whole
from gating.structure.layers import iter_blocks

# transformers' names for modules whose parameters are freed after their forward pass, and those that keep them until
# the backward pass.
_FREED, _KEPT = "free_full_weight", "keep_full_weight"


class _OnlyPlan(dict[str, str]):
    """A plan that replaces the one of a family in transformers, to which transformers adds it by ``plan | this``.

    The plans of transformers 5.24 put a tied output embedding into another group than its input embedding, which torch
    2.13 refuses.
    """

    def __ror__(self, other: object) -> dict[str, str]:  # type: ignore[override]
        return dict(self)


def merge_adapters(wrapped: Any) -> PreTrainedModel:
    """Add the updates of PEFT's adapters to the weights, in place, and return the model without them."""
    merge = partial(wrapped.merge_and_unload, safe_merge=True)
    if is_sharded(wrapped.get_base_model()):  # PEFT's own merge would lose the updates.
        merge = wrapped.unload
        for module in wrapped.modules():
            if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
                (adapter,) = module.active_adapters
                weight = module.base_layer.weight
                fill(weight, whole(weight.detach()) + module.get_delta_weight(adapter).detach())
    model: PreTrainedModel = merge()
    vars(model).pop("peft_config", None)  # peft 0.18 leaves it, and would take the next adapters for second ones.
    return model


def sharding_of(model: PreTrainedModel, num_processes: int) -> DistributedConfig:
    """Return the settings with which transformers cuts a model over some processes.

    Each layer with attention or neurons is gathered for itself, and so are the embeddings unless they share weights.
    All other parameters stay gathered in a forward and backward pass. Families without a plan in transformers, such as
    BERT, are cut in the same way.

    Args:
        model: The model, which may be on the meta device.
        num_processes: Number of processes.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sharding_of(BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2)), 2).fsdp_plan
        {'encoder.layer.*': 'free_full_weight', 'embeddings.word_embeddings': 'free_full_weight'}
    """
    plan = dict.fromkeys((re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in _layers(model)), _FREED)
    return DistributedConfig(fsdp_size=num_processes, fsdp_plan=_OnlyPlan(plan | _embeddings(model)))


def shard_model(model: PreTrainedModel, sharding: DistributedConfig | None = None) -> PreTrainedModel:
    """Cut the parameters of a model over all processes, in place; its class changes to one of FSDP2.

    Args:
        model: A model with the same values in all processes, or on the meta device.
        sharding: Settings of :func:`sharding_of`; made here when left out.

    Returns:
        The same model.
    """
    sharding = sharding or sharding_of(model, torch.distributed.get_world_size())
    with on_own_device():
        _, _, meshes = model.prepare_distribute_model(sharding)
    with indivisible_left_out(model):
        model.maybe_distribute_model(model, sharding, meshes)
    return model


@contextmanager
def on_own_device() -> Iterator[None]:
    """Let transformers take the present device of a process in a ``with`` block.

    It takes the one with the number in LOCAL_RANK, which SLURM does not set, and which is another where devices are
    chosen by number.
    """
    before = os.environ.get("LOCAL_RANK")
    if torch.accelerator.is_available():
        os.environ["LOCAL_RANK"] = str(torch.accelerator.current_device_index())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("LOCAL_RANK", None)
        else:
            os.environ["LOCAL_RANK"] = before


def reshard(model: nn.Module) -> None:
    """Free the gathered parameters of a model, in place.

    Without a backward pass, as in evaluation, those outside of the layers stay gathered, as plain tensors.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def gathered_root(model: nn.Module) -> Iterator[None]:
    """Gather the parameters outside of the layers of a sharded model in a ``with`` block; free them at its end.

    Generation calls parts of a model, such as an encoder, that read them. Called by all processes.
    """
    if isinstance(model, FSDPModule):
        # Parts that are called before a first forward pass would take themselves for the root.
        model._get_fsdp_state()._lazy_init()
        model.unshard()
    try:
        yield
    finally:
        reshard(model)


def check_same(tensor: Tensor, name: str) -> None:
    """Raise ``OperationError`` unless a tensor of the gates is bit-identical in all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    minimum, maximum = tensor.detach().clone(), tensor.detach().clone()
    torch.distributed.all_reduce(minimum, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
    # NaN never equals NaN; it is reported as such later.
    if not torch.equal(minimum.nan_to_num(), maximum.nan_to_num()):
        difference = float((maximum - minimum).abs().max())
        raise OperationError(
            f"{name} has drifted apart between the processes, by up to {difference:.1e}, so they would not keep the "
            "same units. Average all gradients over the processes: in a loop of your own with "
            "gating.sharding.average_gradients. Nothing was changed."
        )


def _layers(model: PreTrainedModel) -> list[str]:
    """Return the innermost elements of lists of modules that hold an attention or feed-forward block."""
    names = {id(module): name for name, module in model.named_modules()}
    blocks: list[Block] = list(iter_blocks(model))
    found: dict[str, None] = {}
    for block in blocks:
        owner = re.match(r"(?:.*\.)?\d+(?=\.|$)", names[id(block.module)])
        if owner is not None and not isinstance(model.get_submodule(owner[0]), nn.ModuleList):
            found[owner[0]] = None
    return list(found)


def _embeddings(model: PreTrainedModel) -> dict[str, str]:
    """Return the entries of a plan for the embeddings, if they share no weights with other modules."""
    if model.all_tied_weights_keys:
        return {}
    owners = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    styles = {id(model.get_output_embeddings()): _KEPT}
    # Models of images and sounds have none.
    with suppress(NotImplementedError):
        styles[id(model.get_input_embeddings())] = _FREED
    return {
        name: styles[id(module)]
        for name, module in model.named_modules()
        # Models may read the weight of other classes without a call of the module.
        if id(module) in styles and type(module) in (nn.Embedding, nn.Linear) and owners[id(module.weight)] == 1
    }


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters that are whole in every process over all processes, in place.

    These are gates, multipliers and adapters; FSDP2 averages those of the parameters that it has cut. To call once
    before each optimizer step.

    Args:
        parameters: All trained parameters.
    """
    gradients = [grad for grad in _gradients(parameters) if not isinstance(grad, DTensor)]
    if not gradients:
        return
    flat = torch.cat([grad.flatten() for grad in gradients]).div_(torch.distributed.get_world_size())
    torch.distributed.all_reduce(flat)
    for grad, averaged in zip(gradients, flat.split([grad.numel() for grad in gradients]), strict=True):
        grad.copy_(averaged.view_as(grad))


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], *, max_norm: float | None = None, max_value: float | None = None
) -> None:
    """Limit the norm of all gradients together, or the size of each entry, in place.

    ``torch.nn.utils.clip_grad_norm_`` takes either shards or whole gradients, not both.

    Args:
        parameters: All trained parameters, after :func:`average_gradients`.
        max_norm: Largest L2 norm.
        max_value: Largest absolute value of an entry.
    """
    gradients = list(_gradients(parameters))
    shards = [grad for grad in gradients if isinstance(grad, DTensor)]
    others = [grad for grad in gradients if not isinstance(grad, DTensor)]
    local = [*(grad.to_local() for grad in shards), *others]
    if max_value is not None:
        for grad in local:
            grad.clamp_(-max_value, max_value)
    if max_norm is not None and gradients:
        squares = sum((_square(shard.to_local()) for shard in shards), torch.zeros((), device=local[0].device))
        torch.distributed.all_reduce(squares)
        norm = (squares + sum(_square(grad) for grad in others)).sqrt()
        # clip_grad_norm_ does the same.
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in local:
            grad.mul_(factor.to(grad.dtype))


def _gradients(parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    return (parameter.grad for parameter in parameters if parameter.grad is not None)


def _square(tensor: Tensor) -> Tensor:
    return tensor.float().square().sum()
