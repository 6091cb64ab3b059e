"""The reference of commands: the help of each, in place of a mark on the page reference/commands.md."""

import argparse
import re
import textwrap
from pathlib import Path

import yaml
from gating.__main__ import COMMANDS
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGE, MARK = "reference/commands.md", "<!-- help of the commands -->"
# Characters beside both columns of links on a screen of 1,280 pixels.
WIDTH = 76


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a page, with the help of all commands in place of the mark."""
    return markdown.replace(MARK, commands_reference()) if page.file.src_uri == PAGE else markdown


def commands_reference() -> str:
    """Return a section for each command."""
    described = yaml.safe_load((ROOT / "conf" / "hydra" / "default.yaml").read_text(encoding="utf-8"))["help"]
    # The groups and their options are a page of their own.
    train = re.sub(r"Groups and their options.*?APP_CONFIG_GROUPS\s*", "", described["template"], flags=re.S)
    sections = [_section("train", _wrapped(train.replace("$$", "$")))]
    return "\n\n".join([*sections, *(_section(name, _help(name)) for name in COMMANDS)])


def _wrapped(text: str) -> str:
    """Return a text with its long lines wrapped; a second column stays one."""
    return "\n".join(_wrapped_line(line) for line in text.splitlines())


def _wrapped_line(line: str) -> str:
    column = re.match(r" +\S.*? {2,}| *", line)
    start = len(column[0]) if column else 0
    if len(line) <= WIDTH:
        return line
    rest = textwrap.wrap(line[start:], WIDTH - start, break_long_words=False, break_on_hyphens=False)
    return line[:start] + f"\n{' ' * start}".join(rest)


def _help(name: str) -> str:
    purpose, add_arguments = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"head-gating {name}",
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=WIDTH),
    )
    add_arguments(parser)
    return parser.format_help()


def _section(name: str, text: str) -> str:
    return f"## head-gating {name}\n\n```text\n{text.strip()}\n```"
