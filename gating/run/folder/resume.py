"""A run that is resumed: which one, with the same settings, from its own files, at its last or a named checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from gating.errors import FolderExistsError, InputError
from gating.run.folder.checkpoints import owner_of, remove_noted
from gating.run.folder.contents import CHECKPOINTS, CONFIG, TEACHER, Phase, RunPaths, is_run
from gating.run.folder.effect import has_effect
from gating.run.folder.own_files import check_compact, check_links, check_teacher, check_written, remove_model
from gating.run.folder.state import is_finished, owned_by_other_process
from gating.run.folder.stored_settings import (
    MEASURED,
    local_places,
    read_settings_of,
    with_absolute_paths,
    with_values,
)
from gating.storage.atomic import write_atomically
from gating.storage.folders import is_inside
from gating.storage.same_settings import check_same_settings, find_difference, leaves
from gating.storage.written import WRITTEN, written_in
from gating.tracking.redaction import redact_settings
from gating.training.checkpoints import (
    found_checkpoints,
    note_checkpoint,
    recorded_checkpoints,
    remove_checkpoint,
    why_unusable,
)

__all__ = ["check_own_files", "check_resumed", "find_run", "named_run", "note_moved", "return_to"]

# Callbacks of Lightning that change what is trained, or when it ends; those made from them do, too.
_DECIDING_CALLBACKS = ("EarlyStopping", "StochasticWeightAveraging", "WeightAveraging", "GradientAccumulationScheduler")


def find_run(settings: Mapping[str, Any], *, has_own_folder: bool) -> Path | None:
    """Return the folder of the run to resume; None to begin a new one.

    A folder of its own is one that the command names: the default of ``output_dir`` contains the time.

    Raises:
        FolderExistsError: ``output_dir`` holds an unfinished run, without ``resume``.
        InputError: The folder holds no run, or a setting differs from the run's.
    """
    place, resume, ckpt_path = Path(settings["output_dir"]), settings["resume"], settings["ckpt_path"]
    if resume is None and ckpt_path is None:
        if has_own_folder and is_run(place) and not is_finished(place) and not settings["overwrite"]:
            raise FolderExistsError(
                f"output_dir={place} holds an unfinished run. Pass resume=auto to resume it, or overwrite=true to "
                "begin again."
            )
        return None
    if resume == "auto" and ckpt_path is None:
        if not is_run(place):
            return None if has_own_folder else _latest_like(settings, place.parent.parent)
        folder = place
    else:
        folder = named_run(resume, ckpt_path)
        if has_own_folder and place.absolute() != folder.absolute():
            raise InputError(f"The run to resume is in {folder}, and output_dir={place}: leave output_dir out.")
    stored = read_settings_of(folder)
    # What is in files and folders is compared by its content, since they may have moved.
    given = dict(leaves(stored))
    moved = {n: str(path) for n, path in local_places(settings).items() if Path(str(given.get(n))).is_absolute()}
    before, now = _comparable(with_values(stored, moved), settings)
    check_same_settings(
        before,
        now,
        stored=f"The run in {folder} has",
        present="this command",
        remedy="Leave it unchanged, or begin another run in another output_dir.",
    )
    return folder


def named_run(resume: str | None, ckpt_path: str | None) -> Path:
    """Return the folder of the run that its name or a checkpoint identifies.

    Raises:
        InputError: There is no such run.
    """
    if ckpt_path is None:
        return Path(str(resume))
    checkpoint = Path(ckpt_path)
    if not checkpoint.exists():
        raise InputError(f"ckpt_path={checkpoint}: there is no such file or folder.")
    folder = next((parent for parent in checkpoint.parents if is_run(parent)), None)
    if folder is None:
        raise InputError(f"ckpt_path={checkpoint} is not in the folder of a run, from which its settings are read.")
    if resume not in (None, "auto") and Path(str(resume)).absolute() != folder.absolute():
        raise InputError(
            f"ckpt_path={checkpoint} is not a checkpoint of the run in resume={resume}: leave one of them out."
        )
    return folder


def _latest_like(settings: Mapping[str, Any], outputs: Path) -> Path | None:
    """Return the latest unfinished run with these settings, secrets aside, that no other process trains."""
    for folder in sorted(outputs.glob("*/*"), reverse=True):
        if not is_run(folder) or is_finished(folder):
            continue
        try:
            before, now = _comparable(read_settings_of(folder), settings)
        except ValueError:
            continue  # A damaged run cannot be compared.
        if find_difference(before, now) is None and not owned_by_other_process(folder):
            return folder
    return None


def _comparable(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return those of the stored and the given settings, by dotted names, that must not differ."""
    # Secrets are not stored.
    old, new = dict(leaves(before)), dict(leaves(redact_settings(with_absolute_paths(now))))
    # A measured budget is not compared: another measurement could differ a little.
    is_measured = new.get("objective.cost") == "latency" and any(name.startswith("objective.cost.") for name in old)
    measured = ["objective.cost"] if is_measured else []
    if new.get("objective.speedup") is not None:
        measured = [f"objective.{name}" for name in MEASURED]
    free = [name for name in old | new if not has_effect(name, on="results") or name.startswith(tuple(measured))]
    left_out = set(free) - _of_deciding_callbacks(before) - _of_deciding_callbacks(now)
    names = sorted((old | new).keys() - left_out)
    return {name: old.get(name) for name in names}, {name: new.get(name) for name in names}


def _of_deciding_callbacks(settings: Mapping[str, Any]) -> set[str]:
    """Return the names of the settings of callbacks that change the training or its end."""
    names = set()
    for name, callback in (settings.get("callbacks") or {}).items():
        target = str(callback.get("_target_")) if isinstance(callback, Mapping) else ""
        if _class_names(target).intersection(_DECIDING_CALLBACKS):
            names |= {f"callbacks.{name}.{key}" for key, _ in leaves(callback)} - {f"callbacks.{name}.verbose"}
    return names


def _class_names(target: str) -> set[str]:
    """Return the names of a class and of those that it is made from; of one that cannot be imported, its own."""
    try:
        bases = getattr(get_object(target), "__mro__", ())
    except Exception:  # Whatever a module of a user raises; building the callback says so.
        bases = ()
    return {target.rpartition(".")[2], *(base.__name__ for base in bases)}


def check_resumed(paths: RunPaths, *, settings: Mapping[str, Any]) -> None:
    """Check that a resumed run reads and replaces only its own files, without writing.

    Raises:
        InputError: A checkpoint, file or model is not one that the run has recorded, or a link out of its folder.
        FolderExistsError: The folder of its compact model holds other files.
    """
    folder, checkpoints = paths.folder, paths.checkpoints
    check_links(folder, checkpoints)
    if not is_inside(checkpoints, folder):
        before, owner = read_settings_of(folder)["paths"]["checkpoints"], owner_of(checkpoints)
        if checkpoints.resolve() != Path(before).resolve():
            raise InputError(
                f"The run in {folder} has its checkpoints in {before}, and this command paths.checkpoints="
                f"{checkpoints}: leave it unchanged, or move them into the run's folder."
            )
        if owner is not None and not owner.samefile(folder):
            inside = folder / CHECKPOINTS
            raise InputError(
                f"paths.checkpoints={checkpoints} are those of the run in {owner}, of which {folder} is a copy: resume "
                f"that one, or copy them to {inside} and give paths.checkpoints={inside}."
            )
    check_own_files(folder)
    # A checkpoint that the command names may be one of a backup.
    known = {Path(settings["ckpt_path"]).resolve()} if settings["ckpt_path"] else set()
    for phase in (checkpoints / phase for phase in Phase):
        own = recorded_checkpoints(phase)
        for path in (path for path in found_checkpoints(phase) if path not in own and path.resolve() not in known):
            raise InputError(
                f"{path} is not recorded as a checkpoint of this run, which might replace it: move it away. If the run "
                f"has written it, go on from it with ckpt_path={path}"
            )


def check_own_files(folder: Path) -> None:
    """Check that a resumed run would replace only files and models that it has recorded.

    Raises:
        InputError: A file or model in the place of one of the run's was not written by it, or there is no record.
        FolderExistsError: The folder of its compact model holds other files.
    """
    written = written_in(folder)
    if written is None:
        raise InputError(
            f"{folder / WRITTEN} is missing, the record of the files that the run has written: restore it, or begin "
            "another run in another output_dir."
        )
    check_written(folder, written, "the run would overwrite it", remedy="Move it away.")
    check_compact(folder, remedy="Move it away.")


def return_to(checkpoint: Path, folder: Path, checkpoints: Path) -> None:
    """Make a checkpoint the last one of a run: remove everything written after it."""
    phase = checkpoint.resolve().parent
    found = found_checkpoints(phase)
    if phase.parent != checkpoints.resolve() or phase.name not in list(Phase) or checkpoint.resolve() not in found:
        raise InputError(
            f"ckpt_path={checkpoint} is not a checkpoint of this run; checkpoints are "
            f"{checkpoints / 'PHASE' / 'step-N.ckpt'}."
        )
    wrong = why_unusable(checkpoint)
    if wrong is not None:
        raise InputError(f"ckpt_path={checkpoint} is damaged ({wrong}); resume=auto takes the last undamaged one.")
    if phase.name == Phase.TEACHER:
        check_teacher(folder, remedy="Move it away.")
    # It may be from a backup.
    note_checkpoint(checkpoint.resolve())
    for later in set(found[: found.index(checkpoint.resolve())]).intersection(recorded_checkpoints(phase)):
        remove_checkpoint(later)
    remove_noted(checkpoints, after=Phase(phase.name))
    if phase.name == Phase.TEACHER:
        remove_model(folder / TEACHER)


def note_moved(folder: Path, settings: Mapping[str, Any]) -> None:
    """Store the places from which a resumed run reads its data, model and teacher, where they have changed."""
    stored = read_settings_of(folder)
    before = dict(leaves(stored))
    moved = {name: str(path) for name, path in local_places(settings).items() if before.get(name) != str(path)}
    if moved:
        write_atomically(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(with_values(stored, moved))))
