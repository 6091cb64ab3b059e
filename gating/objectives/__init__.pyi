"""Objectives that choose the gates to close, one in each file, imported when they are first used."""

from .base import FollowsLoss, HasMovableBudget, Objective
from .baselines.deterministic import DeterministicBudget
from .baselines.fisher import Fisher
from .baselines.importance import Importance
from .baselines.iterative import HeadRanking, IterativePruning
from .baselines.lagrangian import Lagrangian
from .baselines.magnitude import Magnitude
from .baselines.none import NoObjective
from .baselines.random_order import RandomOrder
from .baselines.topk import TopK
from .budget import HeadBudget, resolve_budget
from .exact import ExactBudget
from .expected_count import ExpectedCount
from .fixed_price import FixedPrice
from .schedule import BudgetSchedule

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
