"""Units that are gated and removed, heads and neurons: the words for them, and the blocks of a model that have them."""

from gating.units.search import count_units, find_blocks, present_units, search_blocks
from gating.units.words import UNITS, UnitName, check_units

__all__ = ["UNITS", "UnitName", "check_units", "count_units", "find_blocks", "present_units", "search_blocks"]
