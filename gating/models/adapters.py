"""Low-rank adapters, trained beside the gates and merged before heads are removed.

Search and recovery each train new adapters. Those of the search are merged because removal slices whole weights; those
of recovery belong to the compact model. So both phases have the same trainable parameters, memory and learning rate.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.errors import InputError, MissingPackageError
from gating.gates import HeadGates
from gating.models.sources import ModelSource, NewModel
from gating.proof.input_sizes import nested_configs
from gating.sharding.plan import merge_adapters, reshard
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import has_no_weight


class NoAdapters:
    """Training of all weights of a model."""

    def on(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Return a context that changes nothing."""
        return nullcontext()


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); the head of the task is trained, other weights are frozen.

    Attributes:
        rank: Rank of the update of a weight.
        alpha: Scale of the update, which is multiplied by ``alpha / rank``.
        dropout: Dropout probability of the adapters' inputs.
        target_modules: Names, or ends of names, of the linear layers with adapters, a single one, or ``all-linear``;
            the query and value projections, as in the paper, if None.
    """

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: int = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        if find_spec("peft") is None:
            raise MissingPackageError(
                "adapters=lora needs the package peft. Install it with: pip install 'head-gating[peft]'"
            )

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Add adapters to a model, in place, and merge them into its weights at the exit of the context."""
        from peft import get_peft_model

        # The parameters are frozen, not their gathered copies.
        reshard(model)
        trained_before = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # PEFT unties embeddings if the tied embedding is not the model's first one.
        tied = _tied_to_output(model)
        parts = [part for _, part in nested_configs(model.config) if hasattr(part, "tie_word_embeddings")]
        flags = [(part, part.tie_word_embeddings) for part in parts]
        wrapped = get_peft_model(model, self._config(model))
        ids = {id(parameter) for parameter in trained_before}
        for parameter in _head(model):
            parameter.requires_grad_(id(parameter) in ids)
        yield
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
            merge_adapters(wrapped)
        for part, is_tied in flags if _tied_to_output(model) == tied else ():
            part.tie_word_embeddings = is_tied
        gates = getattr(model, "head_gates", None)
        if isinstance(gates, HeadGates):
            gates.attach_again()
        from gating.pruning.prune import silence_padding

        silence_padding(model)
        for parameter in trained_before:
            parameter.requires_grad_(True)

    def _config(self, model: PreTrainedModel) -> Any:
        """Return PEFT's configuration of these adapters."""
        from peft import LoraConfig

        targets: Any = _queries_and_values(model) if self.target_modules is None else self.target_modules
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            # PEFT reads a text as a pattern, but for its name of all linear layers.
            target_modules=[targets] if isinstance(targets, str) and targets != "all-linear" else targets,
            exclude_modules=[name for name, module in model.named_modules() if has_no_weight(module)],
        )


Adapters = NoAdapters | LoRA


def check_adapters(adapters: Adapters, source: ModelSource) -> None:
    """Raise ``InputError`` if the frozen weights of a model with adapters would be random."""
    if isinstance(adapters, LoRA) and isinstance(source, NewModel):
        raise InputError(
            f"adapters=lora freezes the other weights, and those of a {source.title} are random: use "
            "adapters=none, or a pretrained model."
        )


def _tied_to_output(model: PreTrainedModel) -> set[str]:
    """Return the names of the output embedding's weight."""
    output = model.get_output_embeddings()
    weight = getattr(getattr(output, "out_proj", output), "weight", None)
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight}


def _queries_and_values(model: nn.Module) -> list[str]:
    """Return the names of the query and value projections; fused ones also have the keys."""
    names = {module: name for name, module in model.named_modules()}
    found = [
        names[linear]
        for block in iter_attention_blocks(model)
        for linear, layout in (block.projections() if block.num_heads else ())
        # Models with a convolution of their heads read its weight, and do not call it. PEFT wraps a whole
        # nn.MultiheadAttention, so that heads would have to be removed from its wrapper.
        if ("q" in layout or "v" in layout) and not isinstance(linear, (nn.Conv1d, nn.MultiheadAttention))
    ]
    if not found:
        raise InputError(
            f"adapters=lora adapts queries and values, and {type(model).__name__} has no known ones: name linear "
            "layers with adapters.target_modules=[...], or give adapters.target_modules=all-linear."
        )
    return found


def _head(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Yield the parameters of the task's head, which are not pretrained; none for language models."""
    if model.get_output_embeddings() is None:
        base = {id(parameter) for parameter in model.base_model.parameters()}
        yield from (parameter for parameter in model.parameters() if id(parameter) not in base)
