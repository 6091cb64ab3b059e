"""Greedy tokens and tokenized texts of llama.cpp for a GGUF file."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gating.errors import OperationError, shorten

__all__ = ["RUNTIME", "Answer", "run_llama_cpp"]

RUNTIME = "llama.cpp"
_WORKER = Path(__file__).with_name("worker.py")


class Answer(NamedTuple):
    """Tokens that llama.cpp wrote after each prompt, and reads in each text, without and with special ones."""

    written: list[list[int]]
    read: list[list[int]]
    read_with_special: list[list[int]]


def run_llama_cpp(
    file: Path, prompts: Sequence[Sequence[int]], *, count: int, context: int, texts: Sequence[str] = ()
) -> Answer:
    """Return the greedy tokens that llama.cpp writes after prompts, and the tokens that it reads in texts.

    Its cache is float32 and its attention the plain one, so that its logits are the model's up to rounding.

    Raises:
        RuntimeError: llama.cpp does not load the file, or fails.
    """
    task = {"file": str(file), "prompts": prompts, "count": count, "context": context, "texts": texts}
    # -P: the modules of this folder must not hide others of the same names.
    command = [sys.executable, "-P", str(_WORKER)]
    # Its log may have parts of characters.
    result = subprocess.run(
        command, input=json.dumps(task), capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if result.returncode:
        reason = _reason(result.stderr) or f"exit status {result.returncode}"
        raise OperationError(f"llama.cpp does not run the file ({shorten(reason, most=300)}). Nothing was written.")
    return Answer(**json.loads(result.stdout.splitlines()[-1]))


def _reason(log: str) -> str:
    """Return the first message of a log that names a failure, without its time and level."""
    failures = re.findall(r"(?:error loading model: |GGML_ASSERT|Error: |Exception: ).*", log)
    return failures[0].removeprefix("error loading model: ") if failures else ""
