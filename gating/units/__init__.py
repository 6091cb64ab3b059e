"""Units that are gated and removed: attention heads and feed-forward neurons, each in one module."""

from gating.units.registry import UNITS, check_units, find_blocks, unit_of
from gating.units.unit import AnyBlock, GateSize, Unit, UnitName

__all__ = ["UNITS", "AnyBlock", "GateSize", "Unit", "UnitName", "check_units", "find_blocks", "unit_of"]
