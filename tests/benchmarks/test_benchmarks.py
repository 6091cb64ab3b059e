"""Benchmarks answer ``--help``, run in their smallest form, and make the tables of the pages from stored results."""

import importlib
import json
import random
from pathlib import Path

import pytest

from tests.support.tiny_run import ROOT, WORDS, checked_settings, make_llama_folder
from tests.support.versions import HAS_SHARDING

COMMANDS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for path in (ROOT / "benchmarks").rglob("*.py")
    if "argparse.ArgumentParser(" in path.read_text(encoding="utf-8")
)
EXACT_TYPE, REFUSED_TYPE = "bert", "olmo2"


def benchmark(name: str):
    """Import a module of the benchmarks by its name."""
    return importlib.import_module(f"benchmarks.{name}")


def call(name: str, monkeypatch, *arguments: object) -> object:
    """Call a benchmark with the arguments of a command line."""
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    return importlib.import_module(name).main()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(name, monkeypatch, "--help")
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out


page = benchmark("page")


@pytest.mark.parametrize("table", page.TABLES, ids=lambda table: table.command)
def test_tables_of_the_pages_are_made_from_stored_results(table):
    mark = f"<!-- begin: python -m benchmarks.{table.command} -->"
    text = table.render()
    assert text
    assert f"{mark}\n{text}\n<!-- end -->" in table.page.read_text(encoding="utf-8"), "run python -m benchmarks.page"


def test_a_table_without_a_place_is_an_error(tmp_path):
    text = tmp_path / "page.md"
    text.write_text("a\n<!-- begin: python -m benchmarks.x -->\nold\n<!-- end -->\nb\n")
    page.replace_table(text, "x", ["new"])
    assert text.read_text() == "a\n<!-- begin: python -m benchmarks.x -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(ValueError, match="no place"):
        page.replace_table(text, "y", ["new"])


def test_calls_take_turns_and_ratios_are_taken_round_by_round():
    measuring, calls = benchmark("measuring"), []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measuring.interleave(functions, rounds=4, warm_up=1, budget_s=60, prepare=lambda: calls.append("-"))
    assert "".join(calls) == "-a-b" + "-a-b-b-a" * 2
    assert [len(its) for its in times.values()] == [4, 4]
    assert len(measuring.interleave(functions, rounds=100, warm_up=0, budget_s=0)["a"]) == 3
    assert measuring.ratio({"a": [2.0, 4.0, 60.0], "b": [1.0, 2.0, 20.0]}, "a", "b") == (2.0, 2.0, 2.5)


def test_results_replace_those_of_their_kind_and_make_a_table(tmp_path):
    records, path = benchmark("records"), tmp_path / "new" / "results.jsonl"
    assert records.read(path) == []
    records.append(path, {"name": "x|y", "ratio": (1.0, 0.9, 1.1)})
    records.append(path, {"name": "z", "works": False})
    records.replace(path, {"name": "z", "works": True}, lambda row: row["name"])
    rows = records.read(path)
    table = records.markdown(rows, {"name": "Name", "ratio": "Ratio", "works": "works"}).splitlines()
    assert table[0] == "| Name | Ratio | works |"
    assert table[2:] == ["| x\\|y | 1.00 (0.9-1.10) | - |", "| z | - | yes |"]


def test_differences_are_paired_by_seed():
    paired = benchmark("compare.paired")
    assert paired.show_mean(paired.differences({0: 85.0, 1: 86.5, 2: 84.0}, {0: 84.5, 1: 85.0})) == "+1.00 ± 0.50"
    assert paired.differences({0: 85.0}, {1: 85.0}) == []


def settings_of_runs() -> dict[str, list[str]]:
    """Return the settings of train.py that benchmarks have, by name."""
    methods = benchmark("compare.methods")
    found = {}
    for name, method in methods.METHODS.items():
        settings = [one for one in method.settings_for(1) if methods.DENSE not in one]
        found[name] = [one for one in settings if one != "distillation=logits"]
    for name, line in benchmark("embeddings.lines").LINES.items():
        if line.settings is not None:
            files = ["data.train=train.tsv", "data.validation=validation.tsv"] if "data=files" in line.recipe else []
            found[name] = [*line.recipe, *files, *line.settings]
    for name, (settings, _) in benchmark("decoders.runs").METHODS.items():
        own = [setting.format(share=0.5, layers=2) for setting in settings]
        found[f"decoder, {name}"] = ["experiment=smollm2", *own]
    return found


@pytest.mark.runs
def test_settings_of_runs_compose():
    for settings in settings_of_runs().values():
        checked_settings(settings)


@pytest.mark.runs
@pytest.mark.parametrize("section", benchmark("speed.__main__").SECTIONS)
def test_every_section_of_speed_measures(section, monkeypatch, capsys):
    if section == "finalize":
        pytest.skip("it starts processes: python -m benchmarks.speed --quick")
    call("benchmarks.speed.__main__", monkeypatch, section, "--quick", "--device", "cpu")
    assert " to " in capsys.readouterr().out


# Graphs of eight decoders are exported.
@pytest.mark.timeout(600)
@pytest.mark.runs
def test_compact_models_are_measured_in_every_runtime(monkeypatch, capsys):
    for package in ("gguf", "xllamacpp", "openvino", "onnxscript"):
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    serving = benchmark("serving.__main__")
    sections = ["tokens", "cache"]  # Others export more models: python -m benchmarks.serving --quick
    rows = serving.main([*sections, "--quick"])
    assert {row["section"] for row in rows} == set(sections)
    assert not [row["failed"] for row in rows if "failed" in row]
    assert all(row["largest_gap"] < 1e-3 for row in rows if "largest_gap" in row)


@pytest.mark.processes
@pytest.mark.skipif(not HAS_SHARDING, reason="this version of transformers cannot cut a model over processes")
def test_a_removal_from_a_sharded_model_is_measured(monkeypatch, capsys):
    call("benchmarks.sharding", monkeypatch, "--quick")
    assert "\n| 192 wide" in capsys.readouterr().out


# Forking makes a case cheap; nothing in the child waits for a thread of this process.
@pytest.mark.runs
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_damaged_folders_give_the_model_that_was_saved_or_one_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call("benchmarks.damage.__main__", monkeypatch, "--cases", len(benchmark("damage.damages").DAMAGES))
    assert end.value.code == 0, capsys.readouterr().out


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_run_ends_as_an_uninterrupted_one(monkeypatch, tmp_path):
    output = tmp_path / "faults.jsonl"
    assert call("benchmarks.faults", monkeypatch, "--points", 1, "--output", output) == 0
    assert json.loads(output.read_text())["same_weights"] is True


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_folders_load_with_the_oldest_and_the_installed_version(monkeypatch, capsys):
    versions = benchmark("versions.__main__")
    oldest = versions.VERSIONS[0]
    if not (versions.CACHE / oldest / "done").exists():
        pytest.skip(f"python -m benchmarks.versions --versions {oldest} makes an environment")
    with pytest.raises(SystemExit) as end:
        call("benchmarks.versions.__main__", monkeypatch, "--versions", oldest, versions.HERE)
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert end.value.code == 0, rows
    assert {row["outcome"] for row in rows if row["transformers"] == versions.HERE} == {"equal"}


@pytest.mark.runs
def test_the_census_tells_exact_types_from_refused_ones(monkeypatch, capsys):
    call("benchmarks.census.__main__", monkeypatch, "--only", EXACT_TYPE, REFUSED_TYPE)
    exact, refused = map(json.loads, capsys.readouterr().out.splitlines()[-2:])
    assert (exact["outcome"], exact["by"], exact["neurons_outcome"]) == ("exact", "registry", "exact")
    assert exact["reload_difference"] <= 1e-4
    assert exact["uneven"]["outcome"] == "exact"
    assert (refused["outcome"], "across all heads" in refused["reason"]) == ("refused", True)


def test_the_page_of_the_census_is_that_of_its_results():
    coverage = benchmark("census.page")
    rows = benchmark("records").read(ROOT / "benchmarks" / "results" / "census.jsonl")
    assert coverage.PAGE.read_text(encoding="utf-8") == coverage.coverage(rows)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """Return the folder of a tiny decoder, and one with texts."""
    folder, rng = tmp_path_factory.mktemp("decoder"), random.Random(0)
    model = make_llama_folder(folder / "model", num_layers=4)
    (folder / "tinyshakespeare").mkdir()
    for split in ("train", "test"):
        (folder / "tinyshakespeare" / f"{split}.txt").write_text(" ".join(rng.choices(WORDS, k=9000)))
    return model, folder


@pytest.mark.runs
def test_gates_on_frozen_weights_are_measured(decoder, tmp_path, monkeypatch, capsys):
    model, folder = decoder
    arguments = ["--model", model, "--data", folder, "--keep", 0.6, "--steps", 2, "--output", tmp_path / "rows.jsonl"]
    call("benchmarks.frozen", monkeypatch, *arguments)
    assert "| deterministic | 0.6 |" in capsys.readouterr().out.replace("0.60", "0.6")


@pytest.mark.runs
def test_decoders_are_healed_and_not_trained_again(decoder, tmp_path, monkeypatch, capsys):
    model, folder = decoder
    results, texts = (
        tmp_path / "rows.jsonl",
        [folder / "tinyshakespeare" / f"{split}.txt" for split in ("train", "test")],
    )
    arguments = ["--model", model, "--data", folder, "--runs", tmp_path / "runs", "--results", results]
    arguments += ["--methods", "first layers", "--shares", 0.5, "--seeds", 0, "--healing", 2, "--settings"]
    arguments += ["data.max_length=16", "data.batch_size=2", f"data.validation={texts[1]}"]
    call("benchmarks.decoders.__main__", monkeypatch, *arguments)
    rows = results.read_text()
    assert [json.loads(row)["method"] for row in rows.splitlines()] == ["as it was", "first layers"]
    call("benchmarks.decoders.__main__", monkeypatch, *arguments)
    assert results.read_text() == rows


def test_sizes_tell_code_from_docstrings(tmp_path: Path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "module.py").write_text(
        '"""A module."""\n\n# A comment.\ndef public(value: int) -> int:\n    return value\n'
    )
    sizes = benchmark("size").measure(tmp_path)
    assert (sizes.files, sizes.code, sizes.docstrings) == ({"part/module.py": 5}, 2, 1)
