"""Load compact folders with other versions of transformers.

    python -m benchmarks.versions                     makes the environments (some 150 MB each) and tries all
    python -m benchmarks.versions --versions 5.4.0    one of them; nothing is written

Each environment has one version of transformers, a sentence-transformers that goes with it, all else from this one, and
not this package; the installed version is tried by the interpreter that runs this.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.measuring import RESULTS
from benchmarks.versions import loading
from benchmarks.versions.subjects import SUBJECTS, make_jobs

Row = dict[str, Any]

HERE = importlib.metadata.version("transformers")
VERSIONS = ("4.57.1", "5.0.0", "5.4.0", "5.10.4", "5.14.1", "5.20.0", HERE)
OUTPUT = RESULTS / "versions.jsonl"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "head-gating" / "versions"
# Largest relative difference of outputs that other kernels explain.
TOLERANCE = 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the versions, and record the outcomes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help="versions of transformers")
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        jobs, expected = make_jobs(Path(scratch), options.models)
        for version in options.versions:
            print(f"transformers {version}", flush=True)
            python = Path(sys.executable) if version == HERE else make_environment(version)
            rows += run_version(python, version, jobs, expected, Path(scratch))
    for row in rows:
        print(json.dumps(row))
    if tuple(options.versions) == VERSIONS and options.models == list(SUBJECTS):
        records.write(OUTPUT, rows)
    sys.exit(1 if any(row["outcome"] == "FAIL" for row in rows) else 0)


def make_environment(version: str) -> Path:
    """Return the interpreter of an environment with one version of transformers, which is made if there is none.

    Raises:
        subprocess.CalledProcessError: The packages cannot be installed.
    """
    place = CACHE / version
    python, done = place / "bin" / "python", place / "done"
    shared = sysconfig.get_path("purelib")
    if not done.exists() or done.read_text() != shared:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        (packages,) = place.glob("lib/python*/site-packages")
        # After those of its own, the packages of this environment; its .pth files, which name this one, do not count.
        (packages / "shared.pth").write_text(f"{shared}\n")
        # datasets is named since one that is here may need another huggingface_hub.
        wanted = [f"transformers=={version}", "sentence-transformers", "datasets"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.write_text(shared)
    return python


def run_version(python: Path, version: str, jobs: Row, expected: Row, scratch: Path) -> list[Row]:
    """Return a row for each model: which routes gave the answers of this environment, and the errors of the others."""
    questions, answers = scratch / "jobs.json", scratch / f"answers-{version}.json"
    questions.write_text(json.dumps(jobs))
    # The hub's cache holds the folders, and the network is not asked.
    environment = {**os.environ, "HF_HUB_CACHE": str(scratch / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment["HF_MODULES_CACHE"] = str(scratch / f"modules-{version}")
    command = [str(python), loading.__file__, str(questions), str(answers)]
    subprocess.run(command, check=True, env=environment, cwd=scratch)
    found = json.loads(answers.read_text())
    rows = []
    for name, routes in found["models"].items():
        row: Row = {"transformers": found["transformers"], "torch": found["torch"], "model": name}
        equal = {route: _is_equal(route, answer, expected[name].get(route)) for route, answer in routes.items()}
        errors = [answer["error"] for answer in routes.values() if "error" in answer]
        row["equal"] = [route for route, is_equal in equal.items() if is_equal]
        row["other"] = [route for route, is_equal in equal.items() if not is_equal and "error" not in routes[route]]
        row["errors"] = sorted(set(errors))
        row["outcome"] = _outcome(row, routes)
        rows.append(row)
    return rows


def _is_equal(route: str, answer: Row, expected: Any) -> bool:
    if "error" in answer:
        return False
    if route == "canary":
        return True
    found = answer["answer"]
    if route == "pipeline":
        # Versions of transformers put other spaces between words.
        found, expected = (str(one).replace(" ", "") for one in (found, expected))
    if route in ("tokens", "pipeline"):
        return bool(found == expected)
    largest = max(map(abs, expected))
    return max(abs(one - other) for one, other in zip(found, expected, strict=True)) <= TOLERANCE * largest


def _outcome(row: Row, routes: Row) -> str:
    """Return ``equal``, ``refused`` for the sentence about versions, ``noticed`` by the canary, or ``FAIL``."""
    if len(row["equal"]) == len(routes):
        return "equal"
    if all("error" in answer for answer in routes.values()) and "was saved with transformers" in row["errors"][0]:
        return "refused"
    return "noticed" if "canary" not in row["equal"] and not row["errors"][1:] else "FAIL"


def table(rows: Sequence[Row]) -> list[str]:
    """Return the table of the page: a line for each version, a column for each model."""
    shown: dict[str, Row] = {}
    for row in rows:
        shown.setdefault(row["transformers"], {"version": row["transformers"]})[row["model"]] = row["outcome"]
    columns = {"version": "transformers", **{name: subject.title for name, subject in SUBJECTS.items()}}
    return [records.markdown(shown.values(), columns)]


if __name__ == "__main__":
    main()
