"""Code blocks of the documentation's pages, in the order of the page."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.tiny_run import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# In a list, a block is indented like the text around it.
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<info>\w+.*)\n(?P<code>(?:.*\n)*?)(?P=indent)```$", re.M)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n\s*$")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, the file that it is shown as, and why it is not run, if it is not."""

    language: str
    title: str | None
    code: str
    line: int
    not_run: str | None


def blocks_of(page: str) -> Iterator[Block]:
    """Yield the blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = re.search(r'title="(.+?)"', rest)
        reason = _NOT_RUN.search(text[: match.start()])
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.M)
        line = text[: match.start()].count("\n") + 1
        yield Block(language, title and title[1], code, line, reason and reason[1])


def commands_of(code: str) -> Iterator[list[str]]:
    """Yield the commands of a bash block as words, without comments and variables set for one command."""
    for command in code.replace("\\\n", " ").splitlines():
        words = shlex.split(command, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            yield words


def write_files(page: str, folder: Path) -> None:
    """Write the blocks of a page that are shown as files into a folder."""
    for block in blocks_of(page):
        if block.title is not None:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
