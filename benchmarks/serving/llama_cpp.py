"""Program that loads GGUF files in llama.cpp, and scores texts, measures speed, or prints the size of the cache.

It reads a task as JSON from standard input, and writes the answer as the last line of standard output. It runs in a
process of its own, because llama.cpp writes its log to the process and ends it after a failure.
"""

import json
import sys
import urllib.request
from typing import Any

__all__: list[str] = []

# Of the messages about the cache.
_MOST_VERBOSE = 10


def _load(task: dict[str, Any], file: str) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.warmup = task["context"], 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = task["threads"]
    flash = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        flash.LLAMA_FLASH_ATTN_TYPE_ENABLED if task["flash"] else flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    if task["exact_cache"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if task["do"] == "load":
        params.verbosity = _MOST_VERBOSE
    return xllamacpp.Server(params)


def _complete(server: Any, prompt: list[int], **request: Any) -> dict[str, Any]:
    body = json.dumps({"prompt": prompt, "samplers": ["top_k"], "top_k": 1, **request}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.listening_address}/completion", body, headers)
    ) as answer:
        completed: dict[str, Any] = json.load(answer)
    return completed


def _write(task: dict[str, Any]) -> list[list[int]]:
    """Return the greedy tokens after each prompt."""
    server, request = _load(task, task["files"][0]), {"n_predict": task["count"], "ignore_eos": True}
    return [
        _complete(server, prompt, return_tokens=True, cache_prompt=False, **request)["tokens"]
        for prompt in task["texts"]
    ]


def _score(task: dict[str, Any]) -> list[list[float | None]]:
    """Return the log-probability of each token but the first of each text; None where llama.cpp does not say it."""
    server = _load(task, task["files"][0])
    return [
        [_log_probability(server, text[:number], text[number]) for number in range(1, len(text))]
        for text in task["texts"]
    ]


def _log_probability(server: Any, prompt: list[int], token: int) -> float | None:
    # A bias forces the choice of the token; the probability that is reported is the one before the bias.
    request = {"n_predict": 1, "n_probs": 1, "logit_bias": [[token, 1e6]], "cache_prompt": True}
    # Missing for tokens that end a text or are a part of a character.
    reported = _complete(server, prompt, **request).get("completion_probabilities")
    return float(reported[0]["logprob"]) if reported else None


def _time(task: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Return the tokens per second of each file when prompting and writing, in turns."""
    servers = [_load(task, file) for file in task["files"]]
    speeds: dict[str, list[list[float]]] = {"prompting": [], "writing": []}
    request = {"n_predict": task["count"], "ignore_eos": True, "cache_prompt": False}
    for number in range(task["rounds"] + 1):
        timings = {}
        order = list(enumerate(servers))
        for index, server in order if number % 2 else reversed(order):
            timings[index] = _complete(server, task["texts"][0], **request)["timings"]
        # The first round warms up.
        if number:
            for name, key in (("prompting", "prompt_per_second"), ("writing", "predicted_per_second")):
                speeds[name].append([timings[index][key] for index in range(len(servers))])
    return speeds


def _load_only(task: dict[str, Any]) -> None:
    # A server that ends before it has answered anything may wait for itself.
    _complete(_load(task, task["files"][0]), [0], n_predict=1)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    do = {"write": _write, "score": _score, "time": _time, "load": _load_only}[given["do"]]
    print(json.dumps(do(given)))
