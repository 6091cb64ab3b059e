"""The figure of the gates shows the factors folded into the output projection, also after a resume."""

import pytest
import torch

import gating
from gating.pruning.finalize import decide_gate_values
from gating.report import figures
from tests.support.family_models import FAMILIES
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_run import make_inputs


def test_folded_values_are_those_that_scale_the_output_projection(bert):
    before = {block.name: block.output_projection.weight.clone() for block in gating.find_attention_blocks(bert)}
    gates = gating.inject_gates(bert)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-4, 1, gates.num_heads))  # Most gates read 0.
    assert gates.num_open() < 9
    finalized = gating.finalize(bert, gates, num_heads=9)
    for block in gating.find_attention_blocks(bert):
        now = block.output_projection.weight.split(block.head_dim, dim=1)
        columns = before[block.name].split(block.head_dim, dim=1)
        assert len(finalized.folded[block.name]) == block.num_heads
        for head, value, after in zip(block.head_ids, finalized.folded[block.name], now, strict=True):
            assert 0 < value <= 1
            torch.testing.assert_close(after, value * columns[head])


def test_gates_of_groups_fold_one_value_into_each_of_their_heads():
    model = FAMILIES["llama"].build()  # 8 heads in 4 groups
    gates = gating.inject_gates(model)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, len(gates.log_alpha)))
    values = dict(zip(gates.block_names, decide_gate_values(gates, num_heads=12).split(gates.block_sizes), strict=True))
    finalized = gating.finalize(model, gates, num_heads=12)
    for name, heads in finalized.kept_heads.items():
        assert finalized.folded[name] == pytest.approx([float(values[name][head // 2]) for head in heads])


@pytest.mark.runs
@pytest.mark.parametrize("batch", [None, 11], ids=["whole", "resumed in recovery"])
def test_the_figure_shows_the_folded_factors_of_kept_heads(batch, tmp_path, monkeypatch):
    folded, maps = [], []
    finalize, draw = gating.finalize, figures._draw_head_map

    def remembered(model, gates, **options):
        with torch.no_grad():
            gates.log_alpha -= 6  # Every gate reads 0.
        folded.append(finalize(model, gates, **options))
        return folded[-1]

    def noted(figure, axes, values, *, kept):
        maps.append((values, kept))
        draw(figure, axes, values, kept=kept)

    monkeypatch.setattr("gating.run.phases.finalize", remembered)
    monkeypatch.setattr(figures, "_draw_head_map", noted)
    inputs = make_inputs(tmp_path)
    if batch is not None:
        with at_batch(batch, interrupt), pytest.raises(Interrupted):
            run_in(tmp_path / "run", inputs, "callbacks.checkpoint.every_n_steps=1")
    run_in(tmp_path / "run", inputs, *(["resume=auto"] if batch is not None else []))
    *_, (values, kept) = maps  # that of the page, after that of the loggers
    (finalized,) = folded
    for name, heads in kept.items():
        assert [values[name][head] for head in heads] == pytest.approx(finalized.folded[name])
        assert all(values[name][head] > 0 for head in heads)
