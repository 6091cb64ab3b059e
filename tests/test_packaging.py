"""The package: requirements of all that is imported, what wheel and source archive hold, and workflows."""

import ast
import os
import re
import sys
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import gating
from tests.support.project import PROJECT
from tests.support.tiny_run import ROOT

SOURCES = [ROOT / "train.py", *(ROOT / "gating").rglob("*.py")]
# Pydantic comes with exactly one version of its core.
WITH_OTHERS = {"pydantic_core"}
# Rows of private names of other packages: the names, the package, and a file that uses them.
PRIVATE = re.findall(
    r"^\| (`_.*`) \| (\S+) \| `(\S+)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
)


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
        # Python 3.10 knows the modules of some packages only.
        assert named & {normal(name) for name in distributions.get(module, [module])}, module


@pytest.mark.parametrize(("names", "package", "file"), PRIVATE, ids=[file for *_, file in PRIVATE])
def test_private_names_of_the_list_are_in_use_and_their_packages_bounded(names, package, file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for name in re.findall(r"[\w.]+", names):
        assert name in text
    specifier = requirements("train", "trainer")[package].specifier
    assert any(one.operator == "<" for one in specifier)


def test_the_list_has_all_private_names_of_other_packages():
    trees = [ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]
    own, used = set(), {}
    for node in (node for tree in trees for node in tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and getattr(node.value, "id", "") == "self"
            and isinstance(node.ctx, ast.Store)
        ):
            own.add(node.attr)
        elif isinstance(node, ast.Attribute):
            used[node.attr] = node
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and not node.module.startswith("gating"):
            used |= dict.fromkeys([*node.module.split("."), *(alias.name for alias in node.names)], node)
    private = {name for name in used.keys() - own if re.match(r"_[^_]", name)} - {"_exit", "_getframe"}
    assert private <= set(re.findall(r"\w+", " ".join(names for names, *_ in PRIVATE)))


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
    assert f"\nversion: {gating.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))


def targets_of(text):
    return re.findall(r"^make ([\w-]+)", text, re.M)


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_files_of_github_are_read(path):
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "workflows":
        # YAML 1.1 reads the key `on` as a truth value.
        assert {"name", True, "jobs", "permissions"} <= table.keys()
        for job in table["jobs"].values():
            assert job["timeout-minutes"]
            assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_both_ways_of_continuous_integration_call_the_same_targets():
    runs = [step["run"] for job in workflow("ci")["jobs"].values() for step in job["steps"] if "run" in step]
    expected = ["test-all", "check", "docs"]
    assert targets_of("\n".join(runs)) == targets_of((ROOT / ".ci" / "run").read_text(encoding="utf-8")) == expected
    versions = workflow("ci")["jobs"]["test"]["strategy"]["matrix"]["python"]
    classifiers = [f"Programming Language :: Python :: {version}" for version in versions]
    assert [name for name in PROJECT["classifiers"] if ":: Python :: 3." in name] == classifiers


def test_workflows_call_targets_that_exist():
    rows = workflow("weekly")["jobs"]["versions"]["strategy"]["matrix"]["include"]
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in {row["target"] for row in rows} | set(re.findall(r"run: make ([\w-]+)", text)):
        assert re.search(rf"^{target}\b.*:", makefile, re.M), target


def test_wheel_and_source_archive_hold_the_package_and_nothing_else():
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    def names(builder):
        return {file.distribution_path.replace(os.sep, "/") for file in builder(str(ROOT)).recurse_included_files()}

    def files(folder, pattern="*"):
        found = (
            path
            for path in (ROOT / folder).rglob(pattern)
            if path.is_file() and not re.search(r"/(\.|__pycache__)", str(path.relative_to(ROOT)))
        )
        return {path.relative_to(ROOT).as_posix() for path in found}

    package = files("gating") - files("gating", "ruff.toml")
    assert names(WheelBuilder) == package | {f"gating/{name}" for name in {"train.py", *files("conf")}}
    # The project's table, the license and the README come with every archive.
    beside = {"train.py", "CHANGELOG.md", "CITATION.cff", "SECURITY.md"}
    assert names(SdistBuilder) - {".gitignore"} == files("gating") | files("conf") | beside


def test_the_extra_all_has_the_extras_of_users():
    own = {"demo", "docs", "test", "test-lowest", "dev", "all"}
    found = [Requirement(text).extras for text in PROJECT["optional-dependencies"]["all"]]
    assert set().union(*found) == set(PROJECT["optional-dependencies"]) - own


def test_no_extra_has_the_runtime_of_another():
    runtimes = {"onnxruntime", "openvino", "xllamacpp", "vllm"}
    for name in set(PROJECT["optional-dependencies"]) - {"all", "test", "dev"}:
        assert len(runtimes & set(requirements(name))) <= (name in ("onnx", "openvino", "gguf")), name
