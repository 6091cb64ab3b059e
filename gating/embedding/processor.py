"""Files of a sentence-transformers folder beside the weights: tokenizer, pooling, and the list of modules."""

import os
from typing import Any

from gating.errors import MissingPackageError

__all__ = ["SentenceProcessor", "require_sentence_transformers"]


def require_sentence_transformers() -> None:
    """Check that the package is installed.

    Raises:
        ImportError: It is not.
    """
    try:
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "Sentence embeddings need the package sentence-transformers. Install it with: pip install "
            "'head-gating[embeddings]'"
        ) from error


class SentenceProcessor:
    """The tokenizer of a model of sentence-transformers, and all that is saved beside its transformer.

    It is given to :func:`gating.save_compact` in place of a tokenizer, whose folder then loads by
    ``SentenceTransformer(folder, trust_remote_code=True)``.
    """

    def __init__(self, model: Any) -> None:
        """Store the model, a ``SentenceTransformer`` or ``CrossEncoder``, of which the transformer is not saved."""
        self.model = model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.model.tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Save tokenizer, modules and settings in the folder of the transformer."""
        transformer = self.model.transformers_model
        own = vars(transformer).pop("save_pretrained", None)
        # The package saves each module by itself, and the transformer is in the folder.
        transformer.save_pretrained = lambda *_, **__: None
        try:
            self.model.save(str(save_directory), create_model_card=False)
        finally:
            del transformer.save_pretrained
            if own is not None:
                transformer.save_pretrained = own
