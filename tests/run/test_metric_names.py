"""Names of metrics in metrics.json, the CSV file and W&B."""

import csv
import json
from pathlib import Path

import pytest

import train
from gating.report.summary import Summary
from gating.tracking.wandb_logger import TolerantWandbLogger
from tests.support.tiny_run import compose_settings, make_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Few heads are left open by a budget that is reached, many by a price and a search that is far too short.
OBJECTIVES = {
    "budget": ["objective.num_heads=4"],
    "budget, many": ["objective.num_heads=9"],
    "price": ["objective=l0", "objective.num_heads=null"],
    "topk": ["objective=topk", "objective.num_heads=5"],
    "random": ["objective=random", "objective.num_heads=3"],
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gates_are_last_logged_with_the_heads_that_are_kept(name, inputs, tmp_path, monkeypatch):
    summary, logged = {}, {}
    monkeypatch.setattr(TolerantWandbLogger, "log_outcome", lambda self, numbers, folder: summary.update(numbers))
    log = TolerantWandbLogger.log_metrics
    monkeypatch.setattr(
        TolerantWandbLogger,
        "log_metrics",
        lambda self, metrics, step=None: (logged.update(metrics), log(self, metrics, step))[1],
    )
    settings = [line for line in OBJECTIVES[name] if name != "price" or "null" not in line]
    others = [line for line in inputs if not line.startswith("objective")]
    train.guarded_run(compose_settings([*others, *settings, "logger.mode=offline", f"output_dir={tmp_path / 'run'}"]))
    last = [row for row in rows_of(tmp_path / "run") if row["gates/open"]][-1]
    layers = [float(value) for name, value in last.items() if name.startswith("gates/layer_")]
    assert float(last["gates/open"]) == sum(layers) == summary["compact/num_heads"] == logged["gates/open"]
    assert int(last["step"]) == 8
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    splits = {name.rpartition("/")[0] for name in numbers if name.endswith("accuracy")}
    assert splits == {"val", "test", "search/val", "removed/val", "compact/val", "compact/test"}
    assert "val/accuracy" in rows_of(tmp_path / "run")[0]


def test_summaries_of_earlier_versions_are_loaded_with_present_names():
    summary = Summary()
    metrics = {"search": {"validation/f1": 0.5, "test/f1": 0.25}}
    summary.load_state_dict({"metrics": metrics, "titles": {}, "seconds": {}, "search": {}})
    assert summary.metrics == {"search": {"val/f1": 0.5, "test/f1": 0.25}}
