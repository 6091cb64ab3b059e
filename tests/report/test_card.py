"""Model cards of compact models."""

import pytest

import gating
from gating.report.card import CompactReport, Row, heads_per_layer, neurons_per_layer, write_card

REPORT = CompactReport(
    rows=[Row("attention heads", "12", "7", "0.58"), Row("latency (ms)", "9.1", "7.0", "1.30x faster")],
    metrics=[("compact", "91.00 %", "90.50 %")],
    metric_name="accuracy",
    notes=["Latency: one thread."],
)


@pytest.fixture
def pruned(bert):
    gating.prune_heads(bert, {0: [1], 1: range(4)})
    return bert


def card_of(model, folder, report=None):
    write_card(folder / "README.md", model, report)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_heads_per_layer_are_those_of_the_record(pruned):
    assert heads_per_layer(pruned) == [
        ("encoder.layer.0.attention.self", [0, 2, 3], 4),
        ("encoder.layer.1.attention.self", [], 4),
        ("encoder.layer.2.attention.self", [0, 1, 2, 3], 4),
    ]


def test_the_card_opens_with_the_metadata_that_hubs_read(pruned, tmp_path):
    lines = card_of(pruned, tmp_path).splitlines()
    assert lines[0] == "---"
    header = lines[1 : lines.index("---", 1)]
    assert "library_name: transformers" in header
    assert "- head-gating" in header


def test_the_card_lists_the_kept_heads(pruned, tmp_path):
    lines = card_of(pruned, tmp_path).splitlines()
    assert "| encoder.layer.0.attention.self | 0, 2, 3 | 3 of 4 |" in lines
    assert "| encoder.layer.1.attention.self | none | 0 of 4 |" in lines
    assert "| encoder.layer.2.attention.self | 0, 1, 2, 3 | 4 of 4 |" in lines


def test_the_card_has_the_measured_tables(pruned, tmp_path):
    lines = card_of(pruned, tmp_path, REPORT).splitlines()
    at = lines.index("|  | before | after | ratio |")
    assert lines[at + 1 : at + 4] == [
        "| --- | --- | --- | --- |",
        "| attention heads | 12 | 7 | 0.58 |",
        "| latency (ms) | 9.1 | 7.0 | 1.30x faster |",
    ]
    assert "| stage | validation accuracy | test accuracy |" in lines
    assert "| compact | 91.00 % | 90.50 % |" in lines
    assert "Latency: one thread." in lines


def test_a_card_without_measurements_has_no_empty_table(pruned, tmp_path):
    assert "before" not in card_of(pruned, tmp_path)
    assert "| stage |" not in card_of(pruned, tmp_path, CompactReport(rows=REPORT.rows))


@pytest.mark.parametrize(
    ("family", "auto_class"),
    [
        ("bert", "AutoModelForSequenceClassification"),
        ("distilbert", "AutoModelForSequenceClassification"),
        ("vit", "AutoModelForImageClassification"),
    ],
)
def test_the_card_shows_how_to_load_the_model(make_model, tmp_path, family, auto_class):
    model = make_model(family)
    gating.prune_heads(model, {0: [1]})
    text = card_of(model, tmp_path)
    assert f"{auto_class}.from_pretrained(" in text
    assert "trust_remote_code=True" in text


def test_the_card_of_an_image_model_mentions_no_tokenizer(make_model, tmp_path):
    model = make_model("vit")
    gating.prune_heads(model, {0: [1]})
    assert "AutoTokenizer" not in card_of(model, tmp_path)


@pytest.fixture
def narrowed(bert):
    gating.prune_neurons(bert, {0: [1, 5], 1: range(6)}, group_size=8)
    return bert


def test_the_card_lists_the_kept_groups_of_neurons(narrowed, tmp_path):
    lines = card_of(narrowed, tmp_path).splitlines()
    assert "| feed-forward block | numbers of the kept groups | neurons in a group | kept neurons |" in lines
    assert "| encoder.layer.0.output.dense | 0, 2-4 | 8 | 32 of 48 |" in lines
    assert "| encoder.layer.1.output.dense | none | 8 | 0 of 48 |" in lines
    assert "| encoder.layer.2.output.dense | 0-5 | 8 | 48 of 48 |" in lines
    assert "Feed-forward neurons were removed from this model with head-gating" in "\n".join(lines)


def test_the_card_names_what_was_removed(narrowed, tmp_path):
    gating.prune_heads(narrowed, {0: [1]})
    text = card_of(narrowed, tmp_path)
    assert "Attention heads and feed-forward neurons were removed" in text
    assert "the layers with fewer heads and neurons;" in text
    assert "## Heads that were kept" in text
    assert "## Neurons that were kept" in text


def test_the_card_of_a_model_with_all_neurons_has_no_list_of_them(pruned, tmp_path):
    text = card_of(pruned, tmp_path)
    assert "eurons" not in text
    assert "Attention heads were removed from this model with head-gating" in text
    assert "the layers with fewer heads;" in text


def test_neurons_per_layer_are_those_of_the_model(narrowed):
    assert [(kept, before) for _, kept, before in neurons_per_layer(narrowed)] == [(32, 48), (0, 48), (48, 48)]
