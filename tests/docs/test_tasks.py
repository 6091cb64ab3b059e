"""The page docs/tasks.md: its commands compose, and it has every task and every metric."""

import re

import pytest

from tests.support.tiny_run import ROOT, checked_settings

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
# In lines of text and in blocks of code.
CALLS = re.findall(r"(?:`|^)python train\.py (.*?)(?:`|\s+#|$)", PAGE, re.MULTILINE)
COMMANDS = [call for call in CALLS if not call.startswith("--")]
ROWS = {row.split("|")[1].strip(" `"): row for row in PAGE.splitlines() if row.startswith("| `")}


@pytest.fixture(scope="module")
def targets():
    """Classes of tasks that the commands of the page train."""
    return {checked_settings(command.split())["task"]["_target_"] for command in COMMANDS}


@pytest.mark.runs
@pytest.mark.parametrize("task", sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")))
def test_every_task_has_a_row_and_a_command(task, targets):
    assert task in ROWS
    text = (ROOT / "conf" / "task" / f"{task}.yaml").read_text()
    assert any(f"_target_: {target}\n" in text for target in targets)


def test_links_hold():
    for link in re.findall(r"\]\((.*?)\)", PAGE):
        assert (ROOT / "docs" / link.partition("#")[0]).resolve().is_file(), link
