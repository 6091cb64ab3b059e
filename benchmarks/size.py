"""Measure the size of a package, for a review to look at: no number here fails a check.

    python -m benchmarks.size                     # this package
    python -m benchmarks.size FOLDER [FOLDER...]  # others beside it

Code is what is no blank line, comment or docstring; functions are measured without their docstring. Below the table are
the rooms, folders with all that is in them, and the largest files and functions of the first folder.
"""

import argparse
import ast
import io
import statistics
import tokenize
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONG_FILE = 300
LONG_FUNCTION = 50
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Sizes:
    """Sizes of a package.

    Attributes:
        files: Number of lines of each file.
        functions: Number of lines of each function, by ``file:line name``.
        code: Lines of code.
        docstrings: Lines of docstrings.
    """

    files: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    code: int = 0
    docstrings: int = 0

    @property
    def rooms(self) -> dict[str, list[int]]:
        """Lines of the files in each folder of the package, those of its folders among them."""
        rooms: dict[str, list[int]] = {}
        for name, lines in self.files.items():
            rooms.setdefault(name.partition("/")[0], []).append(lines)
        return rooms


def main() -> None:
    """Print the table of all folders and the largest pieces of the first one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "gating"], help="packages to measure")
    folders: list[Path] = parser.parse_args().folders
    sizes = [measure(folder) for folder in folders]
    print("\n".join(table({folder.name: one for folder, one in zip(folders, sizes, strict=True)})))
    print("\nFiles and lines of each room:")
    rooms = sizes[0].rooms
    for name, lines in sorted(rooms.items(), key=lambda one: -sum(one[1])):
        print(f"{len(lines):6} {sum(lines):8,}  {name}")
    for title, found, limit in (("files", sizes[0].files, LONG_FILE), ("functions", sizes[0].functions, LONG_FUNCTION)):
        print(f"\nThe longest {title}; {sum(lines > limit for lines in found.values())} have more than {limit} lines:")
        for name, lines in sorted(found.items(), key=lambda one: -one[1])[:10]:
            print(f"{lines:6}  {name}")


def measure(folder: Path) -> Sizes:
    """Measure all Python files below a folder."""
    sizes = Sizes()
    for path in sorted(folder.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(folder))
        tree = ast.parse(text)
        docstrings = {line for node in ast.walk(tree) for line in _docstring_lines(node)}
        sizes.files[name] = len(text.splitlines())
        sizes.docstrings += len(docstrings)
        sizes.code += len(_lines_with_tokens(text) - docstrings)
        for node in ast.walk(tree):
            if isinstance(node, Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1 - len(_docstring_lines(node))
                sizes.functions[f"{name}:{node.lineno} {node.name}"] = lines
    return sizes


def _docstring_lines(node: ast.AST) -> range:
    if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
        return range(node.body[0].lineno, (node.body[0].end_lineno or node.body[0].lineno) + 1)
    return range(0)


def _lines_with_tokens(text: str) -> set[int]:
    """Return the lines that are neither blank nor a comment."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {line for one in tokens if one.type not in nothing for line in range(one.start[0], one.end[0] + 1)}


def table(packages: dict[str, Sizes]) -> list[str]:
    """Return the lines of the table, in Markdown."""
    rows: dict[str, Callable[[Sizes], str]] = {
        "files / lines": lambda one: f"{len(one.files)} / {sum(one.files.values()):,}",
        "code / docstring lines": lambda one: f"{one.code:,} / {one.docstrings:,}",
        "file median / p90 / max": lambda one: _spread(one.files.values()),
        "function median / p90 / max": lambda one: _spread(one.functions.values()),
    }
    lines = [f"| | {' | '.join(packages)} |", f"|---|{'---|' * len(packages)}"]
    return lines + [f"| {name} | {' | '.join(map(cell, packages.values()))} |" for name, cell in rows.items()]


def _spread(values: Collection[int]) -> str:
    ordered = sorted(values) or [0]
    return f"{statistics.median(ordered):g} / {ordered[int(0.9 * (len(ordered) - 1))]} / {ordered[-1]}"


if __name__ == "__main__":
    main()
