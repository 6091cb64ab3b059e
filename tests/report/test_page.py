"""The report of a run as one page."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gating.pruning.latency import LatencyComparison
from gating.report import page
from gating.report.page import write_page
from gating.report.results import History, Observation, RunResults
from gating.report.score import Score
from gating.report.summary import Summary

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
    def pictures(self):
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def summary(*, metric=0.91, has_search=True):
    one = Summary(
        sizes={"heads": (12, 5), "neurons": (192, 96), "parameters": (109_482_240, 66_100_000)},
        latency=LatencyComparison(0.0803, 0.0402, 15, "8 x 128", 0.004, "8 x 128 tokens, p95"),
        short_latency=LatencyComparison(0.00452, 0.00391, 15, "1 x 20", 0.01, "1 x 20 tokens, median"),
        seconds={"search": 812.44},
        search={"search_steps": 20, "search_ended": "all its steps were taken"} if has_search else {},
    )
    for stage, title in (("removed", "after removal"), ("compact", "compact, after recovery")):
        one.add_metrics(stage, title, "validation", {"accuracy": metric})
    one.add_metrics("compact", "compact, after recovery", "test", {"accuracy": metric - 0.01})
    return one


def run_page(*, quantity="cost", metric=0.9, **changes):
    """Return the contents of the page of a small run with two validations of its search."""
    heads = {name: [1.0, 0.5, 0.0, 1.0] for name in HEADS}
    groups = {name: [1.0, 1.0, 0.0, 0.0] for name in NEURONS}
    values = ({} if quantity == "neurons" else heads) | ({} if quantity == "heads" else groups)
    observations = [Observation(step, metric, 0.8, 0.7, math.nan) for step in (10, 20, 30)]
    history = History(observations, values, {HEADS[0]: [0.25, 1.0]}, quantity)
    history.spent = {"heads": 0.125, "neurons": 0.375} if quantity == "cost" else {}
    contents = RunResults(
        title="some/model",
        history=history,
        summary=summary(),
        score=ACCURACY,
        final_score=ACCURACY,
        kept=[(HEADS[0], [0, 3], 4), (HEADS[1], [], 4), (HEADS[2], [0, 1, 3], 4)],
        neurons=[(name, 32, 64) for name in NEURONS],
        removed_at=20,
        total_steps=30,
        config="model:\n  token: '***'\n",
        compact=Path("/runs/a/compact"),
        usage='model = AutoModel.from_pretrained("/runs/a/compact")',
    )
    return replace(contents, **changes)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a page with the same small picture everywhere, and return it."""
    monkeypatch.setattr(page, "as_source", lambda figure: "data:,")

    def write(contents):
        write_page(tmp_path / "report" / "index.html", contents, gates_file=tmp_path / "report" / "gates.png")
        return Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))

    return write


def test_the_page_has_the_numbers_tables_settings_and_ways_to_load(written):
    text = written(run_page(samples=[{"prompt": "Once", "generated": "upon a time"}])).text
    for wanted in (
        "7 of 12 attention heads and 96 of 192 feed-forward neurons were removed",
        "The compact model was then trained for 10 steps.",
        "66,100,000",
        "2.00x",
        "40.20 ms",
        "90.00 %",  # test accuracy
        "after removal",
        "token: '***'",
        'gating.load_compact("/runs/a/compact")',
        'model = AutoModel.from_pretrained("/runs/a/compact")',
        "upon a time",
        "812.4",
        "torch",
        "4.520 ms",
        "1.16x as fast",
        "its gate value is folded in",
        "8 x 128 tokens, p95: 15 repeats, ± 0.4 %",
    ):
        assert wanted in text, wanted


def test_nothing_is_loaded_from_elsewhere(written):
    shown = written(run_page())
    loaded = {value for _, attributes in shown.tags for name, value in attributes.items() if name in LOADING}
    assert all(address.startswith("data:") for address in loaded)
    assert not re.search(r"url\(|@import", "".join(data for tag, data in shown.texts if tag == "style"))
    policies = [attributes["content"] for tag, attributes in shown.tags if "http-equiv" in attributes]
    assert policies[0].startswith("default-src 'none'")


HOSTILE = "\"'></script></pre><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"


def test_texts_of_users_stay_text(written):
    contents = run_page(
        title=HOSTILE,
        score=Score(HOSTILE, unit=HOSTILE),
        final_score=Score(HOSTILE, unit=HOSTILE),
        config=HOSTILE,
        compact=Path(HOSTILE),
        usage=HOSTILE,
        samples=[{HOSTILE: HOSTILE}],
        kept=[(f"{HOSTILE}.0.{HOSTILE}", [0], 4), (f"{HOSTILE}.0.other", [0], 4)],
        neurons=[(HOSTILE, 1, 2)],
    )
    contents.summary.titles = dict.fromkeys(contents.summary.titles, HOSTILE)
    contents.summary.search["search_ended"] = HOSTILE
    shown = written(contents)
    usual = written(run_page())
    assert {tag for tag, _ in shown.tags} <= {tag for tag, _ in usual.tags} | {"dl", "dt", "dd", "h3"}
    assert not any(tag == "script" for tag, _ in shown.tags)
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert HOSTILE in shown.text


def test_metrics_that_are_nan_are_dashes(written):
    shown = written(run_page(metric=math.nan, summary=summary(metric=math.nan)))
    assert "- " in shown.text
    assert not re.search(r"\bnan\b", shown.text)


def test_a_dense_run_has_no_gates_to_show(written):
    contents = run_page(quantity="heads", removed_at=0, summary=summary(has_search=False))
    shown = written(replace(contents, history=History(contents.history.observations)))
    assert "A dense run of 30 steps" in shown.text
    assert "speed-up" not in shown.text
    assert "ratio" not in shown.text
    assert len(shown.pictures) == 1
