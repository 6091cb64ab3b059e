"""Checkpoints of sharded runs: whole or not there, and runs that go on from them to the bit."""

import errno
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from gating.training.checkpoints import (
    _is_finite,
    load_own_state,
    load_shards,
    read_checkpoint,
    save_shards,
    why_unusable,
)
from tests.support.in_ranks import run_in_ranks
from tests.support.outcome import Outcome
from tests.support.sharded_runs import fit, sharded
from tests.support.tiny_run import make_inputs

pytestmark = pytest.mark.processes

EVERY_STEP = ["callbacks.checkpoint.every_n_steps=1", "resume=auto"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the settings of a run with random gates and dropout, of 9 steps of search and 3 of recovery."""
    return [*make_inputs(tmp_path_factory.mktemp("inputs")), *sharded(2), *EVERY_STEP]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_in_ranks(fit, settings, folder)
    return folder / "out"


PLACES = {
    # Rank, place and number: checkpoints that are left, and the phase that resumes.
    "1 batch 7": ("search", [5, 6], "search resumes from"),
    "0 write 7": ("search", [2, 3], "search resumes from"),
    "1 write 5": ("search", [3, 4], "search resumes from"),
    "1 removal": ("search", [8, 9], "search resumes from"),
    "0 batch 11": ("recovery", [10], "recovery resumes from"),
    "0 export": ("recovery", [11, 12], "recovery resumes from"),
}
IN_CI = ("0 write 7", "1 removal", "0 batch 11")


@pytest.mark.parametrize("happens", [pytest.param(x, marks=() if x in IN_CI else pytest.mark.slow) for x in PLACES])
def test_a_killed_process_leaves_checkpoints_from_which_the_run_goes_on(happens, settings, whole, tmp_path):
    phase, steps, resumes = PLACES[happens]
    with pytest.raises(AssertionError):
        run_in_ranks(fit, settings, tmp_path, happens)
    folder = tmp_path / "out" / "checkpoints" / phase
    whole_ones = [path for path in folder.glob("step-*.ckpt") if why_unusable(path) is None]
    assert sorted(int(path.stem.partition("-")[2]) for path in whole_ones) == steps
    said = run_in_ranks(fit, settings, tmp_path)[0]
    assert said.count(resumes) == 1
    comparison = Outcome.of(whole).compare(Outcome.of(tmp_path / "out"))
    assert all(comparison.values()), comparison
    assert not list((tmp_path / "out" / "checkpoints").rglob(".step-*"))


def test_damage_is_noticed_and_the_run_goes_back(settings, whole, tmp_path):
    with pytest.raises(AssertionError):
        run_in_ranks(fit, settings, tmp_path, "1 batch 7")
    last = tmp_path / "out" / "checkpoints" / "search" / "step-6.ckpt"
    assert {path.name for path in last.iterdir()} == {"meta.pt", "rank-0.pt", "rank-1.pt"}
    for path in last.iterdir():
        intact = path.read_bytes()
        path.write_bytes(intact[: len(intact) // 2])
        assert why_unusable(last) is not None, path
        path.write_bytes(intact)
    assert why_unusable(last) is None
    (last / "rank-1.pt").unlink()
    said = run_in_ranks(fit, settings, tmp_path)[0]
    assert "step-5.ckpt" in said
    assert all(Outcome.of(whole).compare(Outcome.of(tmp_path / "out")).values())


def test_another_number_of_processes_is_refused(settings, tmp_path):
    with pytest.raises(AssertionError):
        run_in_ranks(fit, settings, tmp_path, "1 batch 4")
    again = [*(one for one in settings if "devices" not in one), "trainer.devices=3"]
    with pytest.raises(AssertionError, match=r"command trainer\.devices=3"):
        run_in_ranks(fit, again, tmp_path, num_ranks=3)


def _state(value: float) -> dict:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    shard = distribute_tensor(torch.full((5, 2), value), mesh, [Shard(0)])
    return {"weights": {"a": shard, "whole": torch.tensor([value])}}


def save_on_a_full_disk(folder: Path, name: str) -> list[object]:
    from gating.training import checkpoints

    path = folder / "step-1.ckpt"
    save_shards(path, _state(1.0), {"phase": folder.name})

    def fail(values: object, file: Path) -> None:
        if file.name.startswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(values, file)

    write, checkpoints.write_checkpoint = checkpoints.write_checkpoint, fail
    try:
        save_shards(folder / "step-2.ckpt", _state(2.0), {"phase": folder.name})
        said = ""
    except OSError as error:
        said = str(error)
    weights = nn.ParameterDict(_state(0.0)["weights"])
    load_own_state(weights, load_shards(path)["weights"])
    return [said, weights["a"].full_tensor().tolist(), weights["whole"].item()]


@pytest.mark.parametrize("name", ["rank", "meta"])
def test_on_a_full_disk_the_earlier_checkpoint_stays(name, tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    first, second = run_in_ranks(save_on_a_full_disk, folder, name)
    assert "No space left" in first[0]
    # Rank 0 alone writes what makes a checkpoint whole; the others end with it.
    assert ("No space left" in second[0]) == (name == "rank")
    for _, weights, whole in (first, second):
        assert weights == [[1.0, 1.0]] * 5
        assert whole == 1.0
    assert why_unusable(folder / "step-1.ckpt") is None
    assert read_checkpoint(folder / "step-1.ckpt")["phase"] == "search"
    assert why_unusable(folder / "step-2.ckpt")


class Foreign:
    """Something that would run code as it is unpickled."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code was run')",)


def load_foreign(folder: Path) -> str:
    path = folder / "step-1.ckpt"
    save_shards(path, {**_state(1.0), "number": Foreign()}, {"phase": folder.name})
    torch.distributed.barrier()
    try:
        load_shards(path)
    except pickle.UnpicklingError as error:
        return str(error)
    return "no error"


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    folder = tmp_path / "search"
    for said in run_in_ranks(load_foreign, folder):
        assert "Weights only load failed" in said


def look_for_nan() -> list[bool]:
    module = nn.ParameterDict(_state(1.0)["weights"])
    answers = [_is_finite(module)]
    if torch.distributed.get_rank() == 1:
        module["a"].detach().to_local().fill_(float("nan"))
    return [*answers, _is_finite(module)]


def test_all_processes_see_the_same_if_one_shard_is_not_finite():
    assert run_in_ranks(look_for_nan) == [[True, False], [True, False]]
