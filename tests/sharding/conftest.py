"""Tests of models that are cut over processes, which needs a newer transformers than the oldest supported one."""

import inspect

import pytest
import transformers
from transformers.distributed.configuration_utils import DistributedConfig


@pytest.fixture(scope="session", autouse=True)
def _has_sharding() -> None:
    """Skip the tests if transformers cannot cut a model over processes."""
    if "fsdp_size" not in inspect.signature(DistributedConfig).parameters:
        pytest.skip(f"transformers {transformers.__version__} cannot cut a model over processes")
