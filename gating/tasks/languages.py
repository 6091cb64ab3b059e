"""Languages of multilingual tokenizers, which mark source and target with a token."""

import difflib

from transformers import PreTrainedTokenizerBase

from gating.errors import InputError

__all__ = ["language_token", "set_language"]


def set_language(tokenizer: PreTrainedTokenizerBase, side: str, language: str) -> None:
    """Set the source or target language of a tokenizer, in place.

    Raises:
        ValueError: The tokenizer has no languages, or not this one.
    """
    if not hasattr(tokenizer, "src_lang"):
        raise InputError(f"task.{side}_language={language}: the model's tokenizer has no languages. Leave it out.")
    added = set(tokenizer.get_added_vocab()) - set(tokenizer.special_tokens_map.values())
    codes = getattr(tokenizer, "lang_code_to_id", None) or added or tokenizer.get_vocab()
    # M2M100 writes its codes between underscores.
    if not {language, f"__{language}__"} & set(codes):
        close = difflib.get_close_matches(language, codes, n=1)
        hint = f" Did you mean {close[0].strip('_')}?" if close else ""
        raise InputError(f"task.{side}_language={language} is not a language of the model's tokenizer.{hint}")
    setattr(tokenizer, "src_lang" if side == "source" else "tgt_lang", language)


def language_token(tokenizer: PreTrainedTokenizerBase, language: str) -> int | None:
    """Return the forced BOS token of a target language; None if targets do not begin with a language."""
    first: int = tokenizer(text_target="a")["input_ids"][0]
    return first if tokenizer.convert_ids_to_tokens(first) in (language, f"__{language}__") else None
