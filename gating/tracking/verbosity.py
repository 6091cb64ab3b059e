"""Verbosity of libraries and form of warnings."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import transformers

from gating.distributed.collectives import is_rank_zero

# True and expected here; users cannot act on them.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*smaller than the logging interval.*",
    ".*LeafSpec.*",
    # From a model with constant predictions, as at the start; the metric is nan.
    ".*The variance of predictions or target is close to zero.*",
    ".*`is_gradient_checkpointing` is deprecated.*",
    # The sampler of ExampleDataModule resumes at its position.
    ".*your dataloader is not resumable.*",
    # A callback that stopped a phase may be left out of the resumed run.
    ".*callbacks used to create the checkpoint need to be provided.*",
    # Metrics of a validation epoch are already reduced over all ranks.
    ".*`self.log.*sync_dist=True.*",
)


def quiet_libraries() -> None:
    """Silence progress bars, info messages and expected warnings of libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("pytorch_lightning", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for pattern in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    # Readers of files log the errors that they raise.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()


@contextmanager
def printed_warnings() -> Iterator[list[str]]:
    """Print the warnings of a ``with`` block as ``warning: MESSAGE``, on rank 0 only, and yield a list of them."""
    sentences = list[str]()
    with warnings.catch_warnings(record=True) as caught:
        yield sentences
    for warning in caught:
        sentences.append(str(warning.message))
        if is_rank_zero():
            print(f"warning: {sentences[-1]}")
