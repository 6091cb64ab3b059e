"""Smaller models of seven families of the zoo, and helpers that compare models."""

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.family_models import ZOO
from tests.support.versions import class_of_transformers

NUM_LAYERS = 3
NUM_HEADS = 4
WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "home", "fast", "slow"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]

_SIZES = {"num_hidden_layers": NUM_LAYERS, "num_attention_heads": NUM_HEADS, "hidden_size": 32, "intermediate_size": 48}
_TEXT = {"vocab_size": 60, "max_position_embeddings": 40, "num_labels": 3}
_DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": NUM_LAYERS, "n_heads": NUM_HEADS}

# Families of the zoo in the sizes above.
FAMILIES: dict[str, dict[str, object]] = {
    **{key: {**_SIZES, **_TEXT} for key in ("bert", "roberta", "xlm-roberta", "camembert")},
    "electra": {**_SIZES, **_TEXT, "embedding_size": 16},
    "distilbert": {**_DISTILBERT, **_TEXT},
    "vit": {**_SIZES, "image_size": 16, "patch_size": 8, "num_labels": 3},
}


def randomize(model: nn.Module, *, seed: int = 0, std: float = 0.15) -> None:
    """Give every parameter, biases included, a random value; scales of layer norms stay around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_scale else 0.0, std, generator=generator)


def build(family: str, **overrides: object) -> PreTrainedModel:
    """Build a random model in evaluation mode; ``overrides`` go to its configuration."""
    config = class_of_transformers(ZOO[family].config)(**{**FAMILIES[family], **overrides})
    model: PreTrainedModel = class_of_transformers(ZOO[family].model)(config)
    randomize(model)
    return model.eval()


def build_bert_base() -> PreTrainedModel:
    """Build a random model of the size of BERT-base, but for the number of words."""
    config = transformers.BertConfig(vocab_size=1000, max_position_embeddings=64, num_labels=3)
    with torch.device("meta"):  # Skips the initialization, which is overwritten.
        model = transformers.BertForSequenceClassification(config)
    model.to_empty(device="cpu")
    randomize(model, std=0.02)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.mul_(5)
        model.bert.embeddings.position_ids.copy_(torch.arange(64))
        model.bert.embeddings.token_type_ids.zero_()
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


def assert_refused(
    model: nn.Module, change: Callable[[nn.Module], object], error: type[Exception], message: str
) -> None:
    """Fail unless a change is refused with an error, and the model is as before."""
    state, text, cls = state_of(model), str(model), type(model)
    with pytest.raises(error, match=message):
        change(model)
    assert_same_state(model, state)
    assert str(model) == text
    assert type(model) is cls
    assert not hasattr(getattr(model, "config", None), "head_gating")


def hooks_of(model: nn.Module) -> int:
    """Count the hooks on all modules of a model."""
    return sum(
        len(getattr(module, attribute))
        for module in model.modules()
        for attribute in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    )
