"""Learn which attention heads a transformer needs, and remove the others.

gates = gating.inject_gates(model)                      # a hard-concrete gate on every head
objective = gating.ExactBudget(num_heads=18)
objective.attach(gates)                                 # then train weights and gates together
gating.finalize(model, gates, num_heads=18)             # the other heads are gone
gating.save_compact(model, "compact", tokenizer=tokenizer)
model = gating.load_compact("compact")
"""

from gating.card import CompactReport
from gating.convergence import Convergence
from gating.distillation import Distillation
from gating.export import save_compact
from gating.finalize import FinalizeReport, finalize
from gating.gates import HeadGates, inject_gates
from gating.heads.blocks import AttentionBlock, find_attention_blocks
from gating.heads.families import register_attention_spec
from gating.heads.padding import silence_padding
from gating.heads.pruning import PruneReport, prune_heads
from gating.heads.spec import AttentionSpec
from gating.loading import load_compact
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
from gating.runtimes import export_onnx

__version__ = "0.1.0"

__all__ = [
    "AttentionBlock",
    "AttentionSpec",
    "BudgetSchedule",
    "CompactReport",
    "Convergence",
    "Distillation",
    "ExactBudget",
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
    "export_onnx",
    "finalize",
    "find_attention_blocks",
    "inject_gates",
    "load_compact",
    "prune_heads",
    "register_attention_spec",
    "save_compact",
    "silence_padding",
]
