"""Low-rank adapters beside the gates: the weights stay, and what is learned is added to them before heads are removed.

Search and recovery have adapters of their own: those of the search are merged before heads are removed, since removal
takes rows and columns of whole weights, and recovery starts new ones on the compact model. So both phases have the same
few trainable weights, the same memory and the same learning rate; training the merged model whole in recovery would
take what adapters are used to save.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.discovery.find import find_attention_blocks
from gating.errors import InputError, MissingPackageError
from gating.gates import HeadGates
from gating.models.sources import ModelSource, NewModel
from gating.pruning.padding import silence_padding
from gating.structure.empty import BiasOnly
from gating.structure.linear import why_not_editable

__all__ = ["Adapters", "LoRA", "NoAdapters", "check_adapters"]


class Adapters(Protocol):
    """What is trained of a model besides its gates."""

    def on(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Train these for the length of a ``with`` block, and have them in the model's weights after it, in place."""


class NoAdapters:
    """Train all weights of a model."""

    def on(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()


@dataclass(frozen=True)
class LoRA:
    """Train low-rank adapters (Hu et al. 2021, arXiv 2106.09685) and the head of the task; all other weights stay.

    Attributes:
        rank: Rank of what is added to a weight.
        alpha: What is added is multiplied by ``alpha / rank``.
        dropout: Dropout in front of the adapters.
        target_modules: Names, or ends of names, of the linear layers that get one, or ``all-linear``; those that make
            queries and values when left out, as in the paper.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: Sequence[str] | Literal["all-linear"] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"adapters.rank={self.rank} is none: give 1 or more.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"adapters.dropout={self.dropout} is no share: give a number from 0 to below 1.")
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise MissingPackageError(
                "adapters=lora needs the package peft. Install it with: pip install 'head-gating[peft]'"
            ) from error

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Put adapters on a model, in place, and merge them into its weights at the end."""
        from peft import LoraConfig, get_peft_model

        trained_before = [parameter for parameter in model.parameters() if parameter.requires_grad]
        targets = _queries_and_values(model) if self.target_modules is None else self.target_modules
        is_transposed = any(isinstance(module, Conv1D) for module in model.modules())
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            fan_in_fan_out=is_transposed,
            target_modules=targets if isinstance(targets, str) else list(targets),
            # Emptied blocks have nothing left to adapt.
            exclude_modules=[name for name, module in model.named_modules() if isinstance(module, BiasOnly)],
        )
        # peft takes an output for one of its own where the embedding that it shares is not the first one of the model.
        shared = _shared_with_output(model)
        ties = [(part, part.tie_word_embeddings) for part in _configs(model) if hasattr(part, "tie_word_embeddings")]
        wrapped = get_peft_model(model, config)
        for parameter in _head(model):
            parameter.requires_grad_(True)
        yield
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
            wrapped.merge_and_unload(safe_merge=True)
        for part, is_tied in ties if _shared_with_output(model) == shared else ():
            part.tie_word_embeddings = is_tied
        gates = getattr(model, "head_gates", None)
        if isinstance(gates, HeadGates):
            gates.attach_again()
        silence_padding(model)
        for parameter in trained_before:
            parameter.requires_grad_(True)


def check_adapters(adapters: Adapters, source: ModelSource, blueprint: PreTrainedModel) -> None:
    """Raise ``ValueError`` if layers to adapt are not there, or nothing has trained the weights beside them."""
    if not isinstance(adapters, LoRA):
        return
    if isinstance(source, NewModel):
        raise InputError(
            f"adapters=lora leaves the weights as they are, and those of a {source.title} are random: use "
            "adapters=none, or a pre-trained model."
        )
    names = [name for name, module in blueprint.named_modules() if why_not_editable(module) is None]
    for target in [] if isinstance(adapters.target_modules, str) else adapters.target_modules or []:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise InputError(f"adapters.target_modules: no linear layer is called {target}; there are {there}.")


def _shared_with_output(model: PreTrainedModel) -> set[str]:
    """Name the parameters that are the weights of a model's output."""
    output = model.get_output_embeddings()
    weight = getattr(getattr(output, "out_proj", output), "weight", None)
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight}


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Return a model's configuration and those of its parts."""
    return [model.config, *(value for value in vars(model.config).values() if isinstance(value, PreTrainedConfig))]


def _queries_and_values(model: nn.Module) -> list[str]:
    """Name the linear layers that make queries or values; fused ones make keys, too."""
    names = {module: name for name, module in model.named_modules()}
    blocks = find_attention_blocks(model)
    return [
        names[linear]
        for block in blocks
        for linear, layout in (block.projections() if block.num_heads else ())
        if "q" in layout or "v" in layout
    ]


def _head(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Yield the parameters of a task's own head, which no pre-training has made; a language model's is pre-trained."""
    if model.get_output_embeddings() is None:
        base = {id(parameter) for parameter in model.base_model.parameters()}
        yield from (parameter for parameter in model.parameters() if id(parameter) not in base)
