"""Models and folders that the tests of the core share.

Nothing here needs a network: models are small, random and built from configurations.
"""

import os
import shutil
import tempfile
from pathlib import Path

# Before transformers, wandb and torch are imported: they read these once.
_SCRATCH = Path(tempfile.mkdtemp(prefix="head-gating-tests-"))
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_MODULES_CACHE": str(_SCRATCH / "modules"),
    "WANDB_MODE": "offline",
    "WANDB_DATA_DIR": str(_SCRATCH / "wandb-data"),
    "TOKENIZERS_PARALLELISM": "false",
}
(_SCRATCH / "wandb-data").mkdir()

import copy  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from tiny_models import FAMILIES, VOCABULARY, build  # noqa: E402
from transformers import BertTokenizerFast, PreTrainedModel  # noqa: E402

# Two threads that share a busy machine wait for each other longer than they compute.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _scratch_folder() -> Iterator[None]:
    yield
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def _built() -> dict[str, PreTrainedModel]:
    return {family: build(family) for family in FAMILIES}


@pytest.fixture
def make_model(_built: dict[str, PreTrainedModel]) -> Callable[[str], PreTrainedModel]:
    """Return a function from the name of a family to a fresh random model of it."""
    return lambda family: copy.deepcopy(_built[family])


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, make_model: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """Return a model of each family in turn."""
    return make_model(request.param)


@pytest.fixture
def bert(make_model: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """Return a BERT, for what does not depend on the family."""
    return make_model("bert")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    """Return a BERT tokenizer of a few words."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY), encoding="utf-8")
    return BertTokenizerFast(str(path), model_max_length=40)
