"""Requirements of the package: all imported packages, with bounds where private names are used."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.version import Version

import gating
from tests.support.tiny_run import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = [ROOT / "train.py", *(ROOT / "gating").rglob("*.py")]
# Pydantic comes with exactly one version of its core.
WITH_OTHERS = {"pydantic_core"}
# Of each package, private names that are used somewhere.
PRIVATE = {
    "torch": r"torch\._",
    "transformers": r"\._from_config|\"_model_mapping\"",
    "datasets": r"\._fingerprint",
    "sacrebleu": r"_extract_corpus_statistics",
    "pytorch-lightning": r"\._batches_that_stepped",
}


def normal(name):
    return name.lower().replace("_", "-")


def requirements(*extras):
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    return {normal(requirement.name): requirement for requirement in map(Requirement, texts)}


def imported():
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module)
            found |= {name.split(".")[0] for name in names}
    return found - sys.stdlib_module_names - {"gating", "train"} - WITH_OTHERS


def test_all_that_is_imported_is_named():
    distributions = packages_distributions()
    named = set(requirements(*PROJECT["optional-dependencies"]))
    for module in imported():
        assert named & {normal(name) for name in distributions[module]}, module


@pytest.mark.parametrize("name", PRIVATE)
def test_packages_with_private_names_in_use_are_bounded(name):
    assert any(re.search(PRIVATE[name], path.read_text(encoding="utf-8")) for path in SOURCES)
    specifier = requirements("train")[normal(name)].specifier
    assert any(one.operator == "<" for one in specifier)


def test_every_requirement_has_a_lowest_version():
    for requirement in requirements(*PROJECT["optional-dependencies"]).values():
        is_own = requirement.name == PROJECT["name"]
        assert is_own or any(one.operator in (">=", "==") for one in requirement.specifier), requirement


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_compromised_releases_of_lightning_are_excluded(version):
    specifier = requirements("train")["pytorch-lightning"].specifier
    assert Version(version) not in specifier
    assert Version("2.6.4") in specifier


def test_the_citation_has_the_version():
    assert f"\nversion: {gating.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_both_ways_of_continuous_integration_call_the_same_targets():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    command = re.compile(r"^(?:\s+- run: )?(make [\w-]+)$", re.M)
    for text in (workflow, (ROOT / ".ci" / "run").read_text()):
        assert command.findall(text) == ["make test-all", "make check", "make docs"]
    versions = re.search(r"python: \[(.*)\]", workflow)[1].replace('"', "").split(", ")
    classifiers = [f"Programming Language :: Python :: {version}" for version in versions]
    assert [name for name in PROJECT["classifiers"] if ":: Python :: 3." in name] == classifiers
