"""Code on the documentation's pages: Python runs, commands compose, Makefile targets and extras exist."""

import importlib.util
import re
import sys

import huggingface_hub.constants
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from gating.__main__ import _parser
from gating.families import registry as families
from tests.docs.pages import PAGES, blocks_of, commands_of, write_files
from tests.docs.setups import SETUPS
from tests.support.fake_hub import TOKEN, fake_hub
from tests.support.project import PROJECT
from tests.support.tiny_run import ROOT, checked_settings

# Pages with blocks that need the hub, a cluster, several processes or names of the surrounding code.
NOT_RUN = {
    "architecture.md": 1,
    "concepts/budgets.md": 1,
    "embeddings.md": 2,
    "howto/hub.md": 1,
    "howto/several-gpus.md": 1,
    "howto/untrained.md": 1,
}
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# Programs of a shell, whose arguments are not this package's.
SHELL = {
    "lm_eval",
    "cd",
    "cut",
    "ls",
    "cat",
    "wc",
    "for",
    "grep",
    "git",
    "eval",
    "export",
    "sbatch",
    "wandb",
    "tensorboard",
    "kill",
    "torchrun",
    "accelerate",
    "hf",
}
# Settings that a page leaves to the reader, such as `python train.py ... output_dir=DIR`.
LEFT_OUT = "..."


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run a page in, from which modules are imported; what its code registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(families, "_REGISTERED", {unit: dict(rows) for unit, rows in families._REGISTERED.items()})
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    families._find_row.cache_clear()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local server in place of the hub, an empty cache, and a login."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub(monkeypatch):
        yield


# Of huggingface_hub's use of its HTTP library, and of transformers' Trainer on a machine without a GPU.
@pytest.mark.runs
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language == "python" for b in blocks_of(page))])
def test_python_of_a_page_runs_from_top_to_bottom(page, folder, request):
    if page == "howto/export.md":
        pytest.importorskip("gguf", reason="the package gguf is not installed")
    write_files(page, folder)
    if page == "howto/hub.md":
        request.getfixturevalue("hub")
    names = {"__name__": "page", **SETUPS.get(page, dict)()}
    for block in blocks_of(page):
        if block.language == "python" and block.title is None and block.not_run is None:
            # The lines of the page, for tracebacks.
            exec(compile("\n" * block.line + block.code, page, "exec"), names)


@pytest.mark.runs
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language == "bash" for b in blocks_of(page))])
def test_commands_of_a_page_are_accepted(page, folder):
    write_files(page, folder)
    for block in blocks_of(page):
        if block.language == "bash" and block.not_run is None:
            for words in commands_of(block.code):
                check_command(words)


def check_command(words: list[str]) -> None:
    """Raise for a command that would stop at its arguments."""
    program, *arguments = words
    if words[:2] == ["python", "train.py"] or words[:2] == ["head-gating", "train"]:
        check_training(words[2:])
    elif program == "head-gating" or words[:3] == ["python", "-m", "gating"]:
        check_other(arguments if program == "head-gating" else words[3:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words
    elif program == "python":
        assert arguments[0].startswith("-") or (ROOT / arguments[0]).is_file(), words
    elif program == "make":
        assert f"\n{arguments[0]}: " in MAKEFILE, words
    elif program == "pip":
        for extras in re.findall(r"\[([\w,-]+)\]", " ".join(arguments)):
            assert set(extras.split(",")) <= EXTRAS.keys(), words
    else:
        assert program in SHELL, words


def check_training(arguments: list[str]) -> None:
    """Compose and validate the settings of a run, of a sweep those of its first job."""
    overrides, flags = [], []
    given = iter(word for word in arguments if word != LEFT_OUT)
    for word in given:
        if word in ("--config-dir", "--package"):
            value = next(given)
            overrides += [f"hydra.searchpath=[file://{value}]"] if word == "--config-dir" else []
        elif word in ("--cfg", "-sc", "--shell-completion"):
            flags.append((word, next(given)))
        elif word.startswith("-"):
            assert word in ("-m", "--multirun", "--help", "--resolve"), word
            flags.append((word, None))
        else:
            overrides.append(word)
    if ("--help", None) not in flags and not any(flag == "-sc" for flag, _ in flags):
        # A folder to resume and its files are in the reader's hands.
        given = [one for one in overrides if one == "resume=auto" or not one.startswith("resume=")]
        checked_settings([first_of_sweep(override) for override in given])


def first_of_sweep(override: str) -> str:
    """Return an override with the first of the values that a sweep takes."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    value = parsed.value()
    first = value.start if isinstance(value, IntervalSweep) else next(parsed.sweep_string_iterator())
    return f"{override.partition('=')[0]}={first}"


def check_other(arguments: list[str]) -> None:
    """Parse the arguments of a command other than that of training."""
    if "--help" not in arguments:
        assert _parser().parse_args(arguments).command == arguments[0]


def test_few_blocks_are_not_run_and_say_why():
    found = {page: sum(block.not_run is not None for block in blocks_of(page)) for page in PAGES}
    assert {page: number for page, number in found.items() if number} == NOT_RUN
