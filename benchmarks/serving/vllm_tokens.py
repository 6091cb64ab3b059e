"""Program that loads folders in vLLM on the CPU, and writes greedily. Its Python is that of an environment with vLLM.

It reads a task as JSON from standard input, and writes the version of vLLM with the tokens, or the error, of each
folder as the last line of standard output.
"""

import gc
import json
import os
import sys
from typing import Any

__all__: list[str] = []

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    HF_HUB_OFFLINE="1",
)


def _write(folder: str, prompts: list[list[int]], count: int, stock: bool) -> list[list[int]] | str:
    from vllm import LLM, SamplingParams

    backend = {} if stock else {"model_impl": "transformers", "trust_remote_code": True}
    length = max(map(len, prompts)) + count
    try:
        model = LLM(
            folder,
            dtype="float32",
            skip_tokenizer_init=True,
            max_model_len=length,
            enforce_eager=True,
            max_num_seqs=4,
            **backend,
        )
        settings = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        texts: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        written = [list(output.outputs[0].token_ids) for output in model.generate(texts, settings)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    del model
    gc.collect()
    return written


if __name__ == "__main__":
    import vllm

    print(json.dumps({"version": vllm.__version__, "written": [_write(*each) for each in json.load(sys.stdin)]}))
