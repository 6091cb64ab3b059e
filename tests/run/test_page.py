"""The page of a real run, in a browser and beside its metrics."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.interruptions import run_in

pytestmark = pytest.mark.runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
UNITS = ["gates.units=[heads,neurons]", "gates.group_size=8", "objective.num_heads=null", "objective.keep=0.5"]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    """The folder of a run with gates on heads and neurons."""
    folder = tmp_path_factory.mktemp("page") / "run"
    run_in(folder, inputs, *UNITS)
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_the_page_of_a_run_works_in_a_browser(finished):
    sync_api = pytest.importorskip("playwright.sync_api")
    page_file = finished / "report" / "index.html"
    requests, problems = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(page_file.as_uri())
        pictures = page.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)")
        # The gates, and score, cost and losses over the steps.
        assert len(pictures) == 4
        assert min(pictures) > 100
        # Only tables scroll on a phone, not the page.
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        browser.close()
    assert requests == [page_file.as_uri()]
    assert problems == []


def test_the_page_agrees_with_the_metrics(finished):
    text = (finished / "report" / "index.html").read_text(encoding="utf-8")
    numbers = json.loads((finished / "metrics.json").read_text())
    assert f"of {numbers['num_heads_before']} attention heads" in text
    assert f"{numbers['speedup']:.2f}x" in text or "no difference" in text
    assert numbers["speedup"] == pytest.approx(numbers["latency_ms_before"] / numbers["latency_ms"])
    assert f"{100 * numbers['test/accuracy']:.2f} %" in text
    assert str(finished / "compact") in text


def test_a_dense_run_has_a_page_alone(inputs, tmp_path, capsys):
    others = [setting for setting in inputs if not setting.startswith("objective")]
    run_in(tmp_path / "run", others, "objective=none")
    page = tmp_path / "run" / "report" / "index.html"
    assert "A dense run of 12 steps" in page.read_text(encoding="utf-8")
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    assert f"the report is {page}" in capsys.readouterr().out
