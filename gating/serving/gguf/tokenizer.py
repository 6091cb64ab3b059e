"""Tokenizers in GGUF files: byte-level BPE as llama.cpp knows it by name, or that of another file."""

import os
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

import gguf
from gating.errors import InputError, loading
from gating.serving.exporting import special_tokens
from gating.storage.files import read_table

# The regular expressions by which tokenizers cut a text into words, and the names of llama.cpp for them.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {_LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2", _TEKKEN: "tekken"}
# Kinds of tokens that end a text, by the names of llama.cpp: it has a place for one of each.
_ENDS = ("eos", "eot", "eom")
# llama.cpp takes this token as the end for byte-level BPE without such an entry.
_DEFAULT_END = 11
# llama.cpp insists on a merge; that of two single bytes makes no token.
_NO_MERGES = ["! !"]


def add_tokenizer(
    writer: gguf.GGUFWriter,
    folder: Path,
    model: PreTrainedModel,
    *,
    vocab_size: int,
    pre_tokenizer: str | None = None,
) -> None:
    """Add the byte-level BPE of a ``tokenizer.json`` to a file, with the special tokens of a model's settings.

    Rows of the input embedding beyond the tokens, up to ``vocab_size``, get placeholders.
    """
    table = read_table(folder / "tokenizer.json")
    parts = table.get("model") or {}
    is_plain = (table.get("normalizer") or {"type": "NFC"})["type"] == "NFC"
    if parts.get("type") != "BPE" or parts.get("byte_fallback") or not is_plain:
        raise _refusal(f"The tokenizer in {folder} is not byte-level BPE without changes of the text.")
    added_tokens = table.get("added_tokens", [])
    numbers = parts["vocab"] | {added["content"]: added["id"] for added in added_tokens}
    if (largest := max(numbers.values())) >= vocab_size:
        raise InputError(
            f"The tokenizer in {folder} has the token {largest}, but the model's embedding {vocab_size} rows: it is of "
            "another model."
        )
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, number in numbers.items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    for added in added_tokens:
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    _add_tokens(writer, tokens, types, pre_tokenizer or _pre_tokenizer_name(table, folder))
    special = gguf.SpecialVocab(
        folder, load_merges=True, special_token_types=("bos", "eos", "pad", "unk"), n_vocab=vocab_size
    )
    special.merges = special.merges or _NO_MERGES
    # Defaults of llama.cpp depend on the name of the pre-tokenizer.
    special.add_special_token = {"bos": False, "eos": False} | special.add_special_token
    special.special_token_ids = _with_those_of_model(special.special_token_ids, model)
    special.add_to_gguf(writer, quiet=True)


def copy_tokenizer(writer: gguf.GGUFWriter, source: str | os.PathLike[str], *, vocab_size: int) -> None:
    """Copy the tokenizer of another GGUF file, such as that of the dense model."""
    with loading(f"tokenizer_from={source}", remedy="Give a GGUF file of the dense model."):
        fields = gguf.GGUFReader(source).fields
    tokens = fields.get("tokenizer.ggml.tokens")
    number = 0 if tokens is None else len(tokens.data)
    if number != vocab_size:
        raise InputError(
            f"tokenizer_from={source} has {number} tokens, but the model's embedding {vocab_size}: it is of another "
            "model."
        )
    for field in fields.values():
        if field.name.startswith("tokenizer."):
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(field.name, field.contents())
            else:
                writer.add_key_value(field.name, field.contents(), field.types[0])


def add_placeholders(writer: gguf.GGUFWriter, model: PreTrainedModel, *, vocab_size: int) -> None:
    """Add tokens without texts, for a model without a tokenizer, which reads and writes numbers of tokens only."""
    # llama.cpp looks up some of the single bytes when it loads a file.
    alphabet = sorted(ByteLevel.alphabet())[:vocab_size]
    tokens = [*alphabet, *(f"[{number}]" for number in range(len(alphabet), vocab_size))]
    _add_tokens(writer, tokens, [gguf.TokenType.NORMAL] * vocab_size, "gpt-2")
    writer.add_token_merges(_NO_MERGES)
    writer.add_add_bos_token(False)
    for kind, number in _with_those_of_model({}, model).items():
        getattr(writer, f"add_{kind}_token_id")(number)


def _add_tokens(writer: gguf.GGUFWriter, tokens: list[str], types: list[gguf.TokenType], pre_tokenizer: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(types)


def _with_those_of_model(known: dict[str, int], model: PreTrainedModel) -> dict[str, int]:
    """Return special tokens by kind, with those of a model's settings that are not known; llama.cpp has defaults."""
    special = {kind: numbers[0] for kind in ("bos", "pad") if (numbers := special_tokens(kind, model))}
    ends = dict.fromkeys([*(known[kind] for kind in _ENDS if kind in known), *special_tokens("eos", model)])
    return special | dict(zip(_ENDS, ends, strict=False)) | known


def tokens_never_written(file: Path) -> list[int]:
    """Return the tokens of a GGUF file that llama.cpp may leave out of texts: special ones, such as an end."""
    fields = gguf.GGUFReader(file).fields
    keys = [f"tokenizer.ggml.{kind}_token_id" for kind in _ENDS]
    ends = [fields[key].contents() for key in keys if key in fields] or [_DEFAULT_END]
    normal = (gguf.TokenType.NORMAL, gguf.TokenType.BYTE)
    types = fields["tokenizer.ggml.token_type"].contents()
    return sorted({*ends, *(number for number, kind in enumerate(types) if kind not in normal)})


def _pre_tokenizer_name(table: dict[str, Any], folder: Path) -> str:
    parts = [table.get("pre_tokenizer") or {"type": "none"}]
    while any("pretokenizers" in part for part in parts):
        parts = [child for part in parts for child in part.get("pretokenizers", [part])]
    kinds = [part["type"] for part in parts]
    if kinds == ["Split", "ByteLevel"] and (name := _PRE_TOKENIZERS.get(parts[0]["pattern"].get("Regex"))):
        return name
    if kinds[-1] == "ByteLevel" and parts[-1].get("use_regex") and not parts[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
            return "smollm"
    raise _refusal(
        f"The pre-tokenizer of {folder} ({', '.join(kinds)}) has no known name in llama.cpp.",
        " Or pass pre_tokenizer (--pre-tokenizer) with its name in llama.cpp, if it has one.",
    )


def _refusal(problem: str, remedy: str = "") -> InputError:
    return InputError(
        f"{problem} Pass tokenizer_from (--tokenizer-from) with a GGUF file of the dense model: removal of heads does "
        f"not change its tokens.{remedy}"
    )
