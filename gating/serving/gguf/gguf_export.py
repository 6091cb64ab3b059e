"""Export of decoders as GGUF files, checked in llama.cpp."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel

from gating.compact.save import Processor
from gating.errors import InputError, OperationError, shorten
from gating.proof.outputs import evaluating
from gating.serving.copies import with_dummy_heads
from gating.serving.exporting import Exportable, load_model, load_processor
from gating.serving.formats import ServingReport
from gating.serving.gguf.architectures import blocks_to_fill, context_length, find_architecture
from gating.serving.gguf.tokenizer import tokens_never_written
from gating.serving.gguf.writing import write_gguf
from gating.serving.greedy import TOLERANCES, check_tokens, make_prompts
from gating.storage.files import check_free, replacing_file

_RUNTIME = "llama.cpp"
_WORKER = Path(__file__).with_name("worker.py")

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
# The context of the check, in tokens, has room for the texts, too.
_LEAST_CONTEXT = 2048
_NO_TOKENIZER = "The model has no tokenizer: the file has placeholders, and reads and writes numbers of tokens only"
_OTHER_SPECIAL = "That file adds other special tokens to a text than the model's tokenizer: write them in the prompt"
# Texts with words, numbers, spaces and characters of several bytes, to compare tokenizers.
_TEXTS = (
    "Hello, world! It's 12345 o'clock.",
    "  two  spaces,\n\nlines\tand tabs",
    "naïve café, 東京 🙂 Ünïcödé",
    "x=[1,2];",
)


class Answer(NamedTuple):
    """Tokens that llama.cpp wrote after each prompt, and reads in each text, without and with special ones."""

    written: list[list[int]]
    read: list[list[int]]
    read_with_special: list[list[int]]


def export_gguf(
    model_or_directory: Exportable,
    save_path: str | os.PathLike[str],
    *,
    dtype: GgufType = "f16",
    tokenizer: Processor | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    pre_tokenizer: str | None = None,
    overwrite: bool = False,
) -> ServingReport:
    """Export a decoder as a GGUF file for llama.cpp, and check there that it writes the same tokens.

    Layers may have different numbers of heads, key-value groups and neurons, or no attention. The check needs the
    package ``xllamacpp``, which is llama.cpp; without it, the report says that the file was not checked.

    Args:
        model_or_directory: A model of LLaMA, Mistral, Qwen2 or Qwen3, its compact folder, or its name on the hub.
        save_path: Path of the file; it is written whole or not at all.
        dtype: Type of the matrices: ``f32``, ``f16``, ``bf16``, or ``q8_0`` with 8 bits.
        tokenizer: Tokenizer of a model; by default the one in its folder. Without any, the file has placeholders.
        tokenizer_from: GGUF file whose tokenizer is copied, such as that of the dense model.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer; by default found by its regular expression.
        overwrite: Whether a file at this path may be renamed, to ``model.1.gguf`` and so on.
    """
    if dtype not in TOLERANCES:
        raise InputError(f"dtype={dtype!r} is not a type of GGUF files: give one of {', '.join(TOLERANCES)}.")
    target = Path(save_path)
    check_free(target, overwrite=overwrite)
    model, folder = load_model(model_or_directory, format="gguf")
    architecture, is_given = find_architecture(model), tokenizer is not None
    tokenizer = tokenizer or load_processor(folder)
    context, note = context_length(model.config)
    with (
        evaluating(model),
        tempfile.TemporaryDirectory(prefix="head-gating-") as scratch,
        replacing_file(target, keep_old=True) as new,
    ):
        filled = with_dummy_heads(model, blocks_to_fill(model, architecture))
        # That of a folder is taken as it is: classes of transformers may add tokens.
        if is_given:
            tokenizer.save_pretrained(scratch)
            folder = Path(scratch)
        read: dict[str, Any] = {"tokenizer": None if tokenizer is None else folder, "tokenizer_from": tokenizer_from}
        write_gguf(filled, architecture, new, dtype=dtype, pre_tokenizer=pre_tokenizer, **read)
        checked = _check(model, new, dtype=dtype, tokenizer=tokenizer, is_copied=tokenizer_from is not None)
        megabytes = new.stat().st_size / 1e6
    source = f"The tokenizer is that of {tokenizer_from}" if tokenizer_from is not None else _NO_TOKENIZER
    sentences = (
        f"The architecture is {architecture.name} of llama.cpp, the type {dtype}, and the context {context} tokens",
        *(() if note is None else (note,)),
        *((source,) if tokenizer is None or tokenizer_from is not None else ()),
        *checked,
        f"Run it: llama-cli -m {shlex.quote(str(target))}, or llama-server -m {shlex.quote(str(target))}",
    )
    return ServingReport(target, megabytes, sentences)


def _check(model: PreTrainedModel, file: Path, *, dtype: GgufType, tokenizer: Any, is_copied: bool) -> list[str]:
    """Compare llama.cpp with a model and its tokenizer, and return the result as sentences."""
    if find_spec("xllamacpp") is None:
        return ["Not checked: for a check in llama.cpp, pip install xllamacpp"]
    context = context_length(model.config)[0]
    prompts, count = make_prompts(model, context=context)
    # Tokens at random have more of the vocabulary than texts of ours.
    texts = [] if tokenizer is None else [*_TEXTS, *map(tokenizer.decode, prompts)]
    needed = max(_LEAST_CONTEXT, max(map(len, prompts)) + count)
    answer = run_llama_cpp(file, prompts, count=count, context=min(context, needed), texts=texts)
    check = check_tokens(
        model,
        prompts,
        answer.written,
        never_written=tokens_never_written(file),
        tolerance=TOLERANCES[dtype],
        runtime=_RUNTIME,
    )
    return [check.describe(_RUNTIME), *_compare_texts(tokenizer, texts, answer, is_copied=is_copied)]


def _compare_texts(reader: Any, texts: Sequence[str], answer: Answer, *, is_copied: bool) -> list[str]:
    """Compare the tokens of texts; return a sentence if a copied tokenizer adds other special tokens to them."""
    has_others = False
    for text, tokens, whole in zip(texts, answer.read, answer.read_with_special, strict=True):
        has_others |= reader(text)["input_ids"] != whole
        if reader(text, add_special_tokens=False)["input_ids"] != tokens or (has_others and not is_copied):
            raise OperationError(
                f"llama.cpp reads {text!r} as other tokens than the tokenizer: pass tokenizer_from with a GGUF file of "
                "the dense model, or another pre_tokenizer. Nothing was written."
            )
    return [_OTHER_SPECIAL] if has_others else []


def run_llama_cpp(
    file: Path, prompts: Sequence[Sequence[int]], *, count: int, context: int, texts: Sequence[str] = ()
) -> Answer:
    """Return the greedy tokens that llama.cpp writes after prompts, and the tokens that it reads in texts.

    Its cache is float32 and its attention the plain one, so that its logits are the model's up to rounding.
    """
    task = {"file": str(file), "prompts": prompts, "count": count, "context": context, "texts": texts}
    command = [sys.executable, str(_WORKER)]
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
