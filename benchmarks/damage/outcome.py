"""The outcome of loading a folder, in a process of its own that may crash, hang or run out of memory."""

import contextlib
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import is_input_error

__all__ = ["Outcome", "load_outcome"]

Outcome = dict[str, Any]

_GIGABYTES = 4


def load_outcome(
    load: Callable[[Path], PreTrainedModel],
    folder: Path,
    answer: Callable[[PreTrainedModel], list[Tensor]],
    expected: list[Tensor],
    *,
    sentence: bool,
    timeout_s: float = 30,
) -> Outcome:
    """Load a folder and return the outcome.

    Args:
        load: The function that loads it.
        folder: The folder.
        answer: A function from a model to its outputs.
        expected: Outputs of the saved model.
        sentence: Whether an error has to be one sentence for a user; otherwise any error is a refusal.
        timeout_s: Seconds after which it hangs.

    Returns:
        ``outcome``: ``correct model``, ``sentence``, ``refused`` or ``FAIL``; ``why``: the message; ``seconds``.
    """
    start = time.perf_counter()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        _answer_from_child(send, lambda: _try(load, folder, answer, expected, sentence=sentence))
    os.close(send)
    text = b""
    while select.select([receive], [], [], max(0.0, start + timeout_s - time.perf_counter()))[0]:
        chunk = os.read(receive, 65536)
        if not chunk:
            break
        text += chunk
    else:
        os.kill(child, signal.SIGKILL)
        text = json.dumps({"outcome": "FAIL", "why": f"no answer after {timeout_s:g} s"}).encode()
    os.close(receive)
    _, status = os.waitpid(child, 0)
    found = json.loads(text) if text else {"outcome": "FAIL", "why": f"the process ended with status {status}"}
    return {**found, "seconds": round(time.perf_counter() - start, 3)}


def _answer_from_child(send: int, tried: Callable[[], Outcome]) -> None:
    with contextlib.suppress(BaseException):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + _GIGABYTES * 2**30,) * 2)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        os.write(send, json.dumps(tried()).encode())
    os._exit(0)


def _try(
    load: Callable[[Path], PreTrainedModel],
    folder: Path,
    answer: Callable[[PreTrainedModel], list[Tensor]],
    expected: list[Tensor],
    *,
    sentence: bool,
) -> Outcome:
    try:
        answers = answer(load(folder))
    except Exception as error:
        why = str(error).replace(str(folder.parent), "...")
        if not sentence:
            return {"outcome": "refused", "why": f"{type(error).__name__}: {why[:200]}"}
        if is_input_error(error) and "\n" not in why and 20 < len(why) < 700 and why.endswith("."):
            return {"outcome": "sentence", "why": why}
        return {"outcome": "FAIL", "why": "".join(traceback.format_exception(error))[-2000:]}
    # The same bits and the same operations in the same process: equal, not close.
    same = len(answers) == len(expected) and all(map(torch.equal, answers, expected))
    return {"outcome": "correct model", "why": ""} if same else {"outcome": "FAIL", "why": "another model"}
