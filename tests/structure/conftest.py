"""Fixtures of the tests of this folder."""

from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging


@pytest.fixture
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
