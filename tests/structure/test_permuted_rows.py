"""Families whose checkpoints have the rows of each head in another order than the model, by the configured counts.

The numbers of heads that stay divide neither the rows nor the original number.
"""

from collections.abc import Iterator

import pytest
import transformers
from transformers import PreTrainedModel

import gating
from gating.families import registry as families
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import randomize
from tests.support.fresh_process import answers_of_fresh_process, outputs_of
from tests.support.tiers import first_of
from tests.support.versions import class_of_transformers

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore:.*get no gates")]

VISION = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "intermediate_size": 40}
MLA = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
CASES = {
    "kimi_k25": (
        "Kimi_K25ForConditionalGeneration",
        {
            "text_config": {**MLA, "model_type": "deepseek_v3", "q_lora_rank": 16},
            "vision_config": {**VISION, "patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4},
            "projection_hidden_size": 48,
            "image_token_id": 99,
            "video_token_id": 98,
            "vision_start_token_id": 97,
            "tie_word_embeddings": False,
        },
        "AutoModelForImageTextToText",
    ),
    "mistral_large4": (
        "MistralLarge4ForConditionalGeneration",
        {
            "text_config": {**MLA, "index_topk": 2048, "index_head_dim": 16, "index_n_heads": 4},
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8, "image_size": 64, "patch_size": 14},
            "image_token_index": 10,
        },
        "AutoModelForImageTextToText",
    ),
    "step3p5_vision": (
        "Step3p7VisionModel",
        {**VISION, "image_size": 64, "patch_size": 14, "max_position_embeddings": 512},
        "AutoModel",
    ),
    "gradium_phonon_tts": (
        "GradiumPhononTTSForConditionalGeneration",
        {
            **VISION,
            "num_key_value_heads": 6,
            "head_dim": 8,
            "vocab_size": 320,
            "flow_head_config": {"condition_dim": 48},
        },
        "AutoModelForTextToWaveform",
    ),
}
UNKNOWN = {"Step3p7VisionAttention": "out_proj", "GradiumPhononTTSAttention": "o_proj"}


@pytest.fixture(scope="module", autouse=True)
def described() -> Iterator[None]:
    """Describe the classes that the registry lacks, as a user would."""
    before = dict(families._REGISTERED["heads"])
    for name, output in UNKNOWN.items():
        rows = tuple((f"{one}_proj", one) for one in "qkv")
        gating.register_attention_spec(name, gating.AttentionSpec(rows, output))
    yield
    families._REGISTERED["heads"] = before


def build(name: str) -> PreTrainedModel:
    class_name, settings, _ = CASES[name]
    model_class = class_of_transformers(class_name)
    return randomize(model_class(model_class.config_class(**settings)), std=0.1, seed=0).eval()


def prune(model: PreTrainedModel) -> None:
    """Keep 5, 2 and 4 of 6 heads in the layers in turn."""
    blocks = [block for block in gating.find_attention_blocks(model) if block.num_heads == 6]
    assert len(blocks) == 3
    for block, heads in zip(blocks, ([0], [1, 2, 3, 5], [2, 4]), strict=True):
        gating.prune_heads(model, {block.name: heads})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By name and origin of the model: folder, batch and outputs; of the dense model as well."""
    place, found = tmp_path_factory.mktemp("permuted"), {}
    for name in CASES:
        dense = build(name)
        probe = make_probe(dense)
        whole = forward_outputs(dense, probe)
        dense.save_pretrained(place / f"{name}-dense")
        loaded = type(dense).from_pretrained(place / f"{name}-dense").eval()
        for origin, model in (("new", dense), ("loaded", loaded)):
            prune(model)
            folder = gating.save_compact(model, place / f"{name}-{origin}")
            found[name, origin] = folder, probe, forward_outputs(model, probe), whole
    return found


@pytest.mark.processes
@pytest.mark.parametrize("origin", first_of(["loaded", "new"]))
@pytest.mark.parametrize("name", first_of(CASES))
def test_it_is_loaded_and_saved_again_with_equal_outputs(name, origin, saved, tmp_path):
    folder, probe, expected, whole = saved[name, origin]
    assert max_relative_difference(whole, expected) > 1e-3
    loaded = gating.load_compact(folder)
    assert max_relative_difference(expected, forward_outputs(loaded, probe)) == 0
    loaded.save_pretrained(tmp_path / "again")
    assert max_relative_difference(expected, forward_outputs(gating.load_compact(tmp_path / "again"), probe)) == 0


@pytest.mark.families
def test_transformers_alone_loads_it_with_equal_outputs(saved):
    jobs = {
        name: {"folder": str(saved[name, "loaded"][0]), "auto_class": CASES[name][2], "batch": saved[name, "loaded"][1]}
        for name in CASES
    }
    answers = answers_of_fresh_process(jobs, with_package=False)
    for name in CASES:
        expected = saved[name, "loaded"][2]
        assert max_relative_difference(expected[:1], outputs_of(answers[name])[:1]) < 1e-6, name


@pytest.mark.families
@pytest.mark.parametrize("name", first_of(CASES))
def test_names_of_the_model_class_are_loaded_as_well(name, saved, tmp_path):
    """Models that are cut over processes are saved under these."""
    folder, probe, expected, _ = saved[name, "new"]
    gating.load_compact(folder).save_pretrained(tmp_path / "own", save_original_format=False)
    assert max_relative_difference(expected, forward_outputs(gating.load_compact(tmp_path / "own"), probe)) == 0


def test_a_stock_model_has_the_rows_in_the_order_of_checkpoints(tmp_path):
    model = build("gradium_phonon_tts")
    probe = make_probe(model)
    for block in gating.find_attention_blocks(model):
        gating.prune_heads(model, {block.name: [1, 4]})
    folder = gating.save_compact(model, tmp_path / "stock", stock=True)
    plain = transformers.GradiumPhononTTSForConditionalGeneration.from_pretrained(folder).eval()
    assert plain.config.num_attention_heads == 4
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(plain, probe)) == 0
