"""The report of a run as one page."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gating.pruning.latency.comparison import LatencyComparison
from gating.report.history import History, Observation
from gating.report.page import RunPage, Runtime, write_page
from gating.report.score import Score
from gating.report.summary import Stage, Summary

ACCURACY = Score("accuracy")
HEADS = [f"encoder.layer.{layer}.attention.self" for layer in range(3)]
NEURONS = [f"encoder.layer.{layer}.output.dense" for layer in range(3)]
# Attributes that make a browser load something.
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """The tags of a page, and its text by the tag around it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open_tags = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open_tags.append(tag)

    def handle_data(self, data):
        self.texts.append((self.open_tags[-1] if self.open_tags else "", data))

    @property
    def text(self):
        return " ".join(" ".join(data for tag, data in self.texts if tag not in ("style", "script")).split())

    @property
    def frames(self):
        return json.loads(next(data for tag, data in self.texts if tag == "script"))

    def with_class(self, name):
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def summary(*, metric=0.91, has_search=True):
    one = Summary(
        sizes={"heads": (12, 5), "neurons": (192, 96), "parameters": (109_482_240, 66_100_000)},
        latency=LatencyComparison(0.0803, 0.0402, 1.998, 15, "8 x 128", 0.004, "8 x 128 tokens, p95"),
        short_latency=LatencyComparison(0.02, 0.0125, 1.6, 15, "1 x 20", 0.01, "1 x 20 tokens, median"),
        seconds={"search": 812.44},
        search={"search_steps": 20, "search_ended": "all its steps were taken"} if has_search else {},
    )
    for stage, title in ((Stage.REMOVED, "after removal"), (Stage.COMPACT, "compact, after recovery")):
        one.add_metrics(stage, title, "validation", {"accuracy": metric})
    one.add_metrics(Stage.COMPACT, "compact, after recovery", "test", {"accuracy": metric - 0.01})
    return one


def run_page(*, quantity="cost", metric=0.9, **changes):
    """Return the contents of the page of a small run with two validations of its search."""
    heads = {name: [1.0, 0.5, 0.0, 1.0] for name in HEADS}
    groups = {name: [1.0, 1.0, 0.0, 0.0] for name in NEURONS}
    values = ({} if quantity == "neurons" else heads) | ({} if quantity == "heads" else groups)
    observations = [Observation(step, metric, 0.8, 0.7, math.nan) for step in (10, 20, 30)]
    history = History(observations, [dict(values) for _ in range(3)], {HEADS[0]: [0.25, 1.0]}, quantity)
    history.spent = {"heads": 0.125, "neurons": 0.375} if quantity == "cost" else {}
    contents = RunPage(
        title="some/model",
        history=history,
        summary=summary(),
        score=ACCURACY,
        final_score=ACCURACY,
        kept=[(HEADS[0], [0, 3], 4), (HEADS[1], [], 4), (HEADS[2], [0, 1, 3], 4)],
        neurons=[(name, 32, 64) for name in NEURONS],
        search_steps=20,
        total_steps=30,
        config="model:\n  token: '***'\n",
        compact=Path("/runs/a/compact"),
        auto_class="AutoModelForSequenceClassification",
    )
    return replace(contents, **changes)


@pytest.fixture
def written(tmp_path):
    def write(contents):
        write_page(tmp_path / "report" / "index.html", contents)
        return Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))

    return write


def test_the_page_has_the_numbers_tables_settings_and_ways_to_load(written):
    text = written(run_page(samples=[{"prompt": "Once", "generated": "upon a time"}])).text
    for wanted in (
        "7 of 12 attention heads and 96 of 192 feed-forward neurons were removed",
        "The compact model was then trained for 10 steps.",
        "66.1 M",
        "2.00x",
        "40.2 ms",
        "90.00 %",  # test accuracy
        "after removal",
        "token: '***'",
        'gating.load_compact("/runs/a/compact")',
        'AutoModelForSequenceClassification.from_pretrained("/runs/a/compact", trust_remote_code=True)',
        'pipeline("text-classification"',
        "upon a time",
        "812.4",
        "torch",
        "heads 12.5 %",
        "8 x 128 tokens, p95: 15 repeats, ± 0.4 %",
    ):
        assert wanted in text, wanted


def test_nothing_is_loaded_from_elsewhere(written):
    page = written(run_page())
    loaded = {value for _, attributes in page.tags for name, value in attributes.items() if name in LOADING}
    assert loaded <= {"data:,", "frames"}
    styles = "".join(data for tag, data in page.texts if tag in ("style", "script"))
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", styles)
    policies = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policies[0].startswith("default-src 'none'")


HOSTILE = "\"'></script></pre><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"


def test_texts_of_users_stay_text(written):
    contents = run_page(
        title=HOSTILE,
        score=Score(HOSTILE, unit=HOSTILE),
        final_score=Score(HOSTILE, unit=HOSTILE),
        config=HOSTILE,
        compact=Path(HOSTILE),
        samples=[{HOSTILE: HOSTILE}],
        kept=[(f"{HOSTILE}.0.{HOSTILE}", [0], 4), (f"{HOSTILE}.0.other", [0], 4)],
        neurons=[(HOSTILE, 1, 2)],
        dense={f"val/{HOSTILE}": 0.5},
    )
    contents.summary.titles = dict.fromkeys(contents.summary.titles, HOSTILE)
    contents.summary.search["search_ended"] = HOSTILE
    page = written(contents)
    usual = written(run_page())
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in usual.tags} | {"dl", "dt", "dd", "h3"}
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert HOSTILE in page.text
    assert HOSTILE in page.frames[0]["label"]


def test_a_name_that_is_no_text_does_not_end_the_run(written):
    assert "some?model" in written(run_page(title="some\udcffmodel")).text


def test_the_last_frame_is_shown_without_a_script(written):
    page = written(run_page())
    assert [frame["label"].split(":")[0] for frame in page.frames] == [
        "Step 10, accuracy 90.00 %",
        "Step 20, accuracy 90.00 %",
        "End of the search, step 20",
        "After the removal",
    ]
    assert page.frames[0]["gates"] == [100, 50, 0, 100] * 3
    last = page.frames[-1]
    # A kept head has its folded factor, and a removed one nothing.
    assert last["gates"] == [25, 0, 0, 100, 0, 0, 0, 0, 100, 50, 0, 100]
    assert last["widths"] == [0.5, 0.5, 0.5]
    cells = [one for one in page.with_class("gate") if "y" in one][:12]
    assert [round(100 * float(cell["fill-opacity"])) for cell in cells] == last["gates"]
    assert ["kept" in cell["class"] for cell in cells] == [head in (0, 3, 8, 9, 11) for head in range(12)]
    assert last["label"] == "After the removal: 5 of 12 heads and 50 % of the neurons stay"
    assert last["label"] in page.text


@pytest.mark.parametrize(("quantity", "cells", "bars"), [("heads", 12, 0), ("neurons", 0, 3), ("cost", 12, 3)])
def test_only_gated_units_have_a_map(quantity, cells, bars, written):
    page = written(run_page(quantity=quantity))
    assert [len(page.frames[0]["gates"]), len(page.frames[0]["widths"])] == [cells, bars]
    assert len(page.with_class("open")) == bars


def test_heads_without_a_gate_are_told_apart(written):
    contents = run_page()
    for values in contents.history.gate_values:
        del values[HEADS[1]]
    kept = [contents.kept[0], (HEADS[1], [0, 1, 2, 3], 4), contents.kept[2]]
    page = written(replace(contents, kept=kept))
    assert page.frames[0]["gates"][4:8] == page.frames[-1]["gates"][4:8] == [None] * 4
    assert len([one for one in page.with_class("fixed") if one["width"] != "12"]) == 4


def test_without_known_gates_the_kept_heads_are_shown(written):
    contents = run_page(quantity="heads")
    history = History(contents.history.observations, [])
    page = written(replace(contents, history=history))
    assert [frame["gates"][:8] for frame in page.frames] == [[100, 0, 0, 100, 0, 0, 0, 0]]


def test_metrics_that_are_nan_are_dashes_and_left_out_of_the_chart(written):
    page = written(run_page(metric=math.nan, summary=summary(metric=math.nan)))
    assert "3 of 3 validations have no finite value." in page.text
    # The legend and the points of the score.
    assert not page.with_class("score")
    assert not re.search(r"\bnan\b", " ".join(str(attributes) for _, attributes in page.tags).lower())


def test_a_dense_run_has_no_gates_to_show(written):
    contents = run_page(quantity="heads", search_steps=0, summary=summary(has_search=False))
    page = written(replace(contents, history=History(contents.history.observations)))
    assert "A dense run of 30 steps" in page.text
    assert "speed-up" not in page.text
    assert "ratio" not in page.text
    assert not page.with_class("gate")
    assert not any(tag == "script" for tag, _ in page.tags)


@pytest.mark.parametrize("from_teacher", [False, True])
def test_the_score_is_compared_with_a_dense_reference(from_teacher, written):
    contents = run_page()
    assert "objective=none" in written(contents).text
    in_sweep = written(replace(contents, is_in_sweep=True)).text
    assert "the table at the end of the sweep compares them" in in_sweep
    assert "objective=none" not in in_sweep
    if from_teacher:
        for split in ("validation", "test"):
            contents.summary.add_metrics(Stage.DENSE, "dense teacher", split, {"accuracy": 0.92})
    else:
        contents = replace(contents, dense={"val/accuracy": 0.92, "test/accuracy": 0.92})
    text = written(contents).text
    assert "-2.00 points to dense (92.00 %)" in text
    assert "dense reference" in text
    assert "objective=none" not in text


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_with_few_validations_has_a_page(count, written):
    contents = run_page()
    history = replace(contents.history, observations=contents.history.observations[:count])
    page = written(replace(contents, history=replace(history, gate_values=history.gate_values[: count + 1])))
    assert len(page.frames) == count + 2


def test_a_large_model_with_many_validations_stays_readable(written, tmp_path):
    kept = [(f"layers.{layer}.attn", range(0, 64, 2), 64) for layer in range(48)]
    values = {name: [1.0] * 64 for name, _, _ in kept}
    observations = [Observation(step, 0.9, 1.0, 1.0, 1.0) for step in range(400)]
    history = History(observations, [values] * 401)
    page = written(run_page(quantity="heads", kept=kept, history=history, search_steps=400, total_steps=500))
    assert len(page.frames) == 61
    assert page.frames[0]["label"].startswith("Step 0,")
    assert (tmp_path / "report" / "index.html").stat().st_size < 2e6


def test_a_stock_model_needs_no_trust(written):
    assert "trust_remote_code" not in written(run_page(is_stock=True)).text


def test_runtimes_have_a_command_or_the_reason_why_not(written):
    rows = [Runtime("ONNX Runtime", "head-gating export run --format onnx"), Runtime("vLLM", "", "It is <no> decoder.")]
    text = written(run_page(runtimes=rows)).text
    assert "ONNX Runtime head-gating export run --format onnx" in text
    assert "vLLM It is <no> decoder." in text
    assert "Where it runs" not in written(run_page()).text
