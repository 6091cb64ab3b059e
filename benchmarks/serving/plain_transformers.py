"""Program that loads folders of decoders with transformers alone, and writes greedily with the cache.

It reads a task as JSON from standard input, and writes the tokens, or the error of each folder, as the last line of
standard output.
"""

import json
import sys
from typing import Any

__all__: list[str] = []


def _write(folder: str, prompts: list[list[int]], count: int) -> list[list[int]] | str:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        # Without tokens that end a text, so that it goes on.
        length = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return [
            model.generate(tokens, attention_mask=torch.ones_like(tokens), **length)[0, len(prompt) :].tolist()
            for prompt in prompts
            for tokens in [torch.tensor([prompt])]
        ]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    # As on a machine without this package.
    sys.modules["gating"] = None  # type: ignore[assignment]
    print(json.dumps([_write(*each) for each in json.load(sys.stdin)]))
