"""Objectives that choose the gates to close, imported when they are first used.

Budgets are met exactly: ``ExactBudget``, and ``DeterministicBudget`` for frozen weights. Objectives of papers
(``penalties``, ``subset``) and ``rankings`` are to compare with.
"""

from .base import KeepsBudget, NoObjective, Objective
from .budget import HeadBudget
from .exact import DeterministicBudget, ExactBudget
from .expected_count import ExpectedCount
from .penalties import FixedPrice, Lagrangian
from .rankings import Fisher, Importance, Magnitude, RandomOrder, Ranking
from .rounds import IterativePruning
from .schedule import BudgetSchedule
from .subset import TopK

__all__ = [
    "BudgetSchedule",
    "DeterministicBudget",
    "ExactBudget",
    "ExpectedCount",
    "Fisher",
    "FixedPrice",
    "HeadBudget",
    "Importance",
    "IterativePruning",
    "KeepsBudget",
    "Lagrangian",
    "Magnitude",
    "NoObjective",
    "Objective",
    "RandomOrder",
    "Ranking",
    "TopK",
]
