"""Install the wheel beside the lowest, some middle and the newest packages, and try it there.

    python .ci/environments.py                     some ten minutes, and 15 GB in the folder for environments
    python .ci/environments.py --rows lowest

Each row of ROWS is an environment of its own, with the extras demo, embeddings and peft. .ci/installed.py is run in
each, in an empty folder; then each loads the folders that the others have made. Needs: uv, and the Pythons of the
rows, which uv looks for.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
EXTRAS = ("demo", "embeddings", "peft")


class Row(NamedTuple):
    """A Python, and what is installed there beside the wheel."""

    python: str
    resolution: str
    packages: tuple[str, ...] = ()


ROWS = {
    "lowest": Row("3.10", "lowest-direct"),
    "middle": Row("3.13", "highest", ("torch==2.8.*", "transformers==5.10.*")),
    "newest": Row("3.12", "highest"),
}


def main() -> int:
    """Make the environments, try them, and return the number of rows that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--environments", type=Path, help="folder for the environments; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        environments = (options.environments or Path(scratch) / "environments").resolve()
        subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", scratch, str(HERE.parent)], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        pythons = {name: make_environment(ROWS[name], environments / name, wheel) for name in options.rows}
        folders = [Path(scratch) / name for name in pythons]
        failed = {name for name, python in pythons.items() if run(name, python, "make", [Path(scratch) / name])}
        failed |= {name for name, python in pythons.items() if run(name, python, "load", folders)}
    print(f"failed: {', '.join(sorted(failed))}" if failed else f"all passed: {', '.join(pythons)}")
    return len(failed)


def make_environment(row: Row, place: Path, wheel: Path) -> Path:
    """Return the interpreter of an environment with the wheel."""
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", row.python, str(place)], check=True)
    install = ["uv", "pip", "install", "--quiet", "--python", str(python), "--resolution", row.resolution]
    # "lowest-direct" is for what is named, and the file names what the wheel needs.
    needs = ["-r", str(HERE.parent / "pyproject.toml"), *(f"--extra={extra}" for extra in EXTRAS)]
    subprocess.run([*install, *needs, *row.packages], check=True)
    subprocess.run([*install, f"head-gating[{','.join(EXTRAS)}] @ {wheel.as_uri()}"], check=True)
    return python


def run(name: str, python: Path, what: str, folders: list[Path]) -> int:
    """Run the other program in an empty folder, and return its exit status."""
    version = (
        "import platform, torch, transformers as t; print(platform.python_version(), torch.__version__, t.__version__)"
    )
    print(f"{name}, {what}: Python, torch, transformers", flush=True)
    subprocess.run([str(python), "-c", version], check=True)
    for folder in folders:
        folder.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as empty:
        environment["HF_MODULES_CACHE"] = empty
        command = [str(python), str(HERE / "installed.py"), what, *map(str, folders)]
        return subprocess.run(command, check=False, env=environment, cwd=empty).returncode


if __name__ == "__main__":
    sys.exit(main())
