"""Public names, imported by `gating/__init__.py` when they are first used."""

from . import compact as compact
from . import compensation as compensation
from . import discovery as discovery
from . import errors as errors
from . import gates as gates
from . import integrations as integrations
from . import objectives as objectives
from . import pruning as pruning
from . import serving as serving
from . import sharding as sharding
from . import structure as structure
from .compact.load import load_compact
from .compact.recipe import save_recipe
from .compact.save import save_compact
from .compensation.compensate import compensate
from .compensation.result import CompensationReport
from .discovery.find import find_attention_blocks, find_feed_forward_blocks
from .families.layouts import AttentionSpec, FeedForwardSpec
from .families.registry import register_attention_spec, register_feed_forward_spec
from .gates import HeadGates, inject_gates
from .integrations.prune import prune
from .objectives import (
    BudgetSchedule,
    DeterministicBudget,
    ExactBudget,
    Fisher,
    FixedPrice,
    Importance,
    IterativePruning,
    Lagrangian,
    Magnitude,
    NoObjective,
    Objective,
    RandomOrder,
    TopK,
)
from .objectives.parameter_groups import parameter_groups
from .objectives.search import Convergence, Search
from .pruning.finalize import FinalizeReport, finalize
from .pruning.latency_costs import budget_for_speedup
from .pruning.prune import prune_heads, prune_neurons, silence_padding
from .pruning.prune_layers import prune_layers
from .pruning.prune_report import PruneReport
from .report.rows import CompactReport
from .serving.formats import export_compact
from .serving.graphs.graph_export import export_onnx
from .structure.attention import AttentionBlock
from .structure.feed_forward import FeedForwardBlock
from .teachers.distillation import Distillation
from .teachers.teacher import OpenTeacher, Teacher

__version__: str

__all__ = [
    "AttentionBlock",
    "AttentionSpec",
    "BudgetSchedule",
    "CompactReport",
    "CompensationReport",
    "Convergence",
    "DeterministicBudget",
    "Distillation",
    "ExactBudget",
    "FeedForwardBlock",
    "FeedForwardSpec",
    "FinalizeReport",
    "Fisher",
    "FixedPrice",
    "HeadGates",
    "Importance",
    "IterativePruning",
    "Lagrangian",
    "Magnitude",
    "NoObjective",
    "Objective",
    "OpenTeacher",
    "PruneReport",
    "RandomOrder",
    "Search",
    "Teacher",
    "TopK",
    "__version__",
    "budget_for_speedup",
    "compensate",
    "export_compact",
    "export_onnx",
    "finalize",
    "find_attention_blocks",
    "find_feed_forward_blocks",
    "inject_gates",
    "load_compact",
    "parameter_groups",
    "prune",
    "prune_heads",
    "prune_layers",
    "prune_neurons",
    "register_attention_spec",
    "register_feed_forward_spec",
    "save_compact",
    "save_recipe",
    "silence_padding",
]
