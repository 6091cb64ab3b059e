"""Compact models are measured in other runtimes, and the stored results are those of docs/serving.md."""

import json
import re

import pytest

from benchmarks import page, records
from benchmarks.serving import __main__ as serving
from benchmarks.serving.models import CACHE_PATTERNS, FAMILIES, PATTERNS, make_case, make_for_cache
from benchmarks.serving.runtimes import RUNTIMES
from benchmarks.serving.tables import TABLES
from gating.compact.decoders import sizes_of

STORED = records.read(serving.RESULTS)


def rows_of(section: str, rows: list[dict] = STORED) -> list[dict]:
    return [row for row in rows if row["section"] == section]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Return the rows of the quick form, which writes nothing."""
    for package in ("gguf", "xllamacpp", "onnxruntime_genai", "openvino", "onnxscript"):
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    results = tmp_path_factory.mktemp("serving") / "serving.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "RESULTS", results)
        rows = serving.main(["--quick"])
    assert not results.exists()
    json.dumps(rows)
    return rows


@pytest.mark.runs
def test_quick_form_measures_every_section(quick):
    assert {row["section"] for row in quick} == set(serving.SECTIONS) - {"vllm"}
    assert not [row["failed"] for row in quick if "failed" in row]
    assert all(row["largest_gap"] < 1e-3 for row in quick if "largest_gap" in row)
    for row in rows_of("cache", quick):
        assert 0.5 <= row["share"] <= 0.75
    for row in rows_of("decoder", quick):
        assert row["perplexity"] == pytest.approx(row["perplexity_pytorch"], rel=0.02)
        if row["dtype"] == "f32":
            assert row["perplexity"] == pytest.approx(row["perplexity_pytorch"], rel=1e-5)
    for section in ("tokens", "cache", "speed"):
        assert TABLES[section](rows_of(section, quick))[0].startswith("| ")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_what_their_names_say(pattern):
    for family in ("LLaMA", "GPT-2"):
        sizes = sizes_of(make_case(family, pattern, steps=0))
        assert sizes.is_even == (pattern == "even")
        assert bool(sizes.emptied) == (pattern == "emptied")
        assert min(sizes.num_neurons) > 0


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("pattern", CACHE_PATTERNS)
def test_models_for_caches_keep_the_same_number_of_groups(pattern, share):
    sizes = sizes_of(make_for_cache(pattern, share=share, context=64))
    assert sum(sizes.num_key_value_heads) == share * 64
    assert (len(set(sizes.num_key_value_heads)) == 1) == (pattern == "even")
    assert bool(sizes.emptied) == (pattern == "emptied")


def test_unknown_sections_and_missing_folders_are_refused(capsys):
    for arguments in (["something"], ["encoder"], ["decoder", "--runs", "runs"]):
        with pytest.raises(SystemExit):
            serving.main(arguments)
    assert "need --data and --runs" in capsys.readouterr().err


def test_stored_tokens_are_the_models_own_for_every_family():
    rows = rows_of("tokens")
    for runtime, row in RUNTIMES.items():
        wanted = {(family, pattern) for family in FAMILIES for pattern in row.patterns or PATTERNS}
        assert {(row["family"], row["pattern"]) for row in rows if row["runtime"] == runtime} == wanted
    for row in rows:
        if "tokens" in row:
            # Another token only where two logits are nearly equal.
            assert row["largest_gap"] < 1e-3, row
            assert row["equal"] >= 0.98 * row["tokens"], row
        else:
            assert row.get("refused") or row["runtime"] == "vLLM", row


def test_stored_caches_are_as_small_as_the_share_of_groups():
    for row in rows_of("cache"):
        if row["runtime"].endswith("off") and row["pattern"] != "even":
            # The values of all layers are as wide as the widest.
            assert row["share"] > 1.2 * row["kept"]
        else:
            # Layers without heads have a group in ONNX Runtime GenAI.
            assert row["kept"] <= row["share"] <= row["kept"] + 2 / 64


def test_tables_are_those_of_the_stored_results(tmp_path, monkeypatch):
    text = page.SERVING.read_text(encoding="utf-8")
    assert set(re.findall(r"benchmarks\.serving (\w+) -->", text)) == set(TABLES)
    copy = tmp_path / "page.md"
    copy.write_text(text, encoding="utf-8")
    monkeypatch.setattr(page, "SERVING", copy)
    page.write_serving()
    assert copy.read_text(encoding="utf-8") == text
