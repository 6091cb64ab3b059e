"""Pooling, tokenizer and list of modules of a model of sentence-transformers, beside its transformer."""

import importlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gating.errors import InputError, loading

MODULES = "modules.json"
_PACKAGE = "sentence_transformers."


class SentenceHead(nn.Module):
    """Modules that make one embedding of the hidden states of a text: pooling, and often a normalization."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Store the modules of sentence-transformers in their order; their weights are not trained."""
        super().__init__()
        self.parts = nn.ModuleList(modules).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> "SentenceHead":
        """Load the modules after the transformer from a local folder; no code of the folder is run."""
        import sentence_transformers  # noqa: F401 - otherwise files would be called damaged where it is missing

        with loading(f"{folder}/{MODULES}", remedy="Save the model again with sentence-transformers."):
            return cls(
                [_class_of(part["type"], folder).load(str(folder), subfolder=part["path"]) for part in _listed(folder)]
            )

    def forward(self, outputs: Mapping[str, Any], attention_mask: Tensor) -> Tensor:
        """Return the embeddings of texts, ``[batch, width]``, from the outputs of the transformer."""
        features: dict[str, Any] = {
            # The weights of a dense layer are in full precision.
            "token_embeddings": outputs["last_hidden_state"].float(),
            "attention_mask": attention_mask,
        }
        for part in self.parts:
            features = part(features)
        embeddings: Tensor = features["sentence_embedding"]
        return embeddings


def read_parts(folder: Path) -> list[Path]:
    """Return the folders of the modules after the transformer; one without settings or weights may not exist."""
    return [folder / part["path"] for part in _listed(folder)]


def _listed(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of the modules after the transformer in ``modules.json``, in their order."""
    listed = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    return sorted(listed, key=lambda part: part["idx"])[1:]


def _class_of(reference: str, folder: Path) -> Any:
    """Return the class of a module by its name in ``modules.json``, old or new."""
    if not reference.startswith(_PACKAGE):
        raise InputError(
            f"{folder}/{MODULES} names the module {reference}, which is not one of sentence-transformers; its code is "
            "not run."
        )
    module, _, name = reference.rpartition(".")
    return getattr(importlib.import_module(module), name)


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
