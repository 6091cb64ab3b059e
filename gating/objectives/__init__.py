"""Objectives that choose the gates to close, one in each file."""

from gating.objectives.base import FollowsLoss, HasMovableBudget, Objective
from gating.objectives.baselines.deterministic import DeterministicBudget
from gating.objectives.baselines.fisher import Fisher
from gating.objectives.baselines.importance import Importance
from gating.objectives.baselines.iterative import HeadRanking, IterativePruning
from gating.objectives.baselines.lagrangian import Lagrangian
from gating.objectives.baselines.magnitude import Magnitude
from gating.objectives.baselines.none import NoObjective
from gating.objectives.baselines.random_order import RandomOrder
from gating.objectives.baselines.topk import TopK
from gating.objectives.budget import HeadBudget, resolve_budget
from gating.objectives.exact import ExactBudget
from gating.objectives.expected_count import ExpectedCount
from gating.objectives.fixed_price import FixedPrice
from gating.objectives.schedule import BudgetSchedule

__all__ = [
    "BudgetSchedule",
    "DeterministicBudget",
    "ExactBudget",
    "ExpectedCount",
    "Fisher",
    "FixedPrice",
    "FollowsLoss",
    "HasMovableBudget",
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
