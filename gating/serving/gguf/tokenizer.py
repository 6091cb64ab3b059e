"""Tokenizers in GGUF files: byte-level BPE as llama.cpp knows it by name, or that of another file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedModel

import gguf
from gating.errors import InputError, RemedyError, loading
from gating.serving.exporting import special_tokens
from gating.storage.files import read_table

__all__ = ["add_ends_of_model", "add_placeholders", "add_tokenizer", "copy_tokenizer", "tokens_never_written"]

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
_NO_MERGE = "! !"
_WITH = "with a GGUF file of the dense model: removal of heads does not change its tokens."


def add_tokenizer(
    writer: gguf.GGUFWriter, folder: Path, *, vocab_size: int, pre_tokenizer: str | None = None
) -> dict[str, int]:
    """Add the byte-level BPE of a folder's ``tokenizer.json`` to a file; return its special tokens by kind (``eos``).

    Rows of the input embedding beyond the tokens, up to ``vocab_size``, get placeholders. llama.cpp's name of the
    ``pre_tokenizer`` is found by its regular expression unless it is given.

    Raises:
        ValueError: The tokenizer is of another kind, or has a regular expression that llama.cpp has no name for.
    """
    table = read_table(folder / "tokenizer.json")
    model = table.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "BPE of SentencePiece" if model.get("byte_fallback") else model.get("type") or "without tokenizer.json"
        raise _refusal(f"The tokenizer in {folder} ({kind}) is not byte-level BPE, so it is not converted.")
    if table.get("normalizer") is not None and table["normalizer"].get("type") != "NFC":
        raise _refusal(
            f"The tokenizer in {folder} changes texts ({table['normalizer']['type']}) before it cuts them, which "
            "llama.cpp does not."
        )
    name = pre_tokenizer or _pre_tokenizer_name(table, folder)
    added_tokens = table.get("added_tokens", [])
    largest = max([*model["vocab"].values(), *(added["id"] for added in added_tokens)])
    if largest >= vocab_size:
        raise InputError(
            f"The tokenizer in {folder} has the token {largest}, but the model's embedding {vocab_size} rows: it is of "
            "another model."
        )
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    for added in added_tokens:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # llama.cpp insists on one; that of two single bytes makes no token.
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_token_merges(merges or [_NO_MERGE])
    return _add_special_tokens(writer, folder, tokens)


def copy_tokenizer(writer: gguf.GGUFWriter, source: Path, *, vocab_size: int) -> None:
    """Copy the tokenizer of another GGUF file, such as that of the dense model.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not GGUF, or has another number of tokens.
    """
    if not source.is_file():
        raise InputError(f"tokenizer_from={source} is not a file. Give a GGUF file of the dense model.")
    try:
        fields = gguf.GGUFReader(source).fields
    except (ValueError, OSError, IndexError) as error:
        raise InputError(f"tokenizer_from={source} is not a GGUF file. Give that of the dense model.") from error
    tokens = fields.get("tokenizer.ggml.tokens")
    if tokens is None or len(tokens.data) != vocab_size:
        found = "no tokenizer" if tokens is None else f"{len(tokens.data)} tokens"
        raise InputError(
            f"tokenizer_from={source} has {found}, but the model's embedding {vocab_size}: it is of another model."
        )
    for field in fields.values():
        if field.name.startswith("tokenizer."):
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(field.name, field.contents())
            else:
                writer.add_key_value(field.name, field.contents(), field.types[0])


def add_placeholders(writer: gguf.GGUFWriter, *, vocab_size: int) -> None:
    """Add tokens without texts, for a model without a tokenizer, which reads and writes numbers of tokens only."""
    # llama.cpp looks up some of the single bytes when it loads a file.
    alphabet = sorted(ByteLevel.alphabet())[:vocab_size]
    tokens = [*alphabet, *(f"[{number}]" for number in range(len(alphabet), vocab_size))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab_size)
    writer.add_token_merges([_NO_MERGE])
    writer.add_add_bos_token(False)


def add_ends_of_model(writer: gguf.GGUFWriter, model: PreTrainedModel, *, known: Mapping[str, int]) -> None:
    """Add the special tokens of a model's settings that its tokenizer does not name; llama.cpp has other defaults."""
    special = {kind: numbers[0] for kind in ("bos", "pad") if (numbers := special_tokens(kind, model))}
    ends = dict.fromkeys([*([known["eos"]] if "eos" in known else []), *special_tokens("eos", model)])
    for kind, number in {**special, **dict(zip(_ENDS, ends, strict=False))}.items():
        if kind not in known:
            getattr(writer, f"add_{kind}_token_id")(number)


def tokens_never_written(file: Path) -> list[int]:
    """Return the tokens of a GGUF file that llama.cpp may leave out of texts: special ones, such as an end."""
    fields = gguf.GGUFReader(file).fields
    keys = [f"tokenizer.ggml.{kind}_token_id" for kind in _ENDS]
    ends = [fields[key].contents() for key in keys if key in fields] or [_DEFAULT_END]
    normal = (gguf.TokenType.NORMAL, gguf.TokenType.BYTE)
    types = fields["tokenizer.ggml.token_type"].contents()
    return sorted({*ends, *(number for number, kind in enumerate(types) if kind not in normal)})


def _pre_tokenizer_name(table: dict[str, Any], folder: Path) -> str:
    whole = table.get("pre_tokenizer")
    parts = [] if whole is None else [whole]
    while any("pretokenizers" in part for part in parts):
        parts = [child for part in parts for child in part.get("pretokenizers", [part])]
    kinds = [part["type"] for part in parts]
    regexes = [part["pattern"].get("Regex") for part in parts if part["type"] == "Split"]
    if kinds == ["Split", "ByteLevel"] and regexes[0] in _PRE_TOKENIZERS:
        return _PRE_TOKENIZERS[regexes[0]]
    if kinds[-1:] == ["ByteLevel"] and parts[-1].get("use_regex") and not parts[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
            return "smollm"
    described = ", ".join(regex or kind for kind, regex in zip(kinds, [*regexes, *kinds], strict=False)) or "none"
    raise _refusal(
        f"The pre-tokenizer of {folder} ({described}) has no known name in llama.cpp.",
        python=" Or pass pre_tokenizer with its name in llama.cpp, if it has one.",
        command=" Or pass --pre-tokenizer with its name in llama.cpp, if it has one.",
    )


def _refusal(problem: str, *, python: str = "", command: str = "") -> RemedyError:
    return RemedyError(
        problem, python=f" Pass tokenizer_from {_WITH}{python}", command=f" Pass --tokenizer-from {_WITH}{command}"
    )


def _add_special_tokens(writer: gguf.GGUFWriter, folder: Path, tokens: list[str]) -> dict[str, int]:
    """Add the numbers of special tokens and the rules for them; return those that there are, by their kinds."""
    settings, numbers = read_table(folder / "tokenizer_config.json"), {text: i for i, text in enumerate(tokens)}
    found: dict[str, int] = {}
    for name in ("bos", "eos", "pad", "unk"):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in numbers:
            found[name] = numbers[token]
    before, after = _added_tokens(folder)
    if len(before) > 1 or after not in ([], [found.get("eos")]):
        added = ", ".join([*(f"{tokens[i]} before" for i in before), *(f"{tokens[i]} after" for i in after)])
        raise _refusal(
            f"The tokenizer in {folder} adds special tokens to a text ({added}), but llama.cpp only one before it and "
            "its EOS token after it."
        )
    if before:
        # The token before texts is llama.cpp's BOS, whatever the tokenizer calls it.
        found["bos"] = before[0]
    for name, number in found.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)
    return found


def _added_tokens(folder: Path) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer in a folder adds before and after a text."""
    with loading(str(folder), remedy="Export the model again."):
        reader = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    text, whole = reader("a", add_special_tokens=False)["input_ids"], reader("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(text)] == text), 0)
    return whole[:start], whole[start + len(text) :]
