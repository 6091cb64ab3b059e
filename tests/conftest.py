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
    "HF_HOME": str(_SCRATCH / "huggingface"),
    "HF_MODULES_CACHE": str(_SCRATCH / "modules"),
    "HF_DATASETS_CACHE": str(_SCRATCH / "datasets"),
    "WANDB_MODE": "offline",
    "WANDB_DIR": str(_SCRATCH),
    "WANDB_DATA_DIR": str(_SCRATCH / "wandb-data"),
    "WANDB_CACHE_DIR": str(_SCRATCH / "wandb-cache"),
    "WANDB_CONFIG_DIR": str(_SCRATCH / "wandb-config"),
    "WANDB_SILENT": "true",
    "TOKENIZERS_PARALLELISM": "false",
}
(_SCRATCH / "wandb-data").mkdir()

import copy  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import BertTokenizerFast, PreTrainedModel  # noqa: E402

# Two threads that share a busy machine wait for each other longer than they compute.
torch.set_num_threads(1)

NUM_LAYERS = 3
NUM_HEADS = 4
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the a cat dog sat ran on mat home fast slow".split()]

_SIZES = {"num_hidden_layers": NUM_LAYERS, "num_attention_heads": NUM_HEADS, "hidden_size": 32, "intermediate_size": 48}
_TEXT = {"vocab_size": 60, "max_position_embeddings": 40, "num_labels": 3}
_DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": NUM_LAYERS, "n_heads": NUM_HEADS}

FAMILIES: dict[str, tuple[str, str, dict[str, object]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", {**_SIZES, **_TEXT}),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**_SIZES, **_TEXT}),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", {**_SIZES, **_TEXT}),
    "camembert": ("CamembertForSequenceClassification", "CamembertConfig", {**_SIZES, **_TEXT}),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**_SIZES, **_TEXT, "embedding_size": 16}),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", {**_DISTILBERT, **_TEXT}),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {**_SIZES, "image_size": 16, "patch_size": 8, "num_labels": 3},
    ),
}


def randomise(model: nn.Module, *, seed: int = 0, std: float = 0.15) -> None:
    """Give every parameter, biases included, a random value; scales of layer norms stay around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_scale else 0.0, std, generator=generator)


def build(family: str, **overrides: object) -> PreTrainedModel:
    """Build a random model in evaluation mode; ``overrides`` go to its configuration."""
    model_name, config_name, sizes = FAMILIES[family]
    config = getattr(transformers, config_name)(**{**sizes, **overrides})
    model: PreTrainedModel = getattr(transformers, model_name)(config)
    randomise(model)
    return model.eval()


def batch_for(model: PreTrainedModel, *, seed: int = 1) -> dict[str, Tensor]:
    """Make a batch with padding (texts) for a model of :func:`build`."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:] = 0
    return {"input_ids": torch.randint(5, 60, (2, 10), generator=generator), "attention_mask": mask}


def logits_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Run a model in the mode it is in, without gradients."""
    with torch.no_grad():
        logits: Tensor = model(**batch).logits
    return logits


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's state, to compare with later."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Fail unless a model's state has the same names, shapes and bits as before."""
    now = model.state_dict()
    assert list(now) == list(state)
    for name, tensor in state.items():
        assert torch.equal(now[name], tensor), name


def hooks_of(model: nn.Module) -> int:
    """Count the hooks on all modules of a model."""
    return sum(
        len(getattr(module, attribute))
        for module in model.modules()
        for attribute in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


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
