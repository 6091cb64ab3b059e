"""Checkpoints of sharded runs: whole or not there, and runs that go on from them to the bit."""

import errno
import pickle
from pathlib import Path

import pytest
import torch

from benchmarks.faults.outcome import Outcome
from gating.errors import InputError
from gating.training.checkpoints import _is_finite, why_unusable
from gating.training.shards import damage_of, load_shards, read_metadata, save_shards
from tests.support.in_ranks import run_in_ranks
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
    left = sorted(int(path.stem.partition("-")[2]) for path in folder.glob("step-*.ckpt"))
    assert left == steps
    assert all(why_unusable(path) is None for path in folder.glob("step-*.ckpt"))
    said = run_in_ranks(fit, settings, tmp_path)[0]
    assert said.count(resumes) == 1
    comparison = Outcome.of(whole).compare(Outcome.of(tmp_path / "out"))
    assert all(comparison.values()), comparison
    assert not list((tmp_path / "out" / "checkpoints").rglob(".step-*"))


def test_damage_is_noticed_and_the_run_goes_back(settings, whole, tmp_path):
    with pytest.raises(AssertionError):
        run_in_ranks(fit, settings, tmp_path, "1 batch 7")
    last = tmp_path / "out" / "checkpoints" / "search" / "step-6.ckpt"
    for path in sorted(last.iterdir()):
        intact = path.read_bytes()
        flipped = bytearray(intact)
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
        # Processes share the work: only one of them can tell which file it is.
        reasons = [why_unusable(last, part=part, num_parts=2) for part in (0, 1)]
        assert any(reasons), path
        assert why_unusable(last) is not None, path
        path.write_bytes(intact)
    assert why_unusable(last) is None
    (last / "__1_0.distcp").write_bytes(flipped)
    said = run_in_ranks(fit, settings, tmp_path)[0]
    assert "step-5.ckpt" in said
    assert all(Outcome.of(whole).compare(Outcome.of(tmp_path / "out")).values())


def test_a_parameter_without_gradient_is_no_obstacle(settings, tmp_path):
    with pytest.raises(AssertionError):
        run_in_ranks(fit, settings, tmp_path, "1 batch 7", True, True)
    said = run_in_ranks(fit, settings, tmp_path, "", True, True)[0]
    assert "search resumes from" in said


def test_another_number_of_processes_is_refused(settings, tmp_path):
    with pytest.raises(AssertionError):
        run_in_ranks(fit, settings, tmp_path, "1 batch 4")
    again = [*(one for one in settings if "devices" not in one), "trainer.devices=3"]
    with pytest.raises(AssertionError, match=r"trainer\.devices=2, and this command trainer\.devices=3"):
        run_in_ranks(fit, again, tmp_path, num_ranks=3)


def _state(value: float) -> dict:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    shard = distribute_tensor(torch.full((5, 2), value), mesh, [Shard(0)])
    return {"weights": {"a": shard, "whole": torch.tensor([value])}}


def save_on_a_full_disk(folder: Path, which: int, name: str) -> list[object]:
    from gating.training import shards

    path = folder / "step-1.ckpt"
    save_shards(path, _state(1.0), {"phase": folder.name})
    before = sorted((file.name, file.read_bytes()) for file in path.iterdir())
    wrapped = getattr(shards, name)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if torch.distributed.get_rank() == which:
        setattr(shards, name, fail)
    try:
        save_shards(path, _state(2.0), {"phase": folder.name})
        said = ""
    except OSError as error:
        said = str(error)
    setattr(shards, name, wrapped)
    state = _state(0.0)
    load_shards(path, state)
    is_same = before == sorted((file.name, file.read_bytes()) for file in path.iterdir())
    left = [file.name for file in folder.iterdir()]
    return [said, is_same, left, state["weights"]["a"].full_tensor().tolist(), state["weights"]["whole"].item()]


@pytest.mark.parametrize(("which", "name"), [(0, "_flush_and_hash"), (1, "_flush_and_hash"), (0, "_flush")])
def test_on_a_full_disk_the_earlier_checkpoint_stays(which, name, tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    values = run_in_ranks(save_on_a_full_disk, folder, which, name)
    for said, is_same, left, weights, whole in values:
        assert "step-1.ckpt cannot be written (No space left on device); earlier checkpoints stay" in said
        assert is_same
        assert left == ["step-1.ckpt"]
        assert weights == [[1.0, 1.0]] * 5
        assert whole == 1.0
    assert damage_of(folder / "step-1.ckpt") is None
    assert read_metadata(folder / "step-1.ckpt") == {"phase": "search"}


class Foreign:
    """Something that would run code as it is unpickled."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code was run')",)


def load_foreign(folder: Path, place: str) -> str:
    path = folder / "step-1.ckpt"
    state = _state(1.0)
    if place == "value":
        # Torch saves a value that is no tensor as a pickle in the file of a process.
        state["weights"]["number"] = Foreign()
    save_shards(path, state, {"phase": folder.name})
    torch.distributed.barrier()
    if place == "index" and torch.distributed.get_rank() == 0:
        (path / ".metadata").write_bytes(pickle.dumps(Foreign()))
    torch.distributed.barrier()
    wanted = _state(0.0)
    if place == "value":
        wanted["weights"]["number"] = 0
    try:
        load_shards(path, wanted)
    except InputError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("place", ["index", "value"])
def test_no_code_in_a_checkpoint_is_run(place, tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    for said in run_in_ranks(load_foreign, folder, place):
        assert "step-1.ckpt cannot be loaded" in said


def look_for_nan() -> list[bool]:
    from torch import nn

    module = nn.ParameterDict(_state(1.0)["weights"])
    answers = [_is_finite(module)]
    if torch.distributed.get_rank() == 1:
        module["a"].detach().to_local().fill_(float("nan"))
    return [*answers, _is_finite(module)]


def test_all_processes_see_the_same_if_one_shard_is_not_finite():
    assert run_in_ranks(look_for_nan) == [[True, False], [True, False]]
