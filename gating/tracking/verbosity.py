"""Keeping libraries from talking over the run's own output."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import transformers

from gating.distributed.collectives import is_rank_zero
from gating.errors import RemedyWarning

__all__ = ["printed_warnings", "quiet_libraries"]

# Each is true and expected here, and says nothing that a user could act on.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*You are using `torch.load`.*",
    ".*exists and is not empty.*",
    ".*smaller than the logging interval.*",
    ".*LeafSpec.*",
    # Of a model that answers the same to everything, as at the start; nan says so.
    ".*The variance of predictions or target is close to zero.*",
    ".*`is_gradient_checkpointing` is deprecated.*",
    # Its sampler goes on where it was.
    ".*your dataloader is not resumable.*",
    # A callback that has ended a phase early may be left out when the run goes on.
    ".*callbacks used to create the checkpoint need to be provided.*",
    # What is logged once for an epoch is the same in all processes already.
    ".*`self.log.*sync_dist=True.*",
)


def quiet_libraries() -> None:
    """Silence what libraries print in an ordinary run; warnings and errors of substance stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("pytorch_lightning", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for pattern in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print the warnings of a ``with`` block as sentences, those of the first process only."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if is_rank_zero():
            told = warning.message
            print(f"warning: {told.in_command if isinstance(told, RemedyWarning) else told}")
