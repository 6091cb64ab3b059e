"""What decides which heads close."""

from gating.objectives.base import Objective, resolve_budget
from gating.objectives.exact import ExactBudget, ExpectedCount
from gating.objectives.head_budget import HeadBudget
from gating.objectives.importance import Importance
from gating.objectives.iterative import HeadRanking, IterativePruning
from gating.objectives.l0 import FixedPrice
from gating.objectives.lagrangian import Lagrangian
from gating.objectives.magnitude import Magnitude
from gating.objectives.none import NoObjective
from gating.objectives.random_order import RandomOrder
from gating.objectives.schedule import BudgetSchedule
from gating.objectives.topk import TopK

__all__ = [
    "BudgetSchedule",
    "ExactBudget",
    "ExpectedCount",
    "FixedPrice",
    "HeadBudget",
    "HeadRanking",
    "Importance",
    "IterativePruning",
    "Lagrangian",
    "Magnitude",
    "NoObjective",
    "Objective",
    "RandomOrder",
    "TopK",
    "resolve_budget",
]
