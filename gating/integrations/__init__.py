"""Gates in other training programs: transformers' Trainer and those made from it."""

import importlib.util

import lazy_loader

from gating.errors import MissingPackageError

if importlib.util.find_spec("accelerate") is None:
    raise MissingPackageError("Trainers need the package accelerate: pip install 'head-gating[trainer]'")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
