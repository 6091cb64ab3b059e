"""The embedded example as docs/accuracy.md shows it: three commands, each with several seeds.

    python -m benchmarks.example                    five seeds of each, one run after the other on all cores
    python -m benchmarks.example --seeds 0 --jobs 2

Results are lines of a file of JSON lines, runs that are in it are not repeated; `python -m benchmarks.page` writes the
the table there.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.compare.outcome import Row, headline
from benchmarks.compare.paired import difference
from benchmarks.compare.runs import train
from benchmarks.measuring import RESULTS, machine
from gating.report.rows import quotient, show_number

OUTPUT = RESULTS / "embedded.jsonl"
DENSE = "objective=none"
# Settings after `make train`.
COMMANDS = (DENSE, "", "gates.units=[heads,neurons] objective.speedup=2")
TITLES = {DENSE: "dense: `make train ARGS=objective=none`", "": "`make train`"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run missing commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="(default: 0 1 2 3 4)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the cores (default: 1)")
    parser.add_argument("--results", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    done = {(row["command"], row["seed"]) for row in records.read(options.results)}
    missing = [(command, seed) for seed in options.seeds for command in COMMANDS if (command, seed) not in done]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda job: run(*job, threads=threads), missing):
            records.append(options.results, row)
            print(f"{title(row['command'])}, seed {row['seed']}: {headline(row):.4f}", flush=True)
    print("\n".join(table(records.read(options.results))))


def run(command: str, seed: int, *, threads: int) -> dict[str, Any]:
    """Run `make train` with settings and a seed, and return the outcome."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*command.split(), "logger=csv", "callbacks=none", f"seed={seed}"]
        numbers = train(settings, Path(folder) / "run", threads=threads)
    return {**machine(), "command": command, **numbers, "threads": threads}


def title(command: str) -> str:
    """Return the command as a user types it."""
    return TITLES.get(command, f"`make train ARGS='{command}'`")


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table of means, and the conditions of the runs."""
    scores = _scores(rows)
    lines = []
    for command in COMMANDS:
        runs = [row for row in rows if row["command"] == command]
        if not runs:
            continue
        # The dense model is timed in turns with the compact one, in the same run.
        medians = (statistics.median(row[name] for row in runs) for name in ("latency_ms_before", "latency_ms"))
        before, after = (show_number(median, 3) for median in medians)
        change = None if command == DENSE else difference(scores[command], scores[DENSE])
        mean = f"{statistics.mean(scores[command].values()):.2f} %"
        lines.append(
            {
                "": title(command),
                "heads": _mean(runs, "num_heads"),
                "neurons": _mean(runs, "num_neurons"),
                "parameters": _mean(runs, "num_parameters"),
                "test accuracy (change from dense)": mean + (f" ({change})" if change else ""),
                "forward pass": f"{before} to {after} ms, {quotient(before, after):.2f}x" if change else f"{after} ms",
            }
        )
    return [records.markdown(lines), "", _conditions(rows)]


def _scores(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Return the test accuracy in percent of each command and seed."""
    return {
        command: {row["seed"]: 100 * headline(row) for row in rows if row["command"] == command} for command in COMMANDS
    }


def _conditions(rows: Sequence[Row]) -> str:
    batches = " or ".join(sorted({row["latency_words"] for row in rows}))
    return f"{rows[0]['cpu']}, {rows[0]['threads']} thread(s), {batches}, {len({row['seed'] for row in rows})} seed(s)."


def _mean(rows: Sequence[Row], name: str) -> str | None:
    values = [row[name] for row in rows if name in row]
    return f"{statistics.mean(values):,.0f}" if values else None


if __name__ == "__main__":
    main()
