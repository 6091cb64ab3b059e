"""Bad input by the hundred: what people give by mistake, drawn by hypothesis, and what must come of it.

Every area draws cases and tries them. A try ends in a result, which it checks itself, or in an error that is one
sentence for a user; anything else fails. The tests try a few cases of each area, ``python -m benchmarks.bad_input``
many.
"""

import datetime
import decimal
import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from hypothesis import strategies as st
from omegaconf import DictConfig

import gating
import train
from gating.data.labels import encode_labels
from gating.data.sources import Examples, load_files
from gating.data.text.tokens import load_tokenizer
from gating.distributed.launch import check_processes
from gating.errors import explain, is_input_error
from gating.models.blueprint import make_blueprint
from gating.models.sources import Pretrained
from gating.run.parts import build_parts, build_phases
from gating.run.settings.read import read_settings
from gating.tasks.sequence_classification import SequenceClassification
from tests.support.family_models import FAMILIES
from tests.support.tiny_run import compose_settings, make_inputs

NASTY_NUMBERS = [0, 1, -1, 2, 3, 5, 12, 13, 10**9, 2**63, 10**30, 0.5, -0.5, 1.0, 1.5, 1e-9, 1e300, math.nan, math.inf]
NASTY_VALUES = [*NASTY_NUMBERS, None, True, False, "", "x", "null", "-1", [], [1], ["x"], {}, {"x": 1}]


@dataclass(frozen=True)
class Area:
    """A kind of input.

    Attributes:
        cases: Draws what is given.
        attempt: Uses it, and checks what comes of it.
        cost: How long a case takes, relative to others; the tests try fewer of the expensive ones.
    """

    cases: st.SearchStrategy[Any]
    attempt: Callable[[Any], None]
    cost: int = 1


class RefusedError(Exception):
    """Settings that Hydra makes nothing of; the command line says why in one sentence, see run/test_train.py."""


def outcome(area: Area, case: Any) -> str:
    """Try a case; return ``result`` or ``sentence``, and fail on anything else."""
    try:
        area.attempt(case)
    except AssertionError:
        raise
    except RefusedError as refused:
        assert len(explain(refused)) > 10  # noqa: PT017
        return "sentence"
    except Exception as error:
        if not is_input_error(error):
            raise
        sentence = explain(error)
        assert "\n" not in sentence
        assert 10 < len(sentence) < 1500, sentence
        return "sentence"
    return "result"


@functools.cache
def place() -> Path:
    """Return a folder with a tiny model and data files, which stays until the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="bad-input-")
    _kept.append(folder)
    make_inputs(Path(folder.name))
    return Path(folder.name)


_kept: list[Any] = []


def write(name: str, content: bytes) -> str:
    """Write a file of which nothing is known yet: readers remember files by name and time."""
    path = Path(tempfile.mkdtemp(dir=place())) / name
    path.write_bytes(content)
    return str(path)


@functools.cache
def parts() -> tuple[Any, Any]:
    """Return a tokenizer and a model without weights."""
    source = Pretrained(str(place() / "model"))
    return load_tokenizer(source), make_blueprint(source, SequenceClassification.auto_class)


def prepare(splits: Mapping[str, datasets.Dataset], **settings: Any) -> Any:
    """Prepare data as a run does, and check what comes of it."""
    tokenizer, blueprint = parts()
    prepared = SequenceClassification().prepare(
        Examples(datasets.DatasetDict(splits)), tokenizer, blueprint, **settings
    )
    num_classes = len(prepared.config["id2label"])
    for name, table in prepared.splits.items():
        assert len(table) == len(splits[name])
        assert all(0 <= label < num_classes for label in table["labels"])
        assert all(0 < len(ids) <= settings.get("max_length", 128) for ids in table["input_ids"])
    batch = prepared.collate(
        [prepared.splits["train"][index] for index in range(min(4, len(prepared.splits["train"])))]
    )
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    return prepared


# Columns of unusual types.

MOMENT = datetime.datetime(2024, 2, 29, 12, 30)
VALUES_BY_TYPE: dict[str, tuple[pa.DataType, list[Any]]] = {
    "text": (pa.string(), ["one", "two", "", "null", "3"]),
    "large text": (pa.large_string(), ["one", "two"]),
    "whole": (pa.int64(), [0, 1, -5, 2**62]),
    "small": (pa.uint8(), [0, 1, 255]),
    "fraction": (pa.float64(), [0.0, 1.0, 0.5, math.nan, math.inf]),
    "half": (pa.float32(), [0.0, 1.0]),
    "truth": (pa.bool_(), [True, False]),
    "date": (pa.date32(), [MOMENT.date()]),
    "moment": (pa.timestamp("us"), [MOMENT]),
    "duration": (pa.duration("s"), [datetime.timedelta(seconds=5)]),
    "decimal": (pa.decimal128(9, 2), [decimal.Decimal("1.50"), decimal.Decimal("2.00")]),
    "bytes": (pa.binary(), [b"one", b"\xff\xfe"]),
    "list": (pa.list_(pa.string()), [["one"], []]),
    "nested": (pa.list_(pa.list_(pa.int64())), [[[1], []]]),
    "struct": (pa.struct({"x": pa.int64()}), [{"x": 1}, {"x": None}]),
    "nothing": (pa.null(), [None]),
    "category": (pa.dictionary(pa.int32(), pa.string()), ["one", "two"]),
}


@st.composite
def typed_column(draw: st.DrawFn, rows: int) -> tuple[str, list[Any]]:
    kind = draw(st.sampled_from(sorted(VALUES_BY_TYPE)))
    values = st.sampled_from(VALUES_BY_TYPE[kind][1])
    may_miss = draw(st.integers(0, 3)) == 0
    return kind, draw(st.lists(st.none() | values if may_miss else values, min_size=rows, max_size=rows))


@st.composite
def typed_tables(draw: st.DrawFn) -> dict[str, tuple[str, list[Any]]]:
    rows = draw(st.integers(1, 5))
    plain = draw(st.sampled_from(["neither", "text", "label"]))
    columns = {"text": draw(typed_column(rows)), "label": draw(typed_column(rows))}
    if plain != "neither":
        columns[plain] = "text", [f"word{row % 2}" for row in range(rows)]
    return columns


def try_types(columns: Mapping[str, tuple[str, list[Any]]]) -> None:
    arrays = {name: pa.array(values, VALUES_BY_TYPE[kind][0]) for name, (kind, values) in columns.items()}
    path = Path(write("table.parquet", b""))
    pq.write_table(pa.table(arrays), path)
    examples = load_files(train=str(path), validation=str(path))
    prepare(examples.splits)
    # What is no word, number or date would be learned as its Python spelling.
    assert columns["text"][0] not in ("bytes", "list", "nested", "struct", "nothing")
    assert columns["label"][0] not in ("bytes", "list", "nested", "struct", "nothing", "fraction") or not any(
        isinstance(label, float) and not label.is_integer() for label in columns["label"][1]
    )


# Malformed files.

PIECES = [
    "text",
    "label",
    ",",
    "\t",
    "\n",
    "\r\n",
    '"',
    "'",
    "word1",
    "first",
    "second",
    "{",
    "}",
    "[",
    "]",
    ":",
    " ",
    "1",
]
PIECES += [
    "null",
    "NaN",
    "\\",
    "\ufeff",
    "\x00",
    "é",
    "\U0001f600",
    "#",
    ";",
    '{"text": "a", "label": "first"}',
    "-",
    "1e999",
]
BYTES = [b"\xff", b"\xfe\xff", b"\xc3", b"\x80", b"PAR1", b"\x1f\x8b"]
HEADS = ["", "text,label\n", "text\tlabel\n", "text_a,text_b,label\n", '[{"text": "a", "label": "b"},', "label,text\n"]


_ROWS = [{"text": f"word{row} word2", "label": ("first", "second")[row % 2]} for row in range(4)]
_LINES = [json.dumps(row) for row in _ROWS]
_TABLE = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in _ROWS)
GOOD = {".csv": [_TABLE], ".tsv": [_TABLE.replace(",", "\t")], ".jsonl": ["\n".join(_LINES)]}
GOOD |= {".json": [f"[{','.join(_LINES)}]", *GOOD[".jsonl"]], ".parquet": [_TABLE], ".txt": [_TABLE], "": [_TABLE]}


@st.composite
def malformed_files(draw: st.DrawFn) -> tuple[str, bytes]:
    ending = draw(st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet", ".CSV", ".txt", ""]))
    text = draw(st.sampled_from(HEADS)) + "".join(draw(st.lists(st.sampled_from(PIECES), max_size=30)))
    if draw(st.booleans()):
        # A good file with something in the middle of it.
        text, where = draw(st.sampled_from(GOOD[ending.lower()])), draw(st.floats(0, 1))
        middle = int(where * len(text))
        text = text[:middle] + draw(st.sampled_from(["", *PIECES])) + text[middle:]
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"])), errors="replace")
    position = draw(st.integers(0, len(content)))
    return ending, content[:position] + draw(st.sampled_from([b"", b"", *BYTES])) + content[position:]


def try_file(case: tuple[str, bytes]) -> None:
    ending, content = case
    path = write(f"table{ending}", content)
    prepare(load_files(train=path, validation=path).splits)


# Labels.

LABEL = (
    st.sampled_from(["first", "second"])
    | st.sampled_from(["first", "second", "", " ", "0", "1", "01", "-", "--1", "²", "٣", "None", "nan", "x" * 300])
    | st.integers(-2, 3)
    | st.sampled_from([0.0, 1.0, 0.5, -1.0, 1e300])
    | st.booleans()
    | st.none()
    | st.text(max_size=4)
    | st.sampled_from([[1], {"x": 1}, []])
)


def try_labels(case: tuple[list[Any], list[Any]]) -> None:
    splits = {}
    for name, labels in zip(("train", "validation"), case, strict=True):
        lines = "".join(json.dumps({"text": "word1", "label": label}) + "\n" for label in labels)
        splits[name] = load_files(train=(path := write("t.jsonl", lines.encode())), validation=path).splits["train"]
    encoded, names = encode_labels(datasets.DatasetDict(splits))
    assert len(names) == len(set(names)) >= 2
    for table, labels in zip(encoded.values(), case, strict=True):
        for number, label in zip(table["label"], labels, strict=True):
            # Beside words, numbers are words as well.
            assert names[number] in (str(label), str(int(label)) if isinstance(label, float) else str(label))


# Texts.

TEXT = st.text(max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\x00",
        "[SEP] [MASK]",
        "word1 " * 2000,
        "x" * 10_000,
        "\u202e\u200b",
        "\ufffe",
        "e\u0301" * 50,
        "<s>",
    ]
)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[str], list[str] | None, int]:
    rows = draw(st.integers(2, 5))
    columns = [draw(st.lists(TEXT, min_size=rows, max_size=rows)) for _ in range(2)]
    length = draw(st.sampled_from([-1, 0, 1, 2, 3, 4, 16, 128, 512, 10**12]))
    return columns[0], columns[1] if draw(st.booleans()) else None, length


def try_texts(case: tuple[list[str], list[str] | None, int]) -> None:
    first, second, length = case
    columns: dict[str, list[Any]] = {"text": first, "label": [row % 2 for row in range(len(first))]}
    if second is not None:
        columns["text_pair"] = second
    table = datasets.Dataset.from_dict(columns)
    prepared = prepare({"train": table, "validation": table}, max_length=length)
    batch = prepared.collate([prepared.splits["train"][index] for index in range(len(first))])
    with torch.no_grad():
        assert tiny_bert()(**batch).logits.isfinite().all()


@functools.cache
def tiny_bert() -> Any:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(place() / "model")
    return model.eval()


# Sizes of data and batches, in whole runs.


@st.composite
def sizes(draw: st.DrawFn) -> tuple[dict[str, int], list[str]]:
    rows = {"train": draw(st.integers(1, 5)), "validation": draw(st.integers(0, 3)), "test": draw(st.integers(0, 2))}
    choices = {
        "data.batch_size": [1, 2, 3, 100, 0],
        "data.eval_batch_size": [1, 2, 100],
        "trainer.max_steps": [1, 2, 3],
        "trainer.accumulate_grad_batches": [1, 2, 50],
        "trainer.limit_train_batches": [1.0, 1, 0.01],
        "trainer.limit_val_batches": [1.0, 0, 0.3],
        "trainer.val_check_interval": [1.0, 1, 7],
        "recovery": [0, 0.25, 0.9],
        "data.test": ["null", "file", "file"],
    }
    return rows, [f"{name}={draw(st.sampled_from(values))}" for name, values in choices.items()]


def try_sizes(case: tuple[dict[str, int], list[str]]) -> None:
    rows, overrides = case
    files = {
        split: write(f"{split}.tsv", ("text\tlabel\n" + "".join(f"word{i}\t{i % 2}\n" for i in range(size))).encode())
        for split, size in rows.items()
    }
    given = [f"data.{split}={path}" for split, path in files.items()]
    output = Path(tempfile.mkdtemp(dir=place())) / "out"
    try:
        train.run(settings_of([*given, *(x for x in overrides if x != "data.test=file"), f"output_dir={output}"]))
        assert json.loads((output / "metrics.json").read_text())["num_heads"] == 4
    except Exception:
        assert not output.exists(), "something was written before the input was known to be bad"
        raise
    finally:
        shutil.rmtree(output.parent)


def settings_of(overrides: list[str]) -> DictConfig:
    """Compose the settings of a run of two steps."""
    common = ["model=pretrained", f"model.name={place() / 'model'}", "data=files", "logger=csv", "callbacks=none"]
    common += [f"data.{split}={place() / split}.tsv" for split in ("train", "validation", "test")]
    common += ["data.batch_size=8", "trainer.max_steps=2", "trainer.accelerator=cpu", "objective.num_heads=4"]
    return compose_settings([*common, *overrides])


# Budgets.

BUDGET = st.sampled_from(
    [*NASTY_NUMBERS, None, None, 4, 4, 8, True, "4", {"encoder": 3}, {"cross": 1}, {"encoder": 0.5}, {}]
)


def try_budget(case: dict[str, Any]) -> None:
    objective = gating.ExactBudget(**case)
    gates = gating.inject_gates(FAMILIES["bert"].build())
    objective.attach(gates)
    objective.update(gates, 1.0)
    kept = objective.kept(gates)
    assert kept is not None
    assert 1 <= int(kept.sum()) <= 12
    per_layer = kept.view(3, 4).sum(1)
    assert int(per_layer.min()) >= case["min_per_layer"]
    if type(case["num_heads"]) is int:
        assert int(kept.sum()) == case["num_heads"]


# Patterns of heads.

HEAD = st.integers(0, 3) | st.integers(0, 3) | st.integers(-1, 5) | st.sampled_from([True, 1.0, "1", None, 10**12])
LAYER = (
    st.integers(0, 2)
    | st.integers(0, 2)
    | st.integers(-1, 3)
    | st.sampled_from(["encoder.layer.0.attention.self", "layers.0.self_attn", "nowhere", None, 1.5])
)


def try_pattern(case: tuple[str, dict[Any, list[Any]]]) -> None:
    family, heads = case
    model = FAMILIES[family].build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counts = {block.name: block.num_heads for block in gating.find_attention_blocks(model)}
    try:
        report = gating.prune_heads(model, heads)
    except Exception:
        # An error changes nothing.
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        raise
    removed = sum(len(set(asked)) for asked in heads.values())
    # A layer may be asked for by its number and by its name.
    assert sum(counts.values()) - removed <= sum(map(len, report.kept_heads.values())) <= sum(counts.values())


# Masks.

MASK = st.sampled_from(
    [
        torch.ones(12, dtype=torch.bool),
        torch.zeros(12, dtype=torch.bool),
        torch.tensor([1, 0] * 6),
        torch.tensor([1.0, 0.0] * 6),
        torch.full((12,), math.nan),
        torch.full((12,), 0.5),
        torch.full((12,), 2),
        torch.ones(11, dtype=torch.bool),
        torch.ones(13, dtype=torch.bool),
        torch.ones(3, 4, dtype=torch.bool),
        torch.ones(0, dtype=torch.bool),
        torch.tensor(True),
        torch.tensor([True, False, False] * 4),
    ]
)


def try_mask(case: tuple[torch.Tensor, Any, int]) -> None:
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


# Overrides of the command line.


@functools.cache
def setting_names() -> list[str]:
    names: list[str] = []

    def collect(table: Mapping[str, Any], prefix: str) -> None:
        for name, value in table.items():
            names.append(f"{prefix}{name}")
            if isinstance(value, Mapping):
                collect(value, f"{prefix}{name}.")

    collect(settings_of([]), "")  # type: ignore[arg-type]
    return sorted(names)


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    found = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(setting_names()))
        prefix = draw(st.sampled_from(["", "", "", "+", "++", "~"]))
        changed = draw(st.sampled_from([name, name, name, name[:-1], f"{name}x", f"{name}.x", name.upper()]))
        value = draw(st.sampled_from([*NASTY_VALUES, "1", "0.5", "none", "'a b'", "${seed}", "${nowhere}", "???", "4"]))
        found.append(f"{prefix}{changed}" + ("" if prefix == "~" else f"={spell(value)}"))
    return found


def spell(value: Any) -> str:
    """Write a value as on the command line."""
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, (list, dict))
        else (json.dumps(value).replace('"', ""))
    )


def try_overrides(case: list[str]) -> None:
    try:
        cfg = settings_of(case)
    except Exception as error:
        raise RefusedError(error) from error
    settings = read_settings(cfg, groups=train.GROUPS)
    check_processes(settings.values["trainer"])
    build_parts(settings)
    build_phases(settings)


# Folders of models that are not compact.


def try_model(case: tuple[str, str, float, Any]) -> None:
    name, how, where, value = case
    folder = Path(shutil.copytree(place() / "model", Path(tempfile.mkdtemp(dir=place())) / "model"))
    path = folder / name
    size = path.stat().st_size
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: int(where * size)])
    elif how == "noise":
        path.write_bytes(bytes(range(256)) * 3)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif name == "config.json":
        config = json.loads(path.read_text())
        config[sorted(config)[int(where * len(config))]] = value
        path.write_text(json.dumps(config))
    try:
        source = Pretrained(str(folder))
        make_blueprint(source, SequenceClassification.auto_class)
        load_tokenizer(source)
        model = source.load(SequenceClassification.auto_class)
        assert sum(parameter.numel() for parameter in model.parameters()) < 10**6
    finally:
        shutil.rmtree(folder.parent)


MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
HOWS = ["delete", "cut", "cut", "noise", "folder", "value", "value", "value"]
# Sizes that a model of this would need are no matter of a sentence but of the machine.
MODEL_VALUES = [value for value in NASTY_VALUES if not (isinstance(value, int) and value > 100)]

AREAS: dict[str, Area] = {
    "columns of unusual types": Area(typed_tables(), try_types),
    "malformed files, other encodings": Area(malformed_files(), try_file),
    "label sets": Area(
        st.tuples(st.lists(LABEL, min_size=1, max_size=5), st.lists(LABEL, min_size=1, max_size=2)), try_labels
    ),
    "texts and their length": Area(texts(), try_texts),
    "sizes of data and batches, whole runs": Area(sizes(), try_sizes, cost=3),
    "budgets": Area(
        st.fixed_dictionaries(
            {"num_heads": BUDGET, "keep": BUDGET, "min_per_layer": st.sampled_from([0, 0, 1, 4, 5, -1])}
        ),
        try_budget,
    ),
    "patterns of heads": Area(
        st.tuples(
            st.sampled_from(["bert", "llama", "t5"]), st.dictionaries(LAYER, st.lists(HEAD, max_size=4), max_size=3)
        ),
        try_pattern,
    ),
    "masks": Area(
        st.tuples(MASK, st.sampled_from(["mask", "mask", 1, 4, 12, 0, 13, -1, 1.5, True, None]), st.integers(0, 3)),
        try_mask,
    ),
    "settings on the command line": Area(overrides(), try_overrides),
    "folders of models": Area(
        st.tuples(
            st.sampled_from(MODEL_FILES), st.sampled_from(HOWS), st.floats(0, 0.99), st.sampled_from(MODEL_VALUES)
        ),
        try_model,
    ),
}
