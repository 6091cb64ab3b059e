"""Random budgets, masks, patterns, tables, model folders and settings end in a right result or in one sentence."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gating
from gating.data.sources import load_files
from gating.data.tokens import load_tokenizer
from gating.distributed.launch import check_devices
from gating.errors import explain, is_input_error
from gating.models.sources import Pretrained, make_meta_model
from gating.run.build import build, build_callbacks, build_objects
from gating.run.settings import read_settings
from gating.tasks.sequence_classification import SequenceClassification
from tests.support.family_models import FAMILIES
from tests.support.tiny_run import compose_settings, make_inputs

NUMBERS = [0, 1, -1, 2, 5, 12, 13, 10**9, 2**63, 10**30, 0.5, -0.5, 1.0, 1.5, 1e-9, 1e300, math.nan, math.inf]
VALUES = [*NUMBERS, None, True, False, "", "x", "null", "-1", [], [1], ["x"], {}, {"x": 1}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model and data files."""
    folder = tmp_path_factory.mktemp("bad-input")
    make_inputs(folder)
    return folder


def endures(cases: st.SearchStrategy[Any], attempt: Callable[[Any], None], number: int = 24) -> None:
    """Fail unless each attempt ends in a result, which it checks itself, or in an error of one sentence."""

    @settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
    @given(cases)
    def check(case: Any) -> None:
        try:
            attempt(case)
        except AssertionError:
            raise
        except Exception as error:
            if not is_input_error(error):
                raise
            sentence = explain(error)
            assert "\n" not in sentence
            assert 10 < len(sentence) < 1500

    check()


BUDGET = st.sampled_from([*NUMBERS, None, None, 4, 4, 8, True, "4", {"encoder": 3}, {"cross": 1}, {"encoder": 0.5}, {}])


@pytest.mark.runs
def test_budgets() -> None:
    def attempt(case: dict[str, Any]) -> None:
        objective = gating.ExactBudget(**case)
        gates = gating.inject_gates(FAMILIES["bert"].build())
        objective.attach(gates)
        objective.update(gates, 1.0)
        kept = objective.kept(gates)
        assert 1 <= int(kept.sum()) <= 12
        assert int(kept.view(3, 4).sum(1).min()) >= case["min_per_layer"]
        if type(case["num_heads"]) is int:
            assert int(kept.sum()) == case["num_heads"]

    least = st.sampled_from([0, 0, 1, 4, 5, -1])
    endures(st.fixed_dictionaries({"num_heads": BUDGET, "keep": BUDGET, "min_per_layer": least}), attempt)


HEAD = st.integers(0, 3) | st.integers(-1, 5) | st.sampled_from([True, 1.0, "1", None, 10**12])
NAMES = ["encoder.layer.0.attention.self", "layers.0.self_attn", "nowhere", None, 1.5]
LAYER = st.integers(0, 2) | st.integers(-1, 3) | st.sampled_from(NAMES)


@pytest.mark.runs
def test_patterns_of_heads() -> None:
    def attempt(case: tuple[str, dict[Any, list[Any]]]) -> None:
        family, heads = case
        model = FAMILIES[family].build()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        count = sum(block.num_heads for block in gating.find_attention_blocks(model))
        try:
            report = gating.prune_heads(model, heads)
        except Exception:
            now = model.state_dict()
            assert now.keys() == before.keys()
            assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
            raise
        removed = sum(len(set(asked)) for asked in heads.values())
        # A layer may be asked for by its number and by its name.
        assert count - removed <= sum(map(len, report.kept_heads.values())) <= count

    patterns = st.dictionaries(LAYER, st.lists(HEAD, max_size=4), max_size=3)
    endures(st.tuples(st.sampled_from(["bert", "llama", "t5"]), patterns), attempt)


MASKS = [
    *(torch.tensor([1, 0] * 6, dtype=dtype) for dtype in (torch.bool, torch.int64, torch.float32)),
    *(torch.full((12,), value) for value in (True, False, math.nan, 0.5, 2)),
    *(torch.ones(shape, dtype=torch.bool) for shape in ((11,), (13,), (3, 4), (0,), ())),
]


@pytest.mark.runs
def test_masks() -> None:
    def attempt(case: tuple[torch.Tensor, Any, int]) -> None:
        kept, num_heads, seed = case
        model = FAMILIES["bert"].build()
        gates = gating.inject_gates(model)
        with torch.no_grad():
            gates.log_alpha.copy_(torch.randn(12, generator=torch.Generator().manual_seed(seed)))
        report = gating.finalize(model, gates, **({"kept": kept} if num_heads == "mask" else {"num_heads": num_heads}))
        left = sum(block.num_heads for block in gating.find_attention_blocks(model))
        assert left == report.num_heads
        if num_heads is not None:  # else the gates have decided
            assert left == (int(kept.sum()) if num_heads == "mask" else num_heads)

    numbers = st.sampled_from(["mask", "mask", 1, 4, 12, 0, 13, -1, 1.5, True, None])
    endures(st.tuples(st.sampled_from(MASKS), numbers, st.integers(0, 3)), attempt)


PIECES = [
    "text",
    "label",
    "word1",
    "first",
    "second",
    "null",
    "NaN",
    "1e999",
    *",\t\n\"'{}[]: 1\\\ufeff\x00é#;-",
    "\r\n",
]
BYTES = [b"", b"", b"\xff", b"\xfe\xff", b"\xc3", b"\x80", b"PAR1", b"\x1f\x8b"]
ROWS = [{"text": f"word{row} word2", "label": ("first", "second")[row % 2]} for row in range(4)]
TABLE = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
GOOD = {
    ".csv": TABLE,
    ".tsv": TABLE.replace(",", "\t"),
    ".jsonl": "\n".join(map(json.dumps, ROWS)),
    ".json": json.dumps(ROWS),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    ending = draw(st.sampled_from([*GOOD, ".parquet", ".txt", ""]))
    text = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=30)))
    if draw(st.booleans()):
        good = GOOD.get(ending, TABLE)
        middle = draw(st.integers(0, len(good)))
        text = good[:middle] + draw(st.sampled_from(["", *PIECES])) + good[middle:]
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"])), errors="replace")
    position = draw(st.integers(0, len(content)))
    return ending, content[:position] + draw(st.sampled_from(BYTES)) + content[position:]


@pytest.mark.runs
def test_tables(place: Path) -> None:
    source = Pretrained(str(place / "model"))
    parts = load_tokenizer(source), make_meta_model(source, SequenceClassification.auto_class)

    def attempt(case: tuple[str, bytes]) -> None:
        ending, content = case
        # Readers remember files by name and time.
        path = Path(tempfile.mkdtemp(dir=place)) / f"table{ending}"
        path.write_bytes(content)
        examples = load_files(train=str(path), validation=str(path))
        prepared = SequenceClassification().prepare(examples, *parts)
        for name, table in prepared.splits.items():
            assert len(table) == len(examples.splits[name])
            assert all(0 <= label < len(prepared.config["id2label"]) for label in table["labels"])
            assert all(0 < len(ids) <= 128 for ids in table["input_ids"])

    endures(tables(), attempt)


FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.runs
def test_folders_of_models(place: Path) -> None:
    def attempt(case: tuple[str, str, float, Any]) -> None:
        name, how, where, value = case
        folder = Path(shutil.copytree(place / "model", Path(tempfile.mkdtemp(dir=place)) / "model"))
        path = folder / name
        if how == "delete":
            path.unlink()
        elif how == "cut":
            path.write_bytes(path.read_bytes()[: int(where * path.stat().st_size)])
        elif name == "config.json":
            config = json.loads(path.read_text())
            config[sorted(config)[int(where * len(config))]] = value
            path.write_text(json.dumps(config))
        source = Pretrained(str(folder))
        make_meta_model(source, SequenceClassification.auto_class)
        load_tokenizer(source)
        model = source.load(SequenceClassification.auto_class)
        assert sum(parameter.numel() for parameter in model.parameters()) < 10**6

    # Whether there is memory for a size is no matter of a sentence.
    values = [value for value in VALUES if not (isinstance(value, int) and value > 100)]
    how = st.sampled_from(["delete", "cut", "value", "value"])
    endures(st.tuples(st.sampled_from(FILES), how, st.floats(0, 0.99), st.sampled_from(values)), attempt)


def names_of(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from names_of(value, f"{prefix}{name}.")


def spell(value: Any) -> str:
    """Write a value as on the command line."""
    if isinstance(value, (list, dict)):
        return json.dumps(value).replace('"', "")
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


@pytest.mark.runs
def test_settings(place: Path, inputs: list[str]) -> None:
    # Lightning fails on trainer.max_time=false with an error of its own.
    names = sorted({*names_of(compose_settings([*inputs, "logger=csv"]))} - {"trainer.max_time"})
    values = [*map(spell, VALUES), "none", "'a b'", "${seed}", "${nowhere}", "???", "4"]
    change = st.tuples(
        st.sampled_from(["", "", "", "+", "++", "~"]),
        st.sampled_from(names),
        st.sampled_from(["", "", "x", ".x"]),
        st.sampled_from(values),
    )

    def attempt(case: list[tuple[str, str, str, str]]) -> None:
        given = [f"{how}{name}{end}" + ("" if how == "~" else f"={value}") for how, name, end, value in case]
        try:
            composed = compose_settings([*inputs, "logger=csv", *given])
        except Exception:
            return  # Hydra's own refusals
        read = read_settings(composed)
        check_devices(read.trainer)
        build_objects(read)
        build_callbacks(read)
        build("optimizer", read.optimizer)
        build("scheduler", read.scheduler)
        build("trainer", read.trainer, partial=True)

    endures(st.lists(change, min_size=1, max_size=2), attempt)
