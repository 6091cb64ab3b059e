"""Folders with missing, damaged or mixed files are refused, and the file is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import gating
from gating.compact.load import load_compact
from gating.loader.saving import write_checksums

SECOND = "encoder.layer.1.attention.self"


def edit_config(folder, change):
    """Change a configuration and update the checksums."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    write_checksums(folder)


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    write_checksums(folder)


def set_kept(heads):
    return lambda config: config["head_gating"]["units"][SECOND].update(head_ids=heads, head_slots=heads)


def of_modules(change):
    return lambda config: change(config["head_gating"]["modules"])


@pytest.mark.parametrize(
    "change",
    [
        set_kept("all"),
        set_kept(None),
        of_modules(lambda modules: modules.pop("encoder.layer.0.attention.self.query")),
        of_modules(lambda modules: modules["encoder.layer.0.attention.self.query"]["tensors"].pop("bias")),
        lambda config: config["head_gating"].update(format=99),
        lambda config: config.update(head_gating=[]),
        lambda config: config.update(head_gating=None),
        lambda config: config.pop("head_gating"),
        lambda config: config.update(num_attention_heads=8),
        lambda config: config.update(architectures=["NoSuchModel"]),
        lambda config: config.pop("architectures"),
        lambda config: config["architectures"].clear(),
    ],
)
def test_a_damaged_configuration_is_refused(folder, change):
    edit_config(folder, change)
    with pytest.raises(gating.errors.InputError):
        load_compact(folder)


def rename_weight(weights):
    weights["bert.something"] = weights.pop("classifier.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("bert.encoder.layer.0.attention.self.query.weight"), "query.weight"),
        (lambda weights: weights.pop("classifier.bias"), "classifier.bias"),
        (lambda weights: weights.update(extra=torch.ones(1)), "extra"),
        (rename_weight, "classifier.weight|something"),
    ],
)
def test_weights_that_do_not_fit_the_record_are_refused_by_name(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=f"compact is damaged or mixed.*({message})"):
        load_compact(folder)


def test_weights_of_another_compact_model_are_refused(folder, saved):
    shutil.copy(saved["whole-or-emptied"].folder / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was saved with this model"):
        load_compact(folder)
    write_checksums(folder)
    with pytest.raises(ValueError, match="two models"):
        load_compact(folder)
