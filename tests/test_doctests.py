"""Examples in docstrings."""

import doctest
import importlib

import pytest
import transformers
from transformers.distributed.configuration_utils import DistributedConfig

from tests.support.tiny_run import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "gating").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_right(name):
    if name == "gating.sharding.plan" and not hasattr(DistributedConfig, "fsdp_size"):
        pytest.skip(f"transformers {transformers.__version__} does not shard by FSDP2")
    assert doctest.testmod(importlib.import_module(name)).failed == 0
