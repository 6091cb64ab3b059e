"""Tests of models that are cut over processes, which needs a newer transformers than the oldest supported one."""

import pytest
import transformers

from tests.support.versions import HAS_SHARDING


@pytest.fixture(scope="session", autouse=True)
def _has_sharding() -> None:
    """Skip the tests if transformers cannot cut a model over processes."""
    if not HAS_SHARDING:
        pytest.skip(f"transformers {transformers.__version__} cannot cut a model over processes")
