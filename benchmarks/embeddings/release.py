"""A compact model of sentence-transformers in half precision, for a release page."""

from pathlib import Path

from sentence_transformers import SentenceTransformer

import gating
from gating.embedding.processor import SentenceProcessor

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
    megabytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1e6
    # The card of the run has the scores and the training texts, which the folder alone does not tell.
    card = (Path(folder) / _CARD).read_text(encoding="utf-8").rstrip()
    note = (
        f"This folder has the weights in half precision and takes {megabytes:.1f} MB; the table is of full precision."
    )
    (place / _CARD).write_text(f"{card}\n\n{note}\n", encoding="utf-8")
    return f"{place}: {megabytes:.1f} MB in half precision"
