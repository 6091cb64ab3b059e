"""Programs of this benchmark in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Answer", "ask", "ask_llama_cpp"]

_LIMIT_S = 1800
# Runs a file; the modules beside it must not hide others of the same names.
_PROGRAM = "import runpy, sys; del sys.path[0]; runpy.run_path(sys.argv[1], run_name='__main__')"


class Answer(NamedTuple):
    """What a program answers, and its log."""

    value: Any
    log: str


def ask(program: str, task: Any, *, python: str = sys.executable) -> Answer:
    """Run a program of this package, give it a task and return its answer.

    Args:
        program: Name of the module, which does not import this package.
        task: The task, as values of JSON.
        python: Interpreter of another environment.

    Raises:
        RuntimeError: The program fails.
    """
    command = [python, "-c", _PROGRAM, str(Path(__file__).with_name(f"{program}.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command,
        input=json.dumps(task).encode(),
        capture_output=True,
        check=False,
        env=environment,
        timeout=_LIMIT_S,
    )
    # Logs may have parts of characters.
    log = result.stderr.decode(errors="replace")
    if result.returncode:
        raise RuntimeError(f"{program} failed: {log[-2000:]}")
    return Answer(json.loads(result.stdout.splitlines()[-1]), log)


def ask_llama_cpp(
    do: str,
    files: Sequence[Path],
    texts: Sequence[Sequence[int]] = (),
    *,
    context: int,
    count: int = 0,
    rounds: int = 0,
    flash: bool = False,
    exact_cache: bool = False,
) -> Answer:
    """Write, score texts, measure speed or only load in llama.cpp, with one thread.

    Args:
        do: ``write``, ``score``, ``time`` or ``load``.
        files: GGUF files, more than one for ``time``.
        texts: Tokens of texts or prompts.
        context: Number of tokens of the context.
        count: Number of tokens to write.
        rounds: Number of measurements.
        flash: Whether attention is flash attention.
        exact_cache: Whether the cache is in single precision, not half.
    """
    task = {"do": do, "files": list(map(str, files)), "texts": texts, "context": context, "threads": 1, "count": count}
    return ask("llama_cpp", {**task, "rounds": rounds, "flash": flash, "exact_cache": exact_cache})
