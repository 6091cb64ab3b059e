"""A compact model of sentence-transformers in half precision, for a release page."""

import shutil
from pathlib import Path

from sentence_transformers import SentenceTransformer

import gating
from gating.embedding.processor import SentenceProcessor

__all__ = ["release"]

_CARD = "README.md"


def release(folder: str, out: str) -> str:
    """Save a compact folder in half precision, with the card of the run, and return a sentence on it.

    Args:
        folder: A compact folder, such as ``outputs/x/compact``.
        out: The new folder.
    """
    sentences = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
    model = gating.load_compact(folder).half()
    place = gating.save_compact(model, out, tokenizer=SentenceProcessor(sentences))
    shutil.copyfile(Path(folder) / _CARD, place / _CARD)
    megabytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1e6
    return f"{place}: {megabytes:.1f} MB in half precision"
