"""Damaged and foreign checkpoints are detected, and code in them is not run."""

import os
import pickle
import random
import zipfile
from types import SimpleNamespace

import pytest
import torch

from gating.storage.files import checkpoint_path, found_checkpoints
from gating.training.checkpoints import (
    AtomicCheckpointIO,
    RunCheckpoint,
    read_checkpoint,
    why_unusable,
)

CHECKPOINT = {"phase": "search", "weights": {"w": torch.arange(5000.0)}, "steps": 3, "names": ["a", "b"]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "search" / "step-3.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    return path


def test_saved_checkpoints_are_loaded(path):
    assert why_unusable(path) is None
    back = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(back["weights"]["w"], CHECKPOINT["weights"]["w"])
    assert (back["steps"], back["names"]) == (3, ["a", "b"])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_a_truncated_checkpoint_is_unusable(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert why_unusable(path)


@pytest.mark.parametrize("content", [{}, {"x": 1}, [1], torch.zeros(2), {"phase": "recovery"}])
def test_content_other_than_a_checkpoint_of_the_phase_is_unusable(path, content):
    torch.save(content, path)
    assert why_unusable(path)


def test_another_archive_is_unusable(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    assert why_unusable(path)


def test_flipped_bits_are_detected_or_harmless(path):
    """Some bytes of a zip archive are redundant."""
    data, chance = path.read_bytes(), random.Random(0)
    num_detected = 0
    for _ in range(200):
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :])
        if why_unusable(path):
            num_detected += 1
        else:
            assert torch.equal(read_checkpoint(path)["weights"]["w"], CHECKPOINT["weights"]["w"]), place
    assert num_detected > 150


def test_a_missing_checkpoint_is_unusable(tmp_path):
    assert "No such file" in why_unusable(tmp_path / "step-1.ckpt")


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": _Harmful()}, "step-1.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(tmp_path / "step-1.ckpt")
    assert not (tmp_path / "harm").exists()


def test_the_latest_checkpoint_comes_first(tmp_path):
    for step in (9, 100, 20):
        checkpoint_path(tmp_path, step).touch()
    for other in ("step-3.txt", "step-x.ckpt", "hpc_ckpt_1.ckpt", "last.ckpt", ".step-200.ckpt.17.new"):
        (tmp_path / other).touch()
    assert found_checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (100, 20, 9)]
    assert found_checkpoints(tmp_path / "nowhere") == []


def test_ten_minutes_after_the_last_checkpoint_there_is_one(monkeypatch, tmp_path):
    now, saved = [0.0], []
    monkeypatch.setattr("gating.training.checkpoints.time.monotonic", lambda: now[0])
    monkeypatch.setattr(RunCheckpoint, "_save", lambda self, trainer, _: saved.append(trainer.global_step))
    trainer, callback = SimpleNamespace(global_step=0, default_root_dir=str(tmp_path)), RunCheckpoint()
    callback.setup(trainer, None, "fit")
    callback.on_train_start(trainer, None)
    for step, seconds in ((1, 599.0), (2, 601.0)):
        trainer.global_step, now[0] = step, seconds
        callback.on_train_batch_start(trainer, None)
    assert saved == [2]
