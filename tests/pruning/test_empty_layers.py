"""Layers that a search leaves without any unit leave the model, where it computes the same without them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import gating
from gating.loader.modeling import RECORD_KEY
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning import empty_layers
from gating.pruning.layers import build_original
from gating.pruning.plan import remove_recorded
from gating.report.rows import heads_per_layer, layers_left, neurons_per_layer
from gating.structure.layers import find_layer_lists
from tests.support.family_models import FAMILIES
from tests.support.fresh_process import auto_class_of, difference_elsewhere, save_for_elsewhere
from tests.support.masked_models import TOLERANCE, generate_all, ways_to_generate
from tests.support.tiers import first_of, tiered
from tests.support.tiny_models import assert_same_state, state_of

# Hybrid models have layers without gates.
pytestmark = pytest.mark.filterwarnings("ignore:.*get no gates")

Emptied = Callable[[int], set[int]]


def last_two(num_layers: int) -> set[int]:
    return {num_layers - 2, num_layers - 1} - {0}


def gates_without(model: PreTrainedModel, emptied: Emptied, *, uneven: bool = True) -> gating.HeadGates:
    """Return gates that are closed in some layers, and in others in the first third of each block."""
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=8)
    lists = find_layer_lists(model)
    gone = {block.name for one in lists for number in emptied(len(one.layers)) for block in one.blocks[number]}
    with torch.no_grad():
        gates.log_alpha.fill_(9.0)
        for block, values in zip(gates.blocks(), gates.log_alpha.split(gates.block_sizes), strict=True):
            values[: len(values) if block.name in gone else len(values) // 3 * uneven] = -9.0
            values[-1:] = -9.0 if block.name in gone else 0.5
    return gates


def sizes(model: PreTrainedModel) -> dict[str, int]:
    return {one.name: len(one.layers) for one in find_layer_lists(model)}


def check_finalized(name: str, emptied: Emptied, folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Empty layers of a family, and compare outputs and generated tokens; return the sizes of its lists."""
    family = FAMILIES[name]
    model = family.build()
    probe, ways, before = make_probe(model), ways_to_generate(family), sizes(model)
    gates = gates_without(model, emptied)
    masked, tokens = forward_outputs(model, probe), generate_all(model, probe, ways)
    report = gating.finalize(model, gates, probe=probe)
    assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE
    assert generate_all(model, probe, ways) == tokens
    gating.save_compact(model, folder)
    loaded = gating.load_compact(folder)
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(loaded, probe)) == 0.0
    assert generate_all(loaded, probe, ways) == tokens
    assert {name: len(kept) for name, kept in report.kept_layers.items()}.items() <= sizes(model).items()
    return before, sizes(model)


# Without biases, with them, with layer types, in two towers, with a position bias in the first layer.
PRE_NORM = ["llama", "gpt2", "gemma3", "mistral", "qwen2", "opt", "vit", "mbart", "whisper", "t5", "clip", "qwen3_next"]


@pytest.mark.parametrize("name", first_of(PRE_NORM, every=3))
def test_empty_layers_leave_models_whose_norms_come_first(name: str, tmp_path: Path) -> None:
    before, after = check_finalized(name, last_two, tmp_path / "compact")
    assert after == {one: size - len(last_two(size)) for one, size in before.items()}


@pytest.mark.parametrize("name", first_of(["bert", "bart"]))
def test_empty_layers_stay_where_norms_come_last(name: str, tmp_path: Path) -> None:
    before, after = check_finalized(name, last_two, tmp_path / "compact")
    assert after == before


@pytest.mark.families
@pytest.mark.parametrize(
    "name", tiered(sorted(set(FAMILIES) - {"albert", "longcat_flash", "nemotron_h", *PRE_NORM}), mark="slow")
)
def test_any_family_computes_the_same_with_or_without_empty_layers(name: str, tmp_path: Path) -> None:
    check_finalized(name, last_two, tmp_path / "compact")


@pytest.mark.parametrize(("name", "num_layers"), first_of([("t5", 2), ("gpt2", 1), ("llama", 1)]))
def test_a_first_layer_stays_if_others_need_it(name: str, num_layers: int, tmp_path: Path) -> None:
    # T5's has the position biases of all layers; GPT-2's takes the biases of the next.
    emptied: Emptied = (lambda n: {0}) if name == "t5" else (lambda n: {0, 1})
    before, after = check_finalized(name, emptied, tmp_path / "compact")
    expected = dict.fromkeys(before, 3) if name == "t5" else dict.fromkeys(before, 3 - num_layers)
    expected = expected if name != "llama" else dict.fromkeys(before, 1)
    assert after == expected


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        num_hidden_layers=4,
        vocab_size=50,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def test_whole_layers_make_a_stock_folder(tmp_path: Path) -> None:
    model = llama()
    gating.finalize(model, gates_without(model, lambda n: {1, 3}, uneven=False))
    probe = make_probe(model)
    save_for_elsewhere(model, tmp_path / "stock", probe, stock=True)
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"]) == (2, 4)
    assert "head_gating" not in config
    assert difference_elsewhere(tmp_path / "stock", "AutoModelForCausalLM") == 0.0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(plain, probe)) == 0.0
    options = {"max_new_tokens": 5, "do_sample": False}
    tokens = plain.generate(probe["input_ids"], **options)
    assert torch.equal(tokens, plain.generate(probe["input_ids"], use_cache=False, **options))


@pytest.mark.parametrize("name", first_of(["gemma3", "gpt2", "whisper"]))
def test_uneven_folders_load_without_this_package(name: str, tmp_path: Path) -> None:
    model = FAMILIES[name].build()
    probe = make_probe(model)
    gating.finalize(model, gates_without(model, last_two), probe=probe)
    save_for_elsewhere(model, tmp_path / "compact", probe, stock=False)
    assert difference_elsewhere(tmp_path / "compact", auto_class_of(model)) == 0.0


def test_an_error_in_a_later_list_brings_back_the_layers_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["whisper"].build()
    gates = gates_without(model, last_two)
    before, config, text = state_of(model), model.config.to_dict(), str(model)
    proven: list[object] = []

    def prove(*arguments: object) -> None:
        proven.append(arguments)
        if len(proven) == 2:
            raise torch.OutOfMemoryError("no memory is left")

    with monkeypatch.context() as patch:
        patch.setattr(empty_layers, "check_proven", prove)
        with pytest.raises(torch.OutOfMemoryError):
            gating.finalize(model, gates)
    assert_same_state(model, before)
    assert (model.config.to_dict(), str(model)) == (config, text)
    assert gating.finalize(model, gates).kept_layers.keys() == {"encoder.layers", "decoder.layers"}


def test_reports_have_the_names_of_the_original_model() -> None:
    model = llama()
    report = gating.finalize(model, gates_without(model, lambda n: {1}))
    assert report.kept_layers == {"layers": (0, 2, 3)}
    assert {name: bool(heads) for name, heads in report.kept_heads.items()} == {
        f"layers.{number}.self_attn": number != 1 for number in range(4)
    }
    assert report.folded.keys() == report.kept_heads.keys() | report.kept_neurons.keys()
    assert [(name, len(kept), before) for name, kept, before in heads_per_layer(model)] == [
        (f"layers.{number}.self_attn", 0 if number == 1 else 4, 4) for number in range(4)
    ]
    assert [(name, kept > 0, before) for name, kept, before in neurons_per_layer(model)] == [
        (f"layers.{number}.mlp.down_proj", number != 1, 32) for number in range(4)
    ]
    assert layers_left(model) == "Layers of layers that stay: 0, 2, 3."
    assert build_original(model, model.config).config.num_hidden_layers == 4


def test_layers_that_leave_one_after_another_keep_their_first_numbers() -> None:
    model = llama()
    gating.finalize(model, gates_without(model, lambda n: {1}))
    report = gating.finalize(model, gates_without(model, lambda n: {1}))
    assert report.kept_layers == {"layers": (0, 3)}
    assert [name for name, heads in report.kept_heads.items() if heads] == ["layers.0.self_attn", "layers.3.self_attn"]
    assert [block.module.layer_idx for block in gating.find_attention_blocks(model)] == [0, 1]
    assert build_original(model, model.config).config.num_hidden_layers == 4


@pytest.mark.parametrize("name", first_of(["gemma3", "t5", "gpt2"]))
def test_a_removal_is_repeated_on_the_dense_model(name: str) -> None:
    compact, dense = FAMILIES[name].build(), FAMILIES[name].build()
    gating.finalize(compact, gates_without(compact, last_two))
    remove_recorded(dense, json.loads(json.dumps(getattr(compact.config, RECORD_KEY))))
    dense.load_state_dict(compact.state_dict())
    probe = make_probe(dense)
    assert max_relative_difference(forward_outputs(compact, probe), forward_outputs(dense, probe)) == 0.0
    assert dense.config.to_dict() == compact.config.to_dict()


def test_a_second_removal_is_repeated_on_a_model_with_an_emptied_block() -> None:
    start = FAMILIES["bert"].build()
    gating.prune_heads(start, {0: range(4)})
    compact = copy.deepcopy(start)
    gating.prune_heads(compact, {1: [0, 2]})
    remove_recorded(start, getattr(compact.config, RECORD_KEY))
    assert [block.head_ids for block in gating.find_attention_blocks(start)] == [
        block.head_ids for block in gating.find_attention_blocks(compact)
    ]
    start.load_state_dict(compact.state_dict())
    probe = make_probe(start)
    assert max_relative_difference(forward_outputs(compact, probe), forward_outputs(start, probe)) == 0.0


def test_gradients_reach_all_that_is_left() -> None:
    model = llama()
    gating.finalize(model, gates_without(model, last_two))
    outputs = model(**make_probe(model))
    outputs.logits.pow(2).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "layers",
    [
        {"kept": {"layers": [0, 10**6]}},
        {"config": {"num_hidden_layers": 10**6}},
        {"config": {"_attn_implementation": "x"}},
        {"heads": {"layers.1.self_attn": -4}},
        {"others": {}},
        {"kept": 3},
    ],
    ids=str,
)
def test_a_damaged_table_of_layers_is_refused(layers: dict[str, object], tmp_path: Path) -> None:
    model = llama()
    gating.finalize(model, gates_without(model, last_two))
    gating.save_compact(model, tmp_path / "compact", stock=False)
    path = tmp_path / "compact" / "config.json"
    config = json.loads(path.read_text())
    config["head_gating"]["layers"] |= layers
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers"):
        gating.load_compact(tmp_path / "compact", verify=False)
