"""The table of the gates of a model."""

import gating
from tests.support.tiny_models import build


def test_each_block_and_each_unit_has_a_row():
    model = build("bert")
    total = sum(weight.numel() for weight in model.parameters())
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=16)
    gates.log_alpha.data.fill_(9.0)
    gates.log_alpha.data[:2] = -9.0
    gates.log_alpha.data[-1] = -9.0
    lines = gates.summary().splitlines()
    assert len(lines) == 1 + 6 + 2 + 1
    assert len({len(line) for line in lines[:-1]}) == 1
    assert "2 of 4 heads" in lines[1]
    assert "32 of 48 neurons" in lines[6]
    assert "10 of 12 heads" in lines[7]
    assert "128 of 144 neurons" in lines[8]
    kept = gates.values() > 0
    report = gating.finalize(model, gates, kept=kept)
    assert f"about {report.num_parameters:,} of {total:,} parameters" in lines[-1]
