"""The page docs/tasks.md: its commands compose, and it has every task and every metric."""

import re

import pytest

from benchmarks import records, tasks
from tests.support.tiny_run import ROOT, checked_settings

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
COMMANDS = [call for call in re.findall(r"`python train\.py (.*?)`", PAGE) if not call.startswith("--")]
ROWS = {row.split("|")[1].strip(" `"): row for row in PAGE.splitlines() if row.startswith("| `")}


@pytest.mark.parametrize("task", sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")))
def test_every_task_has_a_row_with_a_command_of_that_task(task):
    (command,) = re.findall(r"`python train\.py (.*?)`", ROWS[task])
    settings = checked_settings(command.split())
    assert f"_target_: {settings['task']['_target_']}\n" in (ROOT / "conf" / "task" / f"{task}.yaml").read_text()


def test_other_commands_compose():
    in_table = "".join(ROWS.values())
    for command in COMMANDS:
        if command not in in_table:
            checked_settings(command.split())


def test_links_hold():
    for link in re.findall(r"\]\((.*?)\)", PAGE):
        assert (ROOT / "docs" / link).resolve().is_file(), link


def test_table_is_that_of_the_results():
    rows = records.read(tasks.RESULTS)
    assert tasks.table(rows) in PAGE


def test_table_shows_dense_beside_compact():
    row = {
        **{"experiment": "digits-vit", "settings": [], "num_heads": 12, "num_heads_before": 48, "speedup": 1.5},
        **{"num_parameters": 50, "num_parameters_before": 100, "test/accuracy": 0.9},
    }
    rows = [{**row, "objective": "budget"}, {**row, "objective": "none", "test/accuracy": 0.95}]
    (line,) = tasks.table(rows).splitlines()[2:]
    for wanted in ("digits-vit", "95.00 %", "90.00 %", "12 of 48", "50%", "1.50"):
        assert wanted in line
