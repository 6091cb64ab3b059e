"""Text that a finished model writes, for people to read."""

from typing import Protocol, runtime_checkable

from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Sample", "WritesText"]

# Texts by what they are: the prompt or the source, what was written, and what is right where something is.
Sample = dict[str, str]


@runtime_checkable
class WritesText(Protocol):
    """A task whose models write text."""

    def write_samples(
        self, model: PreTrainedModel, processor: PreTrainedTokenizerBase, splits: DatasetDict
    ) -> list[Sample]:
        """Let a model, in evaluation mode, write some text.

        Args:
            model: The finished model.
            processor: Its tokenizer.
            splits: The prepared data, to begin from.
        """
