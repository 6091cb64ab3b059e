"""Former names of modules that sources and tasks of users import; importing one of them warns."""

import importlib
import sys
import warnings

# As a package without files: its submodules are those that are entered into sys.modules here.
__path__: list[str] = []

_MODULES = {
    "examples": "gating.data.examples",
    "models": "gating.models.sources",
    "sources": "gating.data.sources",
    "tasks": "gating.tasks",
    "tasks.base": "gating.tasks.base",
}

for _name, _module in _MODULES.items():
    sys.modules[f"{__name__}.{_name}"] = importlib.import_module(_module)
    if "." not in _name:
        setattr(sys.modules[__name__], _name, sys.modules[_module])
warnings.warn(
    "gating.lightning has moved: import from gating.data, gating.models and gating.tasks.",
    DeprecationWarning,
    stacklevel=2,
)
