"""Program that loads a GGUF file in llama.cpp, writes greedily and tokenizes texts.

It reads a task as JSON from standard input, and writes the answer as the last line of standard output. It runs in a
process of its own without this package, because a failed assertion of llama.cpp ends the process.
"""

import json
import os
import sys
import urllib.request
from typing import Any


def _load(task: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = task["file"]
    params.n_ctx, params.n_parallel, params.warmup = task["context"], 1, False
    # The cache is not rounded, so that the logits are the model's.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # Its threads wait busily for each other: on a machine with other work, one for each core is much slower.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, cores // 2)
    return xllamacpp.Server(params)


def _ask(server: Any, endpoint: str, **request: Any) -> Any:
    body = json.dumps(request).encode()
    url = f"{server.listening_address}/{endpoint}"
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def _write(server: Any, prompt: list[int], count: int) -> list[int]:
    # Tokens that end a text are left out, so that it goes on.
    request = {"prompt": prompt, "n_predict": count, "ignore_eos": True, "return_tokens": True, "cache_prompt": False}
    tokens: list[int] = _ask(server, "completion", samplers=["top_k"], top_k=1, **request)["tokens"]
    return tokens


def _answer(task: dict[str, Any]) -> dict[str, list[list[int]]]:
    server, texts = _load(task), task["texts"]
    return {
        "written": [_write(server, prompt, task["count"]) for prompt in task["prompts"]],
        "read": [_ask(server, "tokenize", content=text, add_special=False)["tokens"] for text in texts],
        "read_with_special": [_ask(server, "tokenize", content=text, add_special=True)["tokens"] for text in texts],
    }


if __name__ == "__main__":
    del sys.path[0]  # The modules of this folder must not hide others of the same names.
    print(json.dumps(_answer(json.load(sys.stdin))))
