"""Census of the model types of transformers: which lose heads and neurons exactly, which are refused, and why.

    python -m benchmarks.census                        # all model types; about half an hour with two processes
    python -m benchmarks.census --only bert qwen2_vl   # some of them, printed and not stored

For each type, a tiny model with random parameters is built from its configuration. Heads of random, uneven patterns are
removed by the registry, and by discovery where that finds more; outputs and generated tokens are compared with those of
the masked model; neurons likewise; and a compact model is saved and loaded by transformers alone in a fresh process.
Results are appended to benchmarks/results/census.jsonl; types that are there already are not examined again.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from benchmarks import records
from benchmarks.census.models import model_types
from benchmarks.census.page import PAGE, coverage
from benchmarks.census.removal import BATCH, EXACT
from benchmarks.measuring import RESULTS, ROOT

OUTPUT = RESULTS / "census.jsonl"
# Types examined in one process: starting it takes as long as a few of them.
_CHUNK = 12
_SECONDS_EACH = 180


def main() -> None:
    """Examine model types, store the results, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.census", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="examine these types and print the results")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.only:
        for row in examine_types(arguments.only):
            print(json.dumps(row))
        return
    _run(jobs=arguments.jobs)
    PAGE.write_text(coverage(records.read(OUTPUT)), encoding="utf-8")


def _run(*, jobs: int) -> None:
    """Examine all types that have no result with this version of transformers, and store the results by type."""
    before = {row["model_type"]: row for row in records.read(OUTPUT)}
    kept = [row for row in before.values() if row["transformers"] == transformers.__version__]
    _store(kept)
    left = [one for one in model_types() if one not in {row["model_type"] for row in kept}]
    chunks = [left[start : start + _CHUNK] for start in range(0, len(left), _CHUNK)]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(left), unit="type") as bar:
        for rows in pool.map(examine_types, chunks):
            for row in rows:
                records.append(OUTPUT, row)
                if change := _change(before.get(row["model_type"]), row):
                    bar.write(change)
            bar.update(len(rows))
    _store(records.read(OUTPUT))


def _store(rows: Sequence[dict[str, Any]]) -> None:
    """Write results in the order of types, so that a new version of transformers shows as a difference of lines."""
    records.write(OUTPUT, sorted(rows, key=lambda row: row["model_type"]))


def _change(before: dict[str, Any] | None, row: dict[str, Any]) -> str | None:
    """Return one line about an outcome that was another before, or None."""
    if before is None or (before["outcome"], before.get("by")) == (row["outcome"], row.get("by")):
        return None
    was, now = (f"{one['outcome']} by {one['by']}" if "by" in one else one["outcome"] for one in (before, row))
    return f"{row['model_type']}: {was} with {before['transformers']}, now {now}. {row.get('reason', '')}".strip()


def examine_types(names: Sequence[str]) -> list[dict[str, Any]]:
    """Examine model types in a process of their own, reload their compact models in another, and return the results."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as parent:
        rows = _run_worker("benchmarks.census.case", "EXAMINED", [parent, *names])
        found = {row["model_type"]: row for row in rows}
        for name in names:
            # The process was killed, by a limit of memory or time.
            ended = {"outcome": "not run", "reason": "its process ended early"}
            found.setdefault(name, {"model_type": name, "model_class": model_types()[name][0], **ended})
        saved = [str(batch.parent) for batch in sorted(Path(parent).glob(f"*/*/*/*/{BATCH}"))]
        for one in _run_worker("benchmarks.census.reload", "RELOADED", saved) if saved else []:
            row = found[Path(one["folder"]).parts[-4]]
            difference = one.get("difference", math.inf)
            row["reload_difference"] = max(difference, row.get("reload_difference", 0.0))
            if not difference <= EXACT:
                reason = one.get("reason") or f"outputs differ by {difference:.1e}"
                row |= {"outcome": "wrong", "reason": f"loaded in a fresh process: {reason}"}
    return [{**found[name], **versions} for name in names]


def _run_worker(module: str, marker: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Run a module in a process and return the JSON of its lines that begin with a marker."""
    try:
        result = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=_SECONDS_EACH * len(arguments),
            check=False,
        )
        printed = result.stdout
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    lines = [line.removeprefix(marker) for line in printed.splitlines() if line.startswith(marker)]
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
