"""The page of a real run, in a browser, and in a folder that is overwritten."""

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
        frames = json.loads(page.locator("#frames").text_content())
        # Two validations of the search, its end, and the removal.
        assert len(frames) == 4
        assert page.locator("#frame").text_content() == frames[-1]["label"]
        shown = []
        for position, frame in enumerate(frames):
            page.fill("#time", str(position))
            assert page.locator("#frame").text_content() == frame["label"]
            shown.append(
                page.locator(".maps .gate").evaluate_all("all => all.map(one => +one.getAttribute('fill-opacity'))")
            )
            assert [round(100 * value) for value in shown[-1]] == frame["gates"]
        assert shown[0] != shown[-1]
        page.fill("#time", "0")
        page.click("#play")
        sync_api.expect(page.locator("#play")).to_have_text("Play")
        assert page.input_value("#time") == "3"
        # Only figures scroll on a phone, not the page.
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        browser.close()
    assert requests == [page_file.as_uri()]
    assert problems == []


def test_the_page_agrees_with_the_metrics(finished):
    text = (finished / "report" / "index.html").read_text(encoding="utf-8")
    numbers = json.loads((finished / "metrics.json").read_text())
    assert f"of {numbers['num_heads_before']} attention heads" in text
    assert f"{numbers['speedup']:.2f}x" in text
    assert f"{100 * numbers['test/accuracy']:.2f} %" in text
    assert str(finished / "compact") in text


def test_a_new_run_in_the_folder_replaces_the_page(finished, inputs, capsys):
    (finished / "report" / "notes.txt").write_text("precious")
    others = [setting for setting in inputs if not setting.startswith("objective")]
    run_in(finished, others, "objective=none", "overwrite=true")
    page = finished / "report" / "index.html"
    assert "A dense run of 12 steps" in page.read_text(encoding="utf-8")
    assert {path.name for path in page.parent.iterdir()} == {"index.html", "history.png", "notes.txt"}
    assert f"the report is {page}" in capsys.readouterr().out
