"""Misspelled names of settings, found without importing the classes that take them.

Hydra knows the names in the files of ``conf/``. The groups below take more: every parameter of their class. Signatures
are read from source files here, since importing torch and Lightning takes seconds; a class that cannot be read is left
to :mod:`gating.run.settings.check`.
"""

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gating.errors import InputError, nearest_name

__all__ = ["OF_RUNS", "check_added", "check_names", "parameters_of"]

# Groups with names of their own class, and what else takes settings of the group; of tasks, a method.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": (
        "gating.data.datamodule.ExampleDataModule",
        "gating.run.folder.inputs.check_inputs",
        "gating.report.metadata.training_notes",
    ),
    "model": (),
    "trainer": (),
    "scheduler": (),
    # Where a command gives the class alone, the defaults of optimizer=adamw stay.
    "optimizer": ("gating.training.optimizers.AdamW", "gating.training.optimizers.AnyOptimizer"),
}
# Arguments of optimizers that a run gives itself.
OF_RUNS = {"params", "factory", "options"}
_TASKS, _METHOD_OF_TASKS = "gating.tasks", "prepare"
_NAME = re.compile(rf"\+*(?P<group>{'|'.join(_GROUPS)})\.(?P<name>\w+)")
_Signed = ast.FunctionDef | ast.ClassDef


def check_names(prefix: str, settings: Iterable[str], names: Iterable[str]) -> None:
    """Check that settings of a group have names that are known; those with an underscore in front are Hydra's.

    Raises:
        InputError: There is no such setting; the message has the nearest name, or all there are.
    """
    known = set(names)
    for name in settings:
        if not name.startswith("_") and name not in known:
            raise InputError(f"There is no setting {prefix}{name}. {nearest_name(name, sorted(known), prefix=prefix)}")


def check_added(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Check the names of the settings that a command gives to classes, as far as source files tell.

    Raises:
        InputError: A class has no such setting.
    """
    if cfg.resume is not None or cfg.ckpt_path is not None:
        return  # The classes may be those of the resumed run.
    settings: Any = OmegaConf.to_container(cfg)
    for given in filter(None, map(_NAME.match, overrides)):
        group, name = given["group"], given["name"]
        target = settings[group].get("_target_") if isinstance(settings[group], dict) else None
        known = _names_of(group, target) if isinstance(target, str) else None
        if known is not None:
            check_names(f"{group}.", [name], known)


def _names_of(group: str, target: str) -> set[str] | None:
    """Return the names that a group with a class takes; None if a source file does not tell."""
    own = parameters_of(target)
    if own is None or (group == "data" and not target.startswith("gating.")):
        return None  # A user's own source may replace the source of any option.
    others = [found for other in _GROUPS[group] if (found := _find(*other.rsplit(".", 1)))]
    # Positional arguments come from the run.
    also = [_parameters(node, module=module, keywords_alone=True) for module, node in others]
    if group == "data":
        also += [_parameters(method, keywords_alone=True) for method in _methods_of_tasks()]
    return None if None in also else own.union(*(names or () for names in also)) - OF_RUNS


def parameters_of(target: str) -> set[str] | None:
    """Return the names of the parameters of a function or class, without importing it.

    Returns:
        The names; None if it takes any, or if its source file does not tell.

    >>> sorted(parameters_of("gating.BudgetSchedule"))
    ['end', 'shape', 'start']
    """
    module, _, name = target.rpartition(".")
    found = _find(module, name)
    return None if found is None else _parameters(found[1], module=found[0])


def _methods_of_tasks() -> Iterator[ast.FunctionDef]:
    tree = _parse(_TASKS)
    for node in tree.body if tree else ():
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            found = _find(_TASKS, alias.name)
            method = _method(found[1], _METHOD_OF_TASKS) if found else None
            if method is not None:
                yield method


def _method(node: ast.AST, name: str) -> ast.FunctionDef | None:
    parts = (part for part in getattr(node, "body", ()) if isinstance(part, ast.FunctionDef))
    return next((part for part in parts if part.name == name), None)


def _find(module: str, name: str) -> tuple[str, _Signed] | None:
    """Return a function or class, and the module that defines it, through the imports of others."""
    tree = _parse(module)
    for node in tree.body if tree else ():
        if isinstance(node, _Signed) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in (alias for alias in node.names if name == (alias.asname or alias.name)):
                base = module.split(".")[: 1 - node.level or None] if node.level else []
                return _find(".".join([*base, *filter(None, [node.module])]), alias.name)
    return None


@cache
def _parse(module: str) -> ast.Module | None:
    """Return the syntax tree of a module, or of its stub; None if it has no source file."""
    top, *rest = module.split(".")
    # The specification of a package below the top would import those above it.
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    files = (place / "__init__.pyi", place / "__init__.py", place.with_suffix(".py"))
    path = next((path for path in files if path.is_file()), None)
    return None if path is None else ast.parse(path.read_text(encoding="utf-8"))


def _parameters(node: ast.AST, *, module: str = "", keywords_alone: bool = False) -> set[str] | None:
    """Return the names of the parameters of a function, or of a class with an ``__init__`` or with fields."""
    if isinstance(node, ast.FunctionDef):
        positional = () if keywords_alone else (*node.args.posonlyargs, *node.args.args)
        names = {argument.arg for argument in (*positional, *node.args.kwonlyargs)}
        return None if node.args.kwarg else names - {"self"}
    assert isinstance(node, ast.ClassDef)
    made = _method(node, "__init__")
    if made is not None:
        return _parameters(made, keywords_alone=keywords_alone)
    if "dataclass" not in " ".join(map(ast.unparse, node.decorator_list)):
        return None
    fields = {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign)
        and isinstance(part.target, ast.Name)
        and ast.unparse(part.annotation).partition("[")[0] not in ("ClassVar", "KW_ONLY")
    }
    for base in node.bases:
        found = _find(module, ast.unparse(base))
        inherited = None if found is None else _parameters(found[1], module=found[0])
        if inherited is None:
            return None
        fields |= inherited
    return fields
