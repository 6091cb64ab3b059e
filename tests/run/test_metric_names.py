"""Names of metrics in metrics.json, the CSV file and W&B."""

import csv
import json
from pathlib import Path

import pytest

import train
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_run import compose_settings


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.runs
def test_stages_have_names(whole):
    numbers = json.loads((whole / "metrics.json").read_text())
    splits = {name.rpartition("/")[0] for name in numbers if name.endswith("accuracy")}
    stages = {"search/val", "removed/val", "compact/val", "compact/test", "baseline/val", "baseline/test"}
    assert splits == {"val", "test", *stages}
    assert "val/accuracy" in rows_of(whole)[0]


@pytest.mark.runs
@pytest.mark.parametrize(
    ("units", "budget", "total"),
    [
        ("neurons", ["objective.num_neurons=72"], {"gates/neurons/open": 72}),
        ("[heads,neurons]", ["objective.keep=0.5"], {}),
        (
            "[heads,neurons]",
            ["objective=importance", "objective.num_heads=3", "objective.num_neurons=64"],
            {"gates/open": 3, "gates/neurons/open": 64},
        ),
    ],
)
def test_neurons_are_logged_beside_heads(units, budget, total, inputs, tmp_path):
    others = [line for line in inputs if not line.startswith("objective")]
    settings = [f"gates.units={units}", "gates.group_size=8", *budget, "logger=csv", f"output_dir={tmp_path / 'run'}"]
    train.guarded_run(compose_settings([*others, *settings]))
    last = [row for row in rows_of(tmp_path / "run") if row["gates/neurons/open"]][-1]
    assert {name: float(last[name]) for name in total} == total
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["num_neurons_before"] == 192
    blocks = [float(value) for name, value in last.items() if name.startswith("gates/feed_forward_")]
    assert float(last["gates/neurons/open"]) == sum(blocks) == numbers["num_neurons"]
    assert numbers["macs"] < numbers["macs_before"]
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} == {"gates.png", "index.html"}
    if units == "neurons":
        assert not {"gates/open", "gates/target", "gates/cost/open"} & set(last)
    else:
        parts = [float(last[f"gates/cost/{unit}"]) for unit in ("heads", "neurons")]
        assert float(last["gates/cost/open"]) == pytest.approx(sum(parts))
    if not total:
        assert float(last["gates/cost/open"]) <= 0.5 == pytest.approx(float(last["gates/cost/expected"]), abs=1e-2)


@pytest.mark.runs
def test_a_resumed_recovery_shows_the_cost_that_was_kept(inputs, tmp_path):
    others = [line for line in inputs if not line.startswith("objective")]
    settings = [
        "gates.units=[heads,neurons]",
        "gates.group_size=8",
        "objective.keep=0.5",
        "trainer.val_check_interval=2",
    ]
    settings += [f"output_dir={tmp_path / 'run'}", "callbacks.checkpoint.every_n_steps=1"]
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gating.run.execute.write_page", lambda path, results, **_: drawn.append(results.history))
        with at_batch(11, interrupt), pytest.raises(Interrupted):
            run_in(tmp_path / "run", others, *settings)
        run_in(tmp_path / "run", others, *settings, "resume=auto")
    (history,) = drawn
    assert history.quantity == "cost"
    in_search, in_recovery = history.observations[0], history.observations[-1]
    assert in_search.open <= 1
    assert in_recovery.step > 8
    assert in_recovery.open == pytest.approx(sum(history.spent.values())) == in_recovery.target <= 0.5
