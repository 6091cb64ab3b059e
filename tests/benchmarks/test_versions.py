"""Folders load with other versions of transformers, and the page shows what is in them."""

import subprocess
import sys

import pytest

from benchmarks.versions import __main__ as versions
from benchmarks.versions.subjects import SUBJECTS, example, make_jobs


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("versions")
    return scratch, *make_jobs(scratch, list(SUBJECTS))


@pytest.mark.processes
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", versions.VERSIONS[-3:])
def test_folders_load_with_the_newest_versions(version, jobs):
    scratch, questions, expected = jobs
    try:
        is_here = version == versions.VERSIONS[-1]
        python = sys.executable if is_here else versions.make_environment(version, versions.CACHE)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"no environment with transformers {version} can be made here: {error}")
    rows = versions.run_version(python, version, questions, expected, scratch)
    assert {row["model"]: row["outcome"] for row in rows} == dict.fromkeys(SUBJECTS, "equal"), rows


def row(model="bert", version="5.4.0", **changes):
    return {"transformers": version, "model": model, "equal": ["disk"], "other": [], "errors": [], **changes}


def test_a_route_that_gives_something_else_is_no_success():
    routes = {"disk": {"answer": [1.0]}, "canary": {"answer": 0.0}}
    assert versions._outcome(row(equal=["disk", "canary"]), routes) == "equal"
    assert versions._outcome(row(equal=["canary"], other=["disk"]), routes) == "FAIL"
    refused = {name: {"error": "ValueError: This vit model was saved with transformers 5.24.0; ..."} for name in routes}
    errors = [answer["error"] for answer in refused.values()]
    assert versions._outcome(row(equal=[], errors=sorted(set(errors))), refused) == "refused"
    told = {**routes, "canary": {"error": "ValueError: other outputs"}}
    assert versions._outcome(row(equal=[], other=["disk"], errors=["ValueError: other outputs"]), told) == "noticed"


def test_the_table_has_a_line_for_each_version():
    rows = [row(name, version, outcome="equal") for version in ("5.4.0", "5.24.0") for name in SUBJECTS]
    assert [line.split("|")[1].strip() for line in versions.table(rows)] == ["transformers", "---", "5.4.0", "5.24.0"]


def test_the_page_shows_the_file_and_the_record_as_they_are():
    page = versions.PAGE.read_text(encoding="utf-8")
    record, code = example()
    assert code in page, "run python -m benchmarks.versions --page"
    assert record in page, "run python -m benchmarks.versions --page"
