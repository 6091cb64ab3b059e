"""Learn which attention heads a transformer needs, and remove the others.

gates = gating.inject_gates(model)                      # a hard-concrete gate on every head
objective = gating.ExactBudget(num_heads=18)
objective.attach(gates)                                 # then train weights and gates together
gating.finalize(model, gates, objective)                # the other heads are gone
gating.save_compact(model, "compact", tokenizer=tokenizer)
model = gating.load_compact("compact")
"""

from gating.compact.load import load_compact
from gating.compact.save import save_compact
from gating.discovery.find import find_attention_blocks, find_feed_forward_blocks
from gating.gates import HeadGates, inject_gates
from gating.objectives import (
    BudgetSchedule,
    ExactBudget,
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
from gating.objectives.convergence import Convergence
from gating.objectives.parameter_groups import parameter_groups
from gating.pruning.finalize import FinalizeReport, finalize
from gating.pruning.latency_costs import budget_for_speedup
from gating.pruning.padding import silence_padding
from gating.pruning.prune import prune_heads, prune_neurons
from gating.pruning.prune_report import PruneReport
from gating.report.card import CompactReport
from gating.serving.formats import export_compact
from gating.serving.graphs.export import export_onnx
from gating.structure.attention_spec import AttentionSpec
from gating.structure.blocks import AttentionBlock
from gating.structure.families import register_attention_spec
from gating.structure.feed_forward import FeedForwardBlock
from gating.structure.feed_forward_specs import FeedForwardSpec, register_feed_forward_spec
from gating.training.distillation import Distillation

__version__ = "0.1.0"

__all__ = [
    "AttentionBlock",
    "AttentionSpec",
    "BudgetSchedule",
    "CompactReport",
    "Convergence",
    "Distillation",
    "ExactBudget",
    "FeedForwardBlock",
    "FeedForwardSpec",
    "FinalizeReport",
    "FixedPrice",
    "HeadGates",
    "Importance",
    "IterativePruning",
    "Lagrangian",
    "Magnitude",
    "NoObjective",
    "Objective",
    "PruneReport",
    "RandomOrder",
    "TopK",
    "__version__",
    "budget_for_speedup",
    "export_compact",
    "export_onnx",
    "finalize",
    "find_attention_blocks",
    "find_feed_forward_blocks",
    "inject_gates",
    "load_compact",
    "parameter_groups",
    "prune_heads",
    "prune_neurons",
    "register_attention_spec",
    "register_feed_forward_spec",
    "save_compact",
    "silence_padding",
]
