"""What decides which heads close."""

from gating.objectives.base import Objective, resolve_budget
from gating.objectives.budget import ExactBudget, ExpectedCount
from gating.objectives.l0 import FixedPrice
from gating.objectives.none import NoObjective
from gating.objectives.schedule import BudgetSchedule

__all__ = [
    "BudgetSchedule",
    "ExactBudget",
    "ExpectedCount",
    "FixedPrice",
    "NoObjective",
    "Objective",
    "resolve_budget",
]
