"""Weights and configurations are read from untrusted folders, and invalid ones are refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gating.compact.files import check_manifest, read_config, read_shapes
from gating.loader.saving import write_checksums


@pytest.fixture
def made(tmp_path):
    """A folder that looks like that of a compact model."""
    (tmp_path / "config.json").write_text('{"size": 3, "head_gating": {"format": 2, "modules": {}, "units": {}}}')
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, tmp_path / "model.safetensors")
    write_checksums(tmp_path)
    return tmp_path


def shard(folder: Path, place: object = "second.safetensors") -> None:
    """Put the weights of a folder into two files."""
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.ones(2)}, folder / "first.safetensors")
    save_file({"b": torch.ones(3)}, folder / "second.safetensors")
    index = {"metadata": {"total_size": 20}, "weight_map": {"a": "first.safetensors", "b": place}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("place", ["../second.safetensors", "/etc/passwd", "..", "", "x.bin", 3, None])
def test_an_index_that_leads_elsewhere_is_refused(made, place):
    shard(made, place)
    shutil.copy(made / "second.safetensors", made.parent / "second.safetensors")
    with pytest.raises(ValueError, match=r"out of the folder|no table weight_map with safetensors files"):
        read_shapes(made)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[1]", "not a table"),
        ("null", "not a table"),
        (f'{{"a": 1{"0" * 5000}}}', "digits"),
        ("[" * 200_000, "recursion"),
        ('{"a":' * 200_000, "recursion"),
        ("\ufeff{}", "BOM"),
    ],
    ids=range(8),
)
def test_invalid_json_is_refused(tmp_path, text, why):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"(?s)config\.json is damaged.*{why}"):
        read_config(tmp_path)


def test_binary_and_endless_files_are_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)  # a hole, which takes no room
    with pytest.raises(ValueError, match=r"config\.json: 1,099,511,627,776"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("instead", ["folder", "pipe", "link out", "link to nothing", "link to itself"])
def test_links_folders_and_pipes_in_place_of_files_are_refused(made, tmp_path_factory, name, instead):
    path = made / name
    elsewhere = tmp_path_factory.mktemp("elsewhere") / name
    shutil.move(path, elsewhere)
    if instead == "folder":
        path.mkdir()
    elif instead == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link out": elsewhere, "link to nothing": "nothing", "link to itself": name}[instead])
    with pytest.raises((ValueError, FileNotFoundError), match=r"is not a file|link out of the folder|does not exist"):
        (read_config if name == "config.json" else read_shapes)(made)


def test_links_inside_the_folder_and_into_the_cache_of_the_hub_are_followed(made, tmp_path_factory):
    (made / "model.safetensors").rename(made / "real.safetensors")
    (made / "model.safetensors").symlink_to("real.safetensors")
    assert read_shapes(made)
    repository = tmp_path_factory.mktemp("models--a--b")
    (repository / "blobs").mkdir()
    (repository / "snapshots" / "1").mkdir(parents=True)
    shutil.copy(made / "real.safetensors", repository / "blobs" / "abc")
    (repository / "snapshots" / "1" / "model.safetensors").symlink_to("../../blobs/abc")
    assert read_shapes(repository / "snapshots" / "1")


@pytest.mark.parametrize("size", [0, 7, 8, 60, -1])
def test_files_cut_off_are_refused(made, size):
    path = made / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_shapes(made)


def test_checksums_are_of_all_files_of_weights_and_of_the_configuration(made):
    sums = read_config(made)["head_gating"]["sha256"]
    assert set(sums) == {"config.json", "model.safetensors"}
    check_manifest(made, read_config(made))
    write_checksums(made)
    assert read_config(made)["head_gating"]["sha256"] == sums
    assert sorted(path.name for path in made.iterdir()) == ["config.json", "model.safetensors"]


def read_and_check(folder):
    read_shapes(folder)
    check_manifest(folder, read_config(folder))


def test_every_flipped_bit_of_the_weights_is_noticed(made):
    path = made / "model.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ 4, *whole[place + 1 :]]))
        with pytest.raises(ValueError, match=r"model\.safetensors (is not what was saved|is damaged)"):
            read_and_check(made)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(size=4),
        lambda config: config.update(more=1),
        lambda config: config["head_gating"].update(format=3),
        lambda config: config["head_gating"]["sha256"].pop("config.json"),
        lambda config: config["head_gating"]["sha256"].update({"config.json": "0" * 64}),
    ],
)
def test_a_changed_configuration_is_noticed(made, change):
    config = read_config(made)
    change(config)
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json is not what was saved.*verify=False"):
        check_manifest(made, config)


def test_the_layout_of_the_configuration_does_not_matter(made):
    config = read_config(made)
    (made / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    check_manifest(made, read_config(made))


def test_weights_that_would_be_loaded_instead_are_noticed(made):
    shard(made)
    write_checksums(made)
    check_manifest(made, read_config(made))
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, made / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was saved"):
        check_manifest(made, read_config(made))


def test_a_file_with_a_checksum_that_is_gone_is_named(made):
    config = read_config(made)
    config["head_gating"]["sha256"]["gone.safetensors"] = "0" * 64
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        check_manifest(made, config)


def test_a_folder_without_record_gets_no_checksums(tmp_path):
    write_checksums(tmp_path)
    (tmp_path / "config.json").write_text('{"size": 3}')
    write_checksums(tmp_path)
    assert read_config(tmp_path) == {"size": 3}
