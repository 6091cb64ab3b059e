"""Docstrings in the form that the site's renderer reads: references as links, examples as Python."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(?P<short>~?)\.?(?P<name>[\w.]+)`")
# The section that griffe reads as code; it takes the singular for a note.
_EXAMPLE = re.compile(r"^Example:$", re.M)


class Roles(griffe.Extension):
    """Replace the roles of Sphinx: by a link where the reference has the object, else by its name."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            text = _ROLE.sub(lambda match: _linked(match, obj), obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub("Examples:", text)


def _linked(match: re.Match[str], obj: griffe.Object) -> str:
    name = match["name"]
    shown = name.rpartition(".")[2] if match["short"] else name
    return f'<autoref identifier="{_full(name, obj)}" optional><code>{shown}</code></autoref>'


def _full(name: str, obj: griffe.Object) -> str:
    """Return the path of the object that a docstring names: from its own scope, or from the package."""
    scope: griffe.Object | None = obj
    while scope is not None:
        if name.partition(".")[0] in scope.members:
            return f"{scope.path}.{name}"
        scope = scope.parent
    return name
