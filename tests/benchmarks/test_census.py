"""The census of model types: a sample is examined anew, and the stored results and their page agree."""

from collections import Counter

import pytest
import transformers

from benchmarks import records
from benchmarks.census.__main__ import RESULTS, examine_types
from benchmarks.census.models import build, model_types
from benchmarks.census.page import PAGE, groups_of, write_page
from benchmarks.census.removal import EXACT, Tiny, examine_heads, examine_neurons
from benchmarks.census.settings import SIZES
from gating.proof.probe import run_probe

# Text, grouped queries, a position bias, towers, latent heads in a class of another name, sound, images.
SAMPLE = ("bert", "qwen3", "t5", "qwen2_vl", "longcat_flash", "wav2vec2", "swin")
REFUSED = {"olmo2": "q_norm normalizes across all heads", "deepseek_v4": "multi-head latent attention is unknown"}


# All in one test, as their processes import transformers once.
@pytest.mark.runs
def test_a_sample_is_exact_by_the_registry_and_refusals_have_a_reason():
    examined = {row["model_type"]: row for row in examine_types([*SAMPLE, *REFUSED])}
    for row in (examined[model_type] for model_type in SAMPLE):
        assert row["outcome"] == "exact", row
        assert (row["by"], row["ungated"], row["unproven"]) == ("registry", [], {}), row
        assert max(row["difference"], row["neurons_difference"], row["reload_difference"]) <= EXACT, row
        assert row["save_neurons"], row
        assert row["uneven"]["outcome"] == "exact", row["uneven"]
        assert row["transformers"] == transformers.__version__
    for model_type, reason in REFUSED.items():
        assert examined[model_type]["outcome"] == "refused"
        assert reason in examined[model_type]["reason"]


@pytest.fixture(scope="module")
def stored():
    return records.read(RESULTS)


def test_stored_results_are_of_all_types_and_none_is_wrong(stored):
    if {row["transformers"] for row in stored} != {transformers.__version__}:
        pytest.skip("the stored results are of another version of transformers")
    assert [row["model_type"] for row in stored] == sorted(model_types())
    outcomes = Counter(row["outcome"] for row in stored)
    assert outcomes["wrong"] == 0


def test_seven_of_ten_types_are_exact_and_half_by_the_registry(stored):
    sizes = {name: len(rows) for name, rows in groups_of(stored).items()}
    examined = sum(number for name, number in sizes.items() if name not in ("no attention", "not built", "not run"))
    exact = sizes["exact by the registry"] + sizes.get("exact with `discover=True`", 0)
    assert exact >= 0.7 * examined
    assert sizes["exact by the registry"] >= 0.5 * examined


def test_the_page_is_that_of_the_results(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.census.page.PAGE", tmp_path / "coverage.md")
    write_page(stored, tolerance=EXACT)
    assert (tmp_path / "coverage.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_tiny_models_have_random_biases_and_gains():
    model = build("bert")
    assert all(weight.std() > 0 for weight in model.parameters() if weight.numel() > 1)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_tiny_model_has_the_sizes_that_are_asked_for(sizes):
    config = build("bert", sizes).config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (sizes[0], sizes[1], sizes[4])


def test_rows_of_heads_and_neurons_of_the_second_sizes_do_not_divide_by_chance():
    sizes = SIZES[1]
    assert [kept for kept in range(1, sizes.heads) if kept * sizes.head_dim % sizes.heads == 0] == [3]
    assert sizes.hidden % sizes.width
    assert sizes.width % 16


def test_tables_of_sines_stay():
    model = build("marian")
    table = model.model.encoder.embed_positions
    assert table.weight.equal(table.create_weight())


@pytest.mark.parametrize("examine", [examine_heads, examine_neurons])
def test_a_mask_that_changes_nothing_proves_nothing(examine):
    model = build("bert")
    for layer in model.bert.encoder.layer:
        for output in (layer.attention.output.dense, layer.output.dense):
            output.weight.detach().mul_(1e-7)
    row = examine(Tiny(model, *run_probe(model)))
    assert row["outcome"] == "unproven"
    assert sum(row["unproven"].values()) == 2
