"""Recipes that are damaged, hostile or of another base are refused, and those of trained models are not written."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import gating
from gating.errors import InputError
from tests.compact.test_recipe import based, finalized
from tests.support.tiny_models import assert_same_state, build, state_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a base and a recipe. Copy it before you change it."""
    place = tmp_path_factory.mktemp("made")
    model = based(build("bert"), place / "base")
    folded = finalized(model)
    gating.save_recipe(model, place / "recipe", base=place / "base", folded=folded)
    return place


@pytest.fixture
def place(made, tmp_path):
    """Return a copy whose files may be changed, without the checksums that would tell; the base stays in its place."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "recipe" / "head_gating.json").unlink()
    return tmp_path


def edit(path, **values):
    table = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in {**table, **values}.items() if value != "gone"}))


def refused(folder, message=".", error=ValueError, **options):
    with pytest.raises(error, match=message) as caught:
        gating.load_compact(folder, **options)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "values",
    [
        {"format": 1},
        {"base": "gone"},
        {"base": 3},
        {"revision": "../main"},
        {"auto_map": "x"},
        {"compact_sha256": 64 * "0"},
        {"base_sha256": 64 * "0"},
    ],
)
def test_a_changed_table_is_refused(values, place):
    edit(place / "recipe" / "recipe.json", **values)
    refused(place / "recipe", error=(ValueError, FileNotFoundError))


def refused_or_as_saved(folder, state):
    """Fail if a folder loads as another model than that which was saved."""
    try:
        model = gating.load_compact(folder)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert_same_state(model, state)


@pytest.mark.parametrize(
    "layers",
    [
        {"kept": {"encoder.layer": [0, 3]}},
        {"kept": {"encoder.layer": [2, 0]}},
        {"kept": {"layers": [0, 2]}},
        {"kept": {"encoder.layer": [0, 1]}},
        {"heads": {"encoder.layer.1.attention.self": 9}},
        {"config": {"num_hidden_layers": 4}},
        {"config": {"num_hidden_layers": 3, "hidden_size": 24}},
        {"config": {"num_hidden_layers": 3, "nothing": 3}},
        {"config": {"nothing.here": 3}},
    ],
)
def test_a_record_of_other_layers_gives_no_other_model(layers, tmp_path):
    model = based(build("bert"), tmp_path / "base")
    gating.prune_layers(model, [1])
    folder = gating.save_recipe(model, tmp_path / "recipe", base=tmp_path / "base")
    (folder / "head_gating.json").unlink()
    change_record(folder, lambda _, record: record["layers"].update(layers))
    refused_or_as_saved(folder, state_of(model))


def change_record(folder, change):
    table = json.loads((folder / "config.json").read_text())
    change(table, table["head_gating"])
    (folder / "config.json").write_text(json.dumps(table))


FIRST = "encoder.layer.0.attention.self"
NEURONS = "encoder.layer.1.output.dense"


@pytest.mark.parametrize(
    "change",
    [
        lambda _, record: record["units"][FIRST].update(head_ids=[0, 9]),
        lambda _, record: record["units"][FIRST].update(head_ids=[-1]),
        lambda _, record: record["units"][FIRST].update(head_ids="0"),
        lambda _, record: record["units"][FIRST].update(head_ids=[0, 1]),
        lambda _, record: record["units"][FIRST].update(num_heads_before=8),
        lambda _, record: record["units"][FIRST].update(head_slots=[0, 1, 2, 3]),
        lambda _, record: record["units"].update(other={"head_ids": []}),
        lambda _, record: record["units"].pop(FIRST),
        lambda _, record: record["units"][NEURONS].update(kept_groups=[10**7]),
        lambda _, record: record["units"][NEURONS].update(group_size=0),
        lambda _, record: record["units"][NEURONS].update(group_size=10**12),
    ],
)
def test_a_changed_record_gives_no_other_model(change, place):
    state = state_of(gating.load_compact(place / "recipe"))
    change_record(place / "recipe", change)
    refused_or_as_saved(place / "recipe", state)


@pytest.mark.parametrize(
    "change",
    [
        lambda _, record: record.update(format=7),
        lambda _, record: record.update(code="x"),
        lambda table, _: table.pop("head_gating"),
        lambda table, _: table.update(num_hidden_layers=10**9),
        lambda table, _: table.update(num_labels=10**9),
        lambda table, _: table.update(hidden_size=10**12),
        lambda table, _: table.update(num_hidden_layers=4),
        lambda table, _: table.update(intermediate_size=96),
        lambda table, _: table.update(id2label={str(number): str(number) for number in range(5)}),
        lambda table, _: table.update(architectures=["BertConfig"]),
        lambda table, _: table.update(quantization_config={"a": 1}),
    ],
)
def test_a_changed_configuration_is_refused(change, place):
    change_record(place / "recipe", change)
    refused(place / "recipe")


@pytest.mark.parametrize(
    "tensors",
    [
        {f"folded.{FIRST}": torch.ones(9)},
        {f"folded.{FIRST}": torch.tensor([float("nan")])},
        {f"folded.{FIRST}": torch.zeros(1)},
        {f"folded.{FIRST}": torch.full((2,), 3)},
        {"weight": torch.ones(1)},
        {"new.classifier.weight": torch.ones(1)},
    ],
)
def test_changed_tensors_are_refused(tensors, place):
    path = place / "recipe" / "recipe.safetensors"
    save_file({**load_file(path), **tensors}, path)
    with pytest.raises(ValueError, match="recipe"):
        gating.load_compact(place / "recipe")


def test_checksums_of_the_folder_tell_a_change(made, tmp_path):
    for name in ("config.json", "recipe.json", "recipe.safetensors"):
        folder = shutil.copytree(made / "recipe", tmp_path / name)
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content.replace(b"8", b"9", 1) if path.suffix == ".json" else content[:-4] + b"\0\0\0@")
        refused(folder, f"{re.escape(str(path))} is not what was saved with this model")


def test_another_base_is_refused_unless_checks_are_off(made, tmp_path):
    other = based(build("bert"), tmp_path / "base")
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.bias[0] += 1
    other.save_pretrained(tmp_path / "base")
    refused(made / "recipe", "are not those of the base model of this recipe", base=tmp_path / "base")
    gating.load_compact(made / "recipe", base=tmp_path / "base", verify=False)


def test_a_base_that_is_compact_is_refused(made, tmp_path):
    model = gating.load_compact(made / "recipe")
    compact = gating.save_compact(model, tmp_path / "compact")
    for base, message in (
        (made / "recipe", "is compact itself: name the dense model"),
        (compact, "is compact itself: name the dense model"),
    ):
        refused(made / "recipe", message, (ValueError, FileNotFoundError), base=base)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            gating.save_recipe(model, tmp_path / "again", base=base)
    assert not (tmp_path / "again").exists()


@pytest.fixture
def compact(tmp_path):
    model = based(build("bert"), tmp_path / "base")
    return model, {"base": tmp_path / "base", "folded": finalized(model)}


def not_saved(model, folder, message, error=InputError, **options):
    """Fail unless a recipe is refused, and nothing is written or changed."""
    before = state_of(model)
    with pytest.raises(error, match=message):
        gating.save_recipe(model, folder, **options)
    assert not folder.exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_trained_weights_are_named(compact, tmp_path):
    model, options = compact
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3, 3] += 1e-3
    message = "bert.embeddings.word_embeddings.weight of this BertFor.* were trained, .*: gating.save_compact"
    not_saved(model, tmp_path / "recipe", message, **options)


def test_factors_that_are_missing_or_wrong_are_refused(compact, tmp_path):
    model, options = compact
    folded = options.pop("folded")
    not_saved(model, tmp_path / "recipe", "is not what .* and the recipe give", **options)
    name = next(iter(folded))
    for wrong in ([*folded[name], 1.0], [float("nan")] * len(folded[name]), [2.0] * len(folded[name])):
        not_saved(model, tmp_path / "recipe", ".", Exception, **options, folded={**folded, name: wrong})


def test_a_folder_in_the_place_of_a_recipe_is_renamed(compact, tmp_path):
    model, options = compact
    gating.save_recipe(model, tmp_path / "recipe", **options)
    with pytest.raises(FileExistsError, match="exists already"):
        gating.save_recipe(model, tmp_path / "recipe", **options)
    (tmp_path / "recipe" / "notes.txt").write_text("mine")
    gating.save_recipe(model, tmp_path / "recipe", **options, overwrite=True)
    assert (tmp_path / "recipe.1" / "notes.txt").read_text() == "mine"
