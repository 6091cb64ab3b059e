"""Commands that the tests of this folder share."""

import sys

import pytest

from gating.__main__ import main


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["head-gating", "compare", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return call
