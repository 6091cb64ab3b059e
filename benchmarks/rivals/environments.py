"""The packages that only a comparison needs, each in a folder of its own under ~/.cache/head-gating.

Nothing is installed beside this package: torch-pruning would be one more dependency for everybody, and transformers 4
cannot be where transformers 5 is.
"""

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import venv
from pathlib import Path

import torch

__all__ = ["Unavailable", "torch_pruning_version", "transformers4_python"]

CACHE = Path.home() / ".cache" / "head-gating"
TORCH_PRUNING = "1.6.1"
TRANSFORMERS4 = "transformers<5"


class Unavailable(Exception):  # noqa: N818  (it says what is the case, and is no error of ours)
    """A package to compare with is not here and cannot be installed; the text is one sentence."""


def torch_pruning_version(*, install: bool) -> str:
    """Make ``torch_pruning`` importable, and return its version.

    Args:
        install: Whether it may be installed, without its dependencies: they are torch and numpy.

    Raises:
        Unavailable: It is not here.
    """
    folder = CACHE / f"torch-pruning-{TORCH_PRUNING}"
    if importlib.util.find_spec("torch_pruning") is None:
        if not (folder / "torch_pruning").is_dir():
            _require("torch-pruning", install)
            _pip(
                "torch-pruning",
                sys.executable,
                ["--no-deps", "--target", str(folder), f"torch-pruning=={TORCH_PRUNING}"],
            )
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    return importlib.metadata.version("torch-pruning")


def transformers4_python(folder: Path | None, *, install: bool) -> tuple[str, str]:
    """Return the interpreter of a virtual environment with transformers 4, and the version it has.

    Args:
        folder: The environment; one in the cache when left out.
        install: Whether it may be made, with the release of torch that is used here.

    Raises:
        Unavailable: It is not here.
    """
    folder = folder or CACHE / "transformers4"
    python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    version = _version_of_transformers(python)
    if version is None:
        _require("transformers 4", install)
        print(f"Installing transformers 4 into {folder} ...", file=sys.stderr)
        _make(folder)
        _pip("transformers 4", python, [TRANSFORMERS4, f"torch=={torch.__version__.partition('+')[0]}"])
        version = _version_of_transformers(python)
    if version is None or not version.startswith("4."):
        raise Unavailable(f"transformers 4 is left out: {folder} has {version or 'none'}.")
    return python, version


def _make(folder: Path) -> None:
    if folder.exists() and not (folder / "pyvenv.cfg").exists():
        raise Unavailable(f"transformers 4 is left out: {folder} is there and no virtual environment.")
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"transformers 4 is left out: {folder} cannot be made ({error}).") from error


def _version_of_transformers(python: str) -> str | None:
    """Return None where it or torch is missing, be it that an installation was interrupted."""
    script = "from importlib.metadata import version as v; v('torch'); print(v('transformers'))"
    command = [python, "-c", script]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _require(name: str, install: bool) -> None:
    if not install:
        raise Unavailable(f"{name} is left out: it is not in {CACHE}, and it was not to be installed.")


def _pip(name: str, python: str, arguments: list[str]) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise Unavailable(f"{name} is left out: pip cannot install it here ({lines[-1].strip()}).")
