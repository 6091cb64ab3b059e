"""``head-gating inspect`` on compact and stock folders of decoders."""

import sys

import pytest

import gating
from gating.__main__ import main
from tests.support.family_models import FAMILIES


def inspected(monkeypatch, capsys, folder):
    monkeypatch.setattr(sys, "argv", ["head-gating", "inspect", str(folder)])
    main()
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("stock", [True, False])
def test_both_forms_show_the_original_numbers_and_the_cache(stock, tmp_path, monkeypatch, capsys):
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {layer: range(4) for layer in range(3)})
    gating.prune_neurons(model, {layer: [layer] for layer in range(3)}, group_size=16)
    folder = gating.save_compact(model, tmp_path / "model", stock=stock)
    shown = inspected(monkeypatch, capsys, folder)
    assert "12 of 24 heads, 96 of 144 neurons" in shown
    assert "384 of 768 bytes of keys and values are cached for a token" in shown
