"""The reference of settings: every file of conf/ with its settings, their defaults and their comments.

The text replaces a mark on the page reference/settings.md when the site is built.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
PAGE, MARK = "reference/settings.md", "<!-- settings of conf/ -->"

# Objects beside the target of an option that take its settings.
_ALSO = {
    "data": "gating.data.datamodule.ExampleDataModule",
    "optimizer": "gating.training.optimizers.AdamW",
}
_COMMAND = re.compile(
    r"(?<!`)\b(python train\.py(?: -m| --help)?(?: '[^']*'| [\w.+/]+=(?:'[^']*'|\"[^\"]*\"|\S*[^\s,;.]))*)"
)
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
# What Hydra and OmegaConf say about a file, not a setting.
_DIRECTIVES = ("defaults", "_target_", "_partial_")


@dataclass
class Setting:
    """A setting of a file: its dotted name, its default as written, its comment, and the class that takes it."""

    name: str
    default: str
    comment: str
    target: str | None


@dataclass
class Option:
    """A file of conf/: its group and name, its first comment, its settings and the options that it begins with."""

    group: str
    name: str
    text: str
    comment: list[str] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    target: str | None = None

    @property
    def is_global(self) -> bool:
        """Whether the file changes settings of other groups."""
        return "@package _global_" in self.text


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a page, with the settings in place of the mark."""
    return markdown.replace(MARK, settings_reference()) if page.file.src_uri == PAGE else markdown


def settings_reference() -> str:
    """Return the sections of all files of conf/, in the order of the default configuration."""
    run = read_option(CONF / "config.yaml", group="")
    sections = ["## The run", *_table(run)]
    listed = re.findall(r"^  - (?:override )?/?(\w+): \w+", run.text, re.M)
    groups = sorted((path for path in CONF.iterdir() if path.is_dir()), key=lambda path: _order(path.name, listed))
    chosen = dict(re.findall(r"^  - (\w+): (\w+)", run.text, re.M))
    for folder in groups:
        sections.append(f"## {folder.name}")
        default = chosen.get(folder.name, "null")
        sections.append(
            f"Choose with `{folder.name}=OPTION`; "
            + ("without it, none is used." if default == "null" else f"the default is `{default}`.")
        )
        for path in sorted(folder.glob("*.yaml")):
            sections += _section(read_option(path, group=folder.name))
    return "\n\n".join(sections)


def read_option(path: Path, *, group: str) -> Option:
    """Read a file of conf/ with its comments."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    option = Option(group, path.stem, text)
    option.comment = [line.lstrip("# ") for line in lines[: _head(lines)] if "@package" not in line]
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        plain = yaml.safe_load(text)
        option.target = plain.get("_target_")
        parents = plain.get("defaults", [])
        option.parents = [name for name in parents if isinstance(name, str) and name != "_self_"]
        option.settings = list(_settings(root, lines, prefix="", target=option.target))
    return option


def _head(lines: list[str]) -> int:
    """Return the number of lines of the comment on a file: to the line with its command where a setting follows."""
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    is_value = end < len(lines) and re.match(r"\w+: .", lines[end]) and not lines[end].startswith(_DIRECTIVES)
    if not is_value:
        return end
    return 1 + next(number for number, line in enumerate(lines) if "python train.py" in line)


def _settings(node: yaml.MappingNode, lines: list[str], *, prefix: str, target: str | None) -> Iterator[Setting]:
    """Yield the settings of a mapping and of those inside."""
    for key, value in node.value:
        if key.value == "_partial_" or (not prefix and key.value in _DIRECTIVES):
            continue
        name, comment = f"{prefix}{key.value}", _comment_above(lines, key.start_mark.line)
        if name == "help":
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            inner = {one.value: other.value for one, other in value.value}.get("_target_")
            if comment:
                yield Setting(name, "", comment, None)
            yield from _settings(value, lines, prefix=f"{name}.", target=inner)
        else:
            default = "".join(value.start_mark.buffer[value.start_mark.index : value.end_mark.index]).strip()
            yield Setting(name, default, comment, target)


def _comment_above(lines: list[str], number: int) -> str:
    """Return the comment in the lines directly above a setting, without the comment on the file."""
    found, head = [], _head(lines)
    while number > head and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        found.append(lines[number].strip().lstrip("# "))
    return " ".join(reversed(found))


def _section(option: Option) -> list[str]:
    """Return the lines of one option."""
    group, name = option.group, option.name
    is_part = any("not an option by itself" in line for line in option.comment)
    title = f"`{group}/{name}.yaml`" if is_part else f"`{group}={name}`"
    section = [f"### {title} {{ #{group}-{name} }}", " ".join(map(_with_code, option.comment))]
    if option.is_global:
        body = "\n".join(option.text.splitlines()[1 + len(option.comment) :])
        return [*section, f"```yaml\n{body.strip()}\n```"]
    if option.target:
        section.append(f"Object: `{option.target}`")
    if option.parents:
        names = ", ".join(f"[{group}={parent}](#{group}-{parent})" for parent in option.parents)
        section.append(f"Begins with the settings of {names}; those below replace or add some.")
    return [*section, *_table(option)]


def _table(option: Option) -> list[str]:
    """Return the table of an option's settings."""
    if not option.settings:
        return []
    prefix = f"{option.group}." if option.group else ""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in option.settings:
        default = "required" if setting.default == "???" else f"`{setting.default}`" if setting.default else ""
        meaning = _meaning(option, setting.name)
        rows.append(f"| `{prefix}{setting.name}` | {_cell(default)} | {_cell(_with_code(meaning))} |")
    return ["\n".join(rows)]


def _meaning(option: Option, name: str) -> str:
    """Return the comment on a setting, here or in the files that an option begins with, else its documentation."""
    origins = list(_origins(option))
    settings = [setting for origin in origins for setting in origin.settings if setting.name == name]
    if commented := next((setting.comment for setting in settings if setting.comment), None):
        return commented
    targets = [setting.target for setting in settings] + [origin.target for origin in origins]
    documented = [_parameters(target) for target in (*targets, _ALSO.get(option.group)) if target]
    return next((known[last] for known in documented if (last := name.rpartition(".")[2]) in known), "")


def _origins(option: Option) -> Iterator[Option]:
    """Yield an option and those that it begins with."""
    yield option
    for parent in option.parents:
        yield from _origins(read_option(CONF / option.group / f"{parent}.yaml", group=option.group))


@cache
def _package() -> griffe.Module:
    package = griffe.load("gating", search_paths=[str(ROOT)], docstring_parser="google")
    assert isinstance(package, griffe.Module)
    return package


@cache
def _parameters(target: str) -> dict[str, str]:
    """Return the documentation of the parameters of a class or function, by name."""
    if not target.startswith("gating."):
        return {}
    try:
        found = _package()[target.removeprefix("gating.")]
        found = found.final_target if found.is_alias else found
    except (KeyError, griffe.AliasResolutionError):
        return {}
    described: dict[str, str] = {}
    classes = [*reversed(found.mro()), found] if isinstance(found, griffe.Class) else [found]
    for documented in (one for owner in classes for one in (owner, owner.members.get("__init__"))):
        for section in documented.docstring.parsed if documented and documented.docstring else ():
            if section.kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
                described |= {one.name: " ".join(one.description.split()) for one in section.value}
    return described


def _with_code(text: str) -> str:
    """Return a comment with its commands and references as code."""
    plain = _ROLE.sub(r"`\1`", text).replace("``", "`")
    return _COMMAND.sub(lambda match: f"`{match[0]}`", plain)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _order(group: str, listed: list[str]) -> tuple[int, str]:
    return (listed.index(group) if group in listed else len(listed), group)
