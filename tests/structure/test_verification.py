"""Checksums of compact folders, on disk and from the hub."""

import os
import shutil

import pytest
import torch
import transformers

import gating
from tests.support.family_models import FAMILIES as FAMILY_MODELS
from tests.support.tiny_models import batch_for, logits_of


def load_by_remote_code(folder, auto_class=transformers.AutoModelForSequenceClassification, **options):
    return auto_class.from_pretrained(folder, trust_remote_code=True, **options)


def flip_a_bit(path, place=-5):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_model_that_was_trained_on_saves_checksums_of_its_own(folder, tmp_path):
    load = gating.load_compact
    model = load(folder)
    assert "sha256" not in model.config.head_gating
    with torch.no_grad():
        model.classifier.weight += 1
    batch = batch_for(model)
    expected = logits_of(model, batch)
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    # Over the folder that it came from; before safetensors 0.8, the model in memory is not itself afterwards.
    model.save_pretrained(folder)
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    for place in (folder, tmp_path / "parts"):
        assert torch.equal(logits_of(load(place), batch), expected)
        shard = max(place.glob("model*.safetensors"))
        flip_a_bit(shard)
        with pytest.raises(ValueError, match=rf"{shard.name} is not what was saved"):
            load(place)


def test_a_configuration_that_is_saved_alone_brings_no_stale_checksums(folder):
    model = gating.load_compact(folder)
    model.config.id2label = {number: f"label {number}" for number in range(3)}
    model.config.save_pretrained(folder)
    with pytest.warns(UserWarning, match="no checksums"):
        assert gating.load_compact(folder).config.id2label[2] == "label 2"


def test_only_the_main_process_writes(folder, tmp_path, bert):
    for model, place in ((gating.load_compact(folder), "own"), (bert, "dense")):
        model.save_pretrained(tmp_path / place, is_main_process=False)
    # Transformers 5.0 writes the weights in every process.
    assert os.listdir(tmp_path / "own") == os.listdir(tmp_path / "dense")


def put_in_cache(folder, cache, commit="0"):
    """Copy a folder into the hub's cache, as ``me/model``, and return the repository and the snapshot."""
    repository = cache / "models--me--model"
    snapshot = repository / "snapshots" / (commit * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit * 40)
    shutil.copytree(folder, repository / "blobs")
    snapshot.mkdir(parents=True)
    for blob in (repository / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    return repository, snapshot


def test_from_the_hub_classes_that_do_not_generate_need_no_settings_of_generation(tmp_path):
    model = FAMILY_MODELS["gpt2"].build()
    gating.prune_heads(model, {0: [1]})
    gating.save_compact(model, tmp_path / "compact")
    _, snapshot = put_in_cache(tmp_path / "compact", tmp_path)
    (snapshot / "generation_config.json").unlink()  # It is not asked for.
    assert load_by_remote_code("me/model", transformers.AutoModel, cache_dir=tmp_path) is not None
    with pytest.raises(FileNotFoundError, match=r"generation_config\.json"):
        gating.load_compact(snapshot)


def test_another_task_head_is_new_and_the_rest_is_checked(saved, folder):
    model = load_by_remote_code(folder, transformers.AutoModelForTokenClassification)
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(model.get_parameter(name), saved["bert"].model.get_parameter(name))
    assert model.classifier.out_features == 3
