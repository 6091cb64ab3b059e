"""The file of code in a compact folder, composed of the parts that its model needs."""

import ast
import re
from pathlib import Path

from transformers import PreTrainedModel, conversion_mapping

from gating.loader import permuted
from gating.loader.checksums import RECORD_KEY
from gating.loader.parts import PARTS
from gating.loader.record import auto_classes, dense_class

__all__ = ["MODULE", "compose", "needed_parts", "write_code"]

MODULE = "modeling_compact"
_HERE = Path(__file__).parent


def write_code(model: PreTrainedModel, folder: Path, *, has_layer_counts: bool = False) -> None:
    """Write the file of code into a folder that was just saved, whose configuration may have counts of layers."""
    parts = needed_parts(model) | ({"layer_counts"} if has_layer_counts else set())
    (folder / f"{MODULE}.py").write_text(compose(sorted(parts)), encoding="utf-8")


def needed_parts(model: PreTrainedModel) -> set[str]:
    """Return the names of the files of parts that a compact model needs."""
    entries = (getattr(model.config, RECORD_KEY, None) or {}).get("modules", {}).values()
    used = {value for entry in entries for one in entry.get("parts", ()) for value in one if isinstance(value, str)}
    used |= {"ConfigView"} if any("config" in entry for entry in entries) else set()
    names = {PARTS[name].__module__.rpartition(".")[2] for name in used & PARTS.keys()}
    if dense_class(model) not in auto_classes(type(model.config)).values():
        # In one process, transformers loads further folders of such a model with the class of the first one.
        names |= {"emptied", "padding", "views"}
    conversions = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    if any(map(permuted.permutes_rows, conversions)):
        names.add("permuted")
    return names


def compose(parts: list[str]) -> str:
    """Return one file of the loader and of some of its parts, by their names, with the files that these import."""
    order: list[str] = []
    for name in ("modeling", *parts):
        _add(name, order)
    # Parts register themselves with what is in this file; functions below need nothing at import.
    order.sort(key=lambda name: (name != "classes", name == "modeling"))
    heading, imports, bodies = "", set[str](), []
    for name in order:
        source = (_HERE / f"{name}.py").read_text(encoding="utf-8")
        docstring, own_imports, body = _split(source)
        heading = docstring if name == "modeling" else heading
        imports |= own_imports
        bodies.append(body)
    return "\n\n".join([heading, _write_imports(imports), *bodies]) + "\n"


def _add(name: str, order: list[str]) -> None:
    """Add a file to those that are composed, after the files that it imports."""
    if name in order:
        return
    for node in ast.parse((_HERE / f"{name}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            _add(str(node.module), order)
    order.append(name)


def _split(source: str) -> tuple[str, set[str], str]:
    """Return the docstring of a file, its absolute imports, and the rest but the names that it exports."""
    lines, left, imports, docstring = source.splitlines(), set[int](), set[str](), ""
    for number, node in enumerate(ast.parse(source).body):
        place = range(node.lineno - 1, node.end_lineno or node.lineno)
        text = "\n".join(lines[line] for line in place)
        is_exports = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        if number == 0:
            docstring = text
        elif isinstance(node, ast.Import):
            imports.add(text)
        elif isinstance(node, ast.ImportFrom):
            imports |= {f"from {node.module} import {name.name}" for name in node.names if not node.level}
        elif not is_exports:
            continue
        left |= set(place)
    body = "\n".join(line for number, line in enumerate(lines) if number not in left)
    # One blank line between definitions: what travels is to be read in few pages.
    return docstring, imports, re.sub("\n{3,}", "\n\n", body).strip("\n")


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
