"""Experts of one layer: feed-forward networks whose weights are parameters of three dimensions.

A router chooses some experts for each token. All experts of a layer have the same neurons, which they lose together:
experts of different widths would not fit into one parameter. The features between the up and the down projection are
the output of no layer, so hooks are put on the activation.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from gating.families.layouts import ExpertsSpec, UpLayout
from gating.structure.hooks import Handle, Hooks

# torch.nn.functional.grouped_mm needs strides of 16 bytes: 8 numbers of half precision.
GROUP_FACTOR = 8

_UPS: tuple[tuple[str, ...], ...] = (("gate_up_proj",), ("gate_proj", "up_proj"), ("up_proj",))
_DOWN = "down_proj"


def find_experts_spec(module: nn.Module) -> ExpertsSpec | None:
    """Return the layout of the experts in a module, from the names and shapes of its parameters.

    Source: the classes with ``use_experts_implementation`` in transformers 5.24, and those of Llama 4, LongCat and
    Inkling.
    """
    parameters = module._parameters
    ups = next((names for names in _UPS if all(_has_three_dims(parameters.get(name)) for name in names)), None)
    if ups is None or not _has_three_dims(parameters.get(_DOWN)) or _activation(module) is None:
        return None
    (_, *up), (_, *down) = _shape(module, ups[0]), _shape(module, _DOWN)
    is_fused = ups == _UPS[0]
    # Transformers 5.0 does not write it into the module; it has one such class.
    is_concatenated = getattr(module, "is_concatenated", type(module).__name__ != "GptOssExperts")
    layout: UpLayout = "plain" if not is_fused else "halves" if is_concatenated else "pairs"
    # Shapes cannot tell for layers that are not fused; transformers has written the answer into the module.
    is_transposed = up == [down[1], 2 * down[0]] if is_fused else bool(getattr(module, "is_transposed", False))
    spec = ExpertsSpec(tuple((name, layout) for name in ups), _DOWN, is_transposed)
    rows = spec.num_neurons(module) * (2 if is_fused else 1)
    hidden = _shape(module, _DOWN)[spec.output_dim]
    expected = [hidden, rows] if is_transposed else [rows, hidden]
    return spec if all(_shape(module, name)[1:] == expected for name in ups) else None


def hook_activation(experts: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call a function on the features of experts, ``[..., num_neurons]``; a result other than None replaces them.

    The features are the output of the activation: the product with the other half, before it or after, is taken
    element by element, as is a factor of each feature. For models that are copied with their hooks, the function has to
    be a module.
    """
    name = _activation(experts)
    assert name is not None
    point = getattr(experts, name)
    if not isinstance(point, nn.Module):
        # An attribute of the module itself precedes the method of its class.
        point = _Calling(point, is_method=name not in experts.__dict__)
        experts.__dict__[name] = point
    hook = point.register_forward_hook(partial(_replace_output, function))
    return Hooks([hook], partial(_restore_function, experts, name, point))


class _Calling(nn.Module):
    """A function or method as a module, so that hooks can be put on it."""

    def __init__(self, function: Callable[..., Tensor], *, is_method: bool) -> None:
        super().__init__()
        self.function = function
        self.is_method = is_method

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def _restore_function(experts: nn.Module, name: str, point: nn.Module) -> None:
    """Take away the module that only hooks needed."""
    if isinstance(point, _Calling) and not point._forward_hooks:
        del experts.__dict__[name]
        if not point.is_method:
            experts.__dict__[name] = point.function


def _replace_output(
    function: Callable[[Tensor], Tensor | None], _module: nn.Module, _inputs: object, output: Tensor
) -> Tensor | None:
    return function(output)


def _activation(module: nn.Module) -> str | None:
    """Return the name of the function with the features as output, or None."""
    # A class calls an ``_apply_gate`` of its own in each implementation, that of transformers only in some of them.
    gate = getattr(type(module), "_apply_gate", None)
    if gate is not None and gate.__module__ != "transformers.integrations.moe":
        return "_apply_gate"
    return "act_fn" if callable(getattr(module, "act_fn", None)) else None


def _has_three_dims(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.dim() == 3


def _shape(module: nn.Module, name: str) -> list[int]:
    parameter = module._parameters[name]
    assert parameter is not None
    return list(parameter.shape)
