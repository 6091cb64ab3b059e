"""Learn which attention heads a transformer needs, and remove the others.

gates = gating.inject_gates(model)                      # a hard-concrete gate on every head
search = gating.Search(gates, gating.ExactBudget(num_heads=18))  # then train weights and gates together
gating.finalize(model, gates)                           # the other heads are gone
gating.save_compact(model, "compact", tokenizer=tokenizer)
model = gating.load_compact("compact")
"""

import importlib.util

import lazy_loader

# Importing torch and transformers takes seconds, which `--help` and a mistyped setting need not wait for.
__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
# Without the modules of the package, which are attributes, too.
__all__ = [name for name in _names if importlib.util.find_spec(f"{__name__}.{name}") is None]
__version__ = "0.1.0"
