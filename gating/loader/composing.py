"""The file of code in a compact folder: the loader, and those of the parts that its model needs."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, conversion_mapping

from gating.loader.modeling import PARTS, RECORD_KEY
from gating.loader.parts import permutes_rows
from gating.loader.record import auto_classes, dense_class

MODULE = "modeling_compact"
_FILES = [Path(__file__).with_name(f"{name}.py") for name in ("modeling", "parts", "forwards", "forwards_images")]


class _Statement(NamedTuple):
    """A statement of a file with the comments before it, the names that it defines, and those that it uses."""

    text: str
    defined: set[str]
    used: set[str]


def write_code(model: PreTrainedModel, folder: Path, *, has_layer_counts: bool = False) -> None:
    """Write the file of code into a folder that was just saved, whose configuration may have counts of layers."""
    parts = needed_parts(model) | ({"WithoutLayerCounts"} if has_layer_counts else set())
    (folder / f"{MODULE}.py").write_text(compose(parts), encoding="utf-8")


def needed_parts(model: PreTrainedModel) -> set[str]:
    """Return the names of the parts that a compact model needs."""
    entries = (getattr(model.config, RECORD_KEY, None) or {}).get("modules", {}).values()
    named = {value for entry in entries for one in entry.get("parts", ()) for value in one if isinstance(value, str)}
    names = (named & PARTS.keys()) | ({"ConfigView"} if any("config" in entry for entry in entries) else set())
    if dense_class(model) not in auto_classes(type(model.config)).values():
        # In one process, transformers loads further folders of such a model with the class of the first one.
        names |= {"emptied", "padded", "silenced", "ConfigView"}
    if any(map(permutes_rows, conversion_mapping.get_model_conversion_mapping(model, add_legacy=False))):
        names.add("RowsInPlace")
    return names


def compose(parts: Iterable[str]) -> str:
    """Return one file of the loader, of some parts by their names, and of all that these use."""
    imports: dict[str, str] = {}
    loader, *others = ([*_read(path, imports)] for path in _FILES)
    statements = [one for found in others for one in found]
    wanted, needed = {*parts}, set[str]()
    while wanted - needed:
        needed |= wanted
        wanted = {name for one in statements if one.defined & needed for name in one.used}
    chosen = [*loader, *(one for one in statements if one.defined & needed)]
    lines = {imports[name] for one in chosen for name in one.used & imports.keys()}
    heading = f'"""{ast.get_docstring(ast.parse(_FILES[0].read_text(encoding="utf-8")), clean=False)}"""'
    return "\n".join([heading, "", _write_imports(lines), *(one.text for one in chosen)]) + "\n"


def _read(path: Path, imports: dict[str, str]) -> Iterator[_Statement]:
    """Yield the statements of a file that travel; add its absolute imports to a table by the names that they give."""
    lines, end = path.read_text(encoding="utf-8").splitlines(), 0
    for number, node in enumerate(ast.parse("\n".join(lines)).body):
        # One blank line between definitions, and none between constants: what travels is to be read in few pages.
        gap = "" if lines[end] else "\n"
        text, end = gap + "\n".join(lines[end : node.end_lineno]).strip("\n"), node.end_lineno or end
        names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        if isinstance(node, ast.Import):
            imports |= {one.name: f"import {one.name}" for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {one.name: f"from {node.module} import {one.name}" for one in node.names if not node.level}
        elif number:
            stored = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
            yield _Statement(text, {node.name} if hasattr(node, "name") else stored, names)


def _write_imports(lines: set[str]) -> str:
    """Return imports in groups, the standard library first; names of one module are joined."""
    modules = sorted(line for line in lines if line.startswith("import "))
    names: dict[str, list[str]] = {}
    for line in sorted(lines - set(modules)):
        _, module, _, name = line.split(" ")
        names.setdefault(module, []).append(name)
    joined = [*modules, *(f"from {module} import {', '.join(found)}" for module, found in names.items())]
    others = [line for line in joined if line.split(" ")[1].partition(".")[0] in ("torch", "transformers")]
    return "\n".join([*(line for line in joined if line not in others), "", *others])
