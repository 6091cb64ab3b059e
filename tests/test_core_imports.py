"""The core and its commands where only the requirements without extras are installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import PROJECT
from tests.support.tiny_run import ROOT, make_model_folder

# Import names of the packages of extras that differ from their names in pyproject.toml.
IMPORTED_AS = {"hydra_core": "hydra", "pillow": "PIL", "pyyaml": "yaml", "scikit_learn": "sklearn"}
# Those that an extra needs newer, and packages that come with torch, transformers and huggingface_hub.
WITH_THE_CORE = {"torch", "transformers", "tokenizers", "tqdm", "filelock", "yaml", "numpy", "jinja2"}

# Hides packages as if they were not installed: also from importlib.util.find_spec, by which transformers asks.
HIDING = """
import sys
from importlib.machinery import PathFinder

HIDDEN = set(sys.argv.pop(1).split(","))

class Finder:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.path.insert(0, sys.argv.pop(1))
"""

LIBRARY = """
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

import gating

source, folder = sys.argv[1:]
model = BertForSequenceClassification.from_pretrained(source)
tokenizer = AutoTokenizer.from_pretrained(source)
batch = dict(tokenizer(["word1 word2", "word3"], padding=True, return_tensors="pt"))
weights = list(model.parameters())
gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=8)
objective = gating.ExactBudget(num_heads=5, num_neurons=96)
objective.attach(gates)
optimizer = torch.optim.AdamW([{"params": weights, "lr": 1e-4}, {"params": gates.parameters(), "lr": 0.1}])
for step in range(3):
    objective.update(gates, step / 3)
    (model(**batch, labels=torch.tensor([0, 1])).loss + objective.penalty(gates)).backward()
    optimizer.step()
    optimizer.zero_grad()
gating.finalize(model, gates, objective)
gating.prune_heads(model, {0: [0]})
gating.prune_neurons(model, {2: [0]}, group_size=8)
model.eval()
gating.save_compact(model, folder, tokenizer=tokenizer)
with torch.no_grad():
    assert torch.equal(gating.load_compact(folder)(**batch).logits, model(**batch).logits)
gating.export_onnx(folder, folder + "-onnx")
"""
COMMAND = """
import runpy
runpy.run_module("gating", run_name="__main__", alter_sys=True)
"""
SCRIPT = """
import runpy
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def packages_of_extras() -> set[str]:
    texts = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    names = {re.match(r"[\w-]+", text)[0].replace("-", "_") for text in texts} - {"head_gating"}
    return {IMPORTED_AS.get(name, name) for name in names} | {"lightning_fabric"}


def run_without(hidden: set[str], code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which packages cannot be found."""
    command = [sys.executable, "-c", HIDING + code, ",".join(sorted(hidden)), str(ROOT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("core") / "model")


@pytest.fixture(scope="module")
def compact(source: Path) -> Path:
    """The folder that the library writes without extras; its last line exports, which needs one."""
    folder = source.parent / "compact"
    ended = run_without(packages_of_extras() - WITH_THE_CORE, LIBRARY, source, folder)
    assert ended.stderr.splitlines()[-1].endswith("The package onnx is needed: pip install 'head-gating[onnx]'"), (
        ended.stderr
    )
    assert not (source.parent / "compact-onnx").exists()
    return folder


def test_the_core_gates_removes_saves_and_loads(compact):
    assert (compact / "model.safetensors").is_file()
    assert (compact / "README.md").is_file()


@pytest.mark.processes
def test_inspect_needs_no_extra(compact):
    ended = run_without(packages_of_extras() - WITH_THE_CORE, COMMAND, "inspect", compact)
    assert ended.returncode == 0, ended.stderr
    assert "4 of 12 heads" in ended.stdout


@pytest.mark.parametrize("start", ["command", "script"])
def test_training_without_its_extra_is_one_sentence(start):
    code, arguments = (COMMAND, ["train", "seed=1"]) if start == "command" else (SCRIPT, [ROOT / "train.py"])
    ended = run_without({"hydra"}, code, *arguments)
    assert ended.returncode == 1
    assert ended.stderr == "error: hydra is missing: pip install 'head-gating[train]'\n"


def test_trainers_without_their_extra_are_one_sentence():
    ended = run_without({"accelerate"}, "import gating; gating.prune")
    assert ended.stderr.splitlines()[-1].endswith(": pip install 'head-gating[trainer]'")


def test_a_command_without_its_packages_leaves_the_others(compact):
    without_rich = run_without({"rich"}, COMMAND, "inspect", compact)
    assert without_rich.returncode == 1
    assert without_rich.stderr.startswith("error: rich is missing: pip install 'head-gating[train]'")
    assert "export" in run_without({"rich"}, COMMAND, "--help").stdout
