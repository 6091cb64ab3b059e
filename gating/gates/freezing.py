"""Weights that stay as they are while their gates are trained."""

from collections.abc import Collection

from torch import nn

from gating.gates.attachment import CHILD_NAME

__all__ = ["freeze", "unfreeze"]


def freeze(model: nn.Module) -> frozenset[str]:
    """Freeze the weights of a model, in place, before gates are put on it; gates that it has already stay trainable.

    Gates on frozen weights scale the features: where a weight is scaled, its gradient is computed for the gates alone.

    Returns:
        The names of the parameters that were trainable, for :func:`unfreeze`.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> names = freeze(linear)
        >>> linear.weight.requires_grad, sorted(names)
        (False, ['bias', 'weight'])
        >>> unfreeze(linear, names)
        >>> linear.weight.requires_grad
        True
    """
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and CHILD_NAME not in name.split(".")
    }
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return frozenset(parameters)


def unfreeze(model: nn.Module, names: Collection[str]) -> None:
    """Make the parameters of these names trainable, in place; those that are gone with their units are left out."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
