"""References of the documentation: they have every public name, command and setting, and links out of docs/ hold."""

import importlib.util
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from matplotlib.figure import Figure

import gating
import gating.integrations
from gating.__main__ import COMMANDS
from tests.docs.pages import DOCS
from tests.support.tiny_run import ROOT

CONF = ROOT / "conf"
OPTIONS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/*.yaml"))


def hook(name: str) -> ModuleType:
    """Import a module of docs/hooks, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_hooks_{name}", DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def settings() -> str:
    return hook("settings_reference").settings_reference()


def test_the_reference_of_python_has_every_public_name_once():
    page = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference" / "python").glob("*.md"))
    assert sorted(re.findall(r"^::: gating\.(\w+)$", page, re.M)) == sorted(set(gating.__all__) - {"__version__"})
    assert set(re.findall(r"^::: gating\.integrations\.(\w+)$", page, re.M)) == set(gating.integrations.__all__)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_a_section_with_its_comment_and_settings(settings, option):
    group, name = option.split("/")
    section = settings.partition(f"{{ #{group}-{name} }}")[2].partition("\n###")[0].partition("\n## ")[0]
    text = (CONF / f"{option}.yaml").read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if "@package" not in line)
    assert first.lstrip("# ").partition("python train.py")[0].strip() in section
    if "@package" in text:
        return
    for key in set(yaml.safe_load(text) or {}) - {"defaults", "_target_", "_partial_", "help"}:
        assert re.search(rf"`{group}\.{key}[`.]", section), key


def test_most_settings_have_a_meaning(settings):
    rows = [row for row in settings.splitlines() if row.startswith("| `") and "_target_" not in row]
    without = [row for row in rows if row.endswith("|  |") and "hydra." not in row]
    assert len(without) < 0.05 * len(rows), without


def test_settings_of_the_run_have_their_comments_and_defaults(settings):
    table = settings.partition("## The run")[2].partition("\n## ")[0]
    assert "| `recovery` | `null` | Share of the run's steps" in table
    assert "| `convergence.patience` | `5` | Number of consecutive checks" in table


def test_the_reference_of_commands_has_all():
    shown = hook("commands_reference").commands_reference()
    for command in ("train", *COMMANDS):
        assert f"## head-gating {command}\n" in shown
    assert "usage: head-gating inspect" in shown


def test_the_help_of_commands_fits_a_screen():
    module = hook("commands_reference")
    assert max(map(len, module.commands_reference().splitlines())) <= module.WIDTH + 2
    wrapped = module._wrapped(f"  name=VALUE   {'words and ' * 12}".rstrip())
    assert [line[15] != " " for line in wrapped.splitlines()] == [True] * len(wrapped.splitlines())


def test_explanations_come_before_references_in_the_search():
    def boost(path: str) -> float:
        page = SimpleNamespace(file=SimpleNamespace(src_uri=path), meta={})
        hook("search").on_page_markdown("", page, None, None)
        return page.meta.get("search", {"boost": 1.0})["boost"]

    assert boost("concepts/budgets.md") > boost("howto/trainer.md") > boost("speed.md")
    assert boost("speed.md") > boost("reference/python/gates.md") == boost("reference/settings.md")


def test_links_out_of_the_folder_lead_to_the_repository_and_pictures_into_the_site(caplog):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="howto/page.md"))
    config = SimpleNamespace(repo_url="https://host/us/repository")

    def replaced(text: str) -> str:
        return hook("links").on_page_markdown(text, page, config, None)

    assert replaced("[a](../../train.py)") == "[a](https://host/us/repository/blob/main/train.py)"
    assert replaced("[a](../../README.md#limits)") == "[a](https://host/us/repository/blob/main/README.md#limits)"
    assert replaced("[a](../../conf/)") == "[a](https://host/us/repository/tree/main/conf)"
    assert replaced("![a](../../benchmarks/results/latency.png)") == "![a](../images/latency.png)"
    assert replaced("[a](../tasks.md#measured) [b](data.md)") == "[a](../tasks.md#measured) [b](data.md)"
    assert not caplog.records
    replaced("[a](../../nothing.py)")
    assert "nothing.py" in caplog.text


def test_pictures_of_concepts_are_drawn():
    pictures = hook("pictures").PICTURES
    for name, draw in pictures.items():
        assert isinstance(draw(), Figure)
        assert (DOCS / "images" / f"{name}.svg").is_file()
