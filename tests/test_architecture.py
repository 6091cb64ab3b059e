"""Folders of the package: the page that shows them, and which may import which.

Their sizes are for reviews: `python -m benchmarks.size`.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gating
from tests.support.project import SETTINGS, read_toml
from tests.support.tiny_run import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "gating"
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
# Python files that a compact model carries: transformers follows relative imports within one folder only.
TRAVELING = PACKAGE / "loader"


def shown_folders() -> dict[str, str]:
    """Return the folders of the page's tree in its order, with their questions."""
    tree = re.search(r"```text\ngating/\n(.*?)```", PAGE, re.S)[1]
    names: list[str] = []
    questions = {}
    for line in tree.splitlines():
        indent, name, question = re.fullmatch(r"( +)(\w+)/ +(.*)", line).groups()
        names[len(indent) // 2 - 1 :] = [name]
        questions["/".join(names)] = question
    return questions


def first_line(folder: Path) -> str:
    return ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))).splitlines()[0]


def test_the_page_shows_each_folder_with_the_first_line_of_its_docstring():
    assert shown_folders() == {str(folder.relative_to(PACKAGE)): first_line(folder) for folder in FOLDERS}


def test_links_of_the_page_hold():
    for path in re.findall(r"\]\((?!https)([^)#]+)", PAGE):
        assert (ROOT / "docs" / path).exists(), path


@cache
def modules() -> dict[str, Path]:
    """Return the files of the package by the names of their modules."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(name: str) -> Iterator[str]:
    """Yield the modules of the package that one of its modules imports anywhere, also in a function."""
    path = modules()[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if f"{source}.{alias.name}" in modules():
                    yield f"{source}.{alias.name}"
                elif source in modules():
                    yield source


def folder_of(module: str) -> str:
    """Return the folder directly in the package that a module is in; a module directly there stands for itself."""
    return module.split(".")[1]


def test_no_module_imports_itself_through_others():
    # `gating` itself names the public functions of all folders, so nothing of its own is imported from it.
    graph = {name: set(imported_modules(name)) - {name} for name in modules() if name != "gating"}
    TopologicalSorter(graph).prepare()
    users = {name for name, imported in graph.items() if "gating" in imported}
    assert users <= {"gating.__main__"}


def full_folder_of(module: str) -> str:
    """Return the folder of a module, sub-folders as folders of their own; a module in none stands for itself."""
    path = modules()[module]
    return str((path.with_suffix("") if path.parent == PACKAGE else path.parent).relative_to(PACKAGE))


def test_no_folder_imports_itself_through_others():
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        if name in ("gating", "gating.__main__"):
            continue
        folder = full_folder_of(name)
        imported = {full_folder_of(module) for module in imported_modules(name)}
        if path.name == "__init__.py":
            # It names the public objects of its sub-folders, too, for folders outside.
            imported = {other for other in imported if not other.startswith(f"{folder}/")}
        graph.setdefault(folder, set()).update(imported - {folder})
    TopologicalSorter(graph).prepare()


def test_a_folder_imports_only_folders_above_it_in_the_tree():
    order = [name for name in shown_folders() if "/" not in name]
    # Every folder may import these files.
    first = order.index("loader")
    order[first:first] = ["errors", "units", "plan", "vocabulary"]
    for name in modules():
        if name in ("gating", "gating.__main__"):
            continue
        for imported in imported_modules(name):
            assert order.index(folder_of(imported)) <= order.index(folder_of(name)), f"{name} imports {imported}"


def test_exported_code_imports_only_itself_torch_and_transformers():
    for path in TRAVELING.glob("*.py"):
        # The others compose the file, write the record and check it.
        if path.stem in ("record", "record_checks", "composing", "saving"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert node.module is None or "." not in node.module
            elif isinstance(node, ast.ImportFrom):
                assert not node.module.startswith("gating"), path


def banned_imports(folder: str) -> set[str]:
    """Return the imports that ruff bans in a folder."""
    path = PACKAGE / folder / "ruff.toml"
    settings = read_toml(path) if path.exists() else SETTINGS["tool"]["ruff"]
    return set(settings["lint"]["flake8-tidy-imports"]["banned-api"])


# Folders that may import each of the packages that most folders may not.
ALLOWED = {
    "hydra": {"run", "commands"},
    "omegaconf": {"run", "commands"},
    "wandb": {"tracking"},
    "pytorch_lightning": {"distributed", "tracking", "data", "training", "run", "commands"},
    "lightning_fabric": {"distributed", "tracking", "data", "training", "run", "commands"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_ruff_bans_a_package_in_all_other_folders(package):
    folders = [name for name in shown_folders() if "/" not in name]
    assert {folder for folder in folders if package not in banned_imports(folder)} == ALLOWED[package]


def test_ruff_bans_the_folders_below_those_that_are_not_core():
    folders = [name for name in shown_folders() if "/" not in name]
    after_core = folders[folders.index("compact") + 1 :]
    for number, folder in enumerate(folders):
        banned = {name.removeprefix("gating.") for name in banned_imports(folder) if name.startswith("gating.")}
        assert banned == {name for name in after_core if folders.index(name) > number}, folder


def test_no_folder_drops_the_rule():
    ignored = SETTINGS["tool"]["ruff"]["lint"]["per-file-ignores"]
    dropped = {pattern for pattern, rules in ignored.items() if "TID251" in rules}
    outside = {"tests/*", "benchmarks/*", "examples/*", ".ci/*"}
    assert dropped == {"gating/{__init__.pyi,__main__.py}", "train.py", *outside}
    assert "wandb" not in (ROOT / "train.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("folder", "other"), [("tests", "benchmarks"), ("benchmarks", "tests")])
def test_tests_and_benchmarks_import_nothing_from_each_other(folder, other):
    # Tests of benchmarks import them by name.
    for path in (ROOT / folder).rglob("*.py"):
        assert not re.search(rf"^\s*(from|import) {other}\b", path.read_text(encoding="utf-8"), re.M), path


def test_every_public_name_has_a_first_line():
    for name in gating.__all__:
        documented = getattr(gating, name)
        if not isinstance(documented, str):
            assert documented.__doc__, name
