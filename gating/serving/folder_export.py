"""What exports to folders share: refusals, loading, the replacement of an earlier export, and the size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from gating.serving.opening import Exportable, load_model, source_of
from gating.serving.refusals import check_supported
from gating.storage.folders import check_replaceable, replacing_folder
from gating.storage.results import ResultKind

__all__ = ["export_kind", "exporting", "megabytes_of"]


def export_kind(is_export: Callable[[Path], bool]) -> ResultKind:
    """Return the kind of folders that an export may replace, by a function that recognizes them."""
    return ResultKind("export", is_export, in_command="--overwrite")


@contextmanager
def exporting(
    model_or_directory: Exportable, place: Path, *, kind: ResultKind, overwrite: bool, format: str | None = None
) -> Iterator[tuple[PreTrainedModel, Path | None, Path]]:
    """Load a model, and yield it with its folder, if any, and a new folder that becomes the export.

    After an error in the block, nothing is written.

    Args:
        model_or_directory: A compact model, its folder, or its name on the hub.
        place: Folder of the export.
        kind: Kind of export that may be replaced.
        overwrite: Whether it may be.
        format: Format whose runtime has to run the model; None if it runs any.

    Raises:
        TypeError: The model is not one of transformers.
        ValueError: The runtime does not run the model, or the model is not ready to be exported.
        FileExistsError: The folder is not empty and ``overwrite`` is false, or it is not an earlier export.
    """
    keep = [source_of(model_or_directory)]
    # It is checked again when it is replaced; loading a model may take long.
    check_replaceable(place, overwrite=overwrite, kind=kind, keep=keep)
    model, origin = load_model(model_or_directory)
    if format is not None:
        check_supported(format, model)
    with replacing_folder(place, overwrite=overwrite, kind=kind, keep=keep) as folder:
        yield model, origin, folder


def megabytes_of(folder: Path) -> float:
    """Return the size of all files of a folder, in millions of bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
