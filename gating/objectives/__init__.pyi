"""Objectives that choose the gates to close, imported when they are first used.

Budgets are met exactly: ``ExactBudget``, and ``DeterministicBudget`` for frozen weights (``budgets``). Objectives of
``papers`` and ``rankings`` are to compare with.
"""

from .base import KeepsBudget, NoObjective, Objective
from .budget import HeadBudget
from .budgets.exact import ExactBudget
from .budgets.frozen import DeterministicBudget
from .expected_count import ExpectedCount
from .papers.fixed_price import FixedPrice
from .papers.lagrangian import Lagrangian
from .papers.subset import TopK
from .rankings.ranking import IterativePruning, Magnitude, RandomOrder, Ranking
from .rankings.sensitivity import Fisher, Importance
from .schedule import BudgetSchedule

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
