"""One model type of the census: heads and neurons removed in random patterns, generation, and a saved folder."""

import random
import tempfile
import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from benchmarks.census.models import build, looks_like_attention, model_types
from gating.discovery.find import search_attention
from gating.discovery.probe import forward_outputs, max_relative_difference, run_probe
from gating.discovery.self_check import units_masked
from gating.errors import UserError
from gating.structure.blocks import AttentionBlock
from gating.structure.feed_forward import Block

__all__ = ["BATCH", "EXACT", "examine"]

# Largest relative difference of masked and compact outputs that another order of summation explains.
EXACT = 1e-4
_PATTERNS = 3
BATCH = "batch.pt"

Row = dict[str, Any]


def examine(model_type: str, folder: Path) -> Row:
    """Examine a model type; save its compact model in a folder, with a batch and the outputs for it.

    Returns:
        The outcome: ``exact``, ``refused``, ``wrong``, ``no attention``, ``not run`` or ``not built``; whether it is by
        the registry or by discovery; and what is measured.
    """
    row: Row = {"model_type": model_type, "model_class": model_types()[model_type]}
    try:
        model = build(model_type)
        row["num_parameters"] = model.num_parameters()
    except Exception as error:
        return {**row, "outcome": "not built", "reason": _sentence(error)}
    if not any(looks_like_attention(module) for module in model.modules()):
        return {**row, "outcome": "no attention"}
    try:
        batch, outputs = run_probe(model)
    except UserError as error:
        return {**row, "outcome": "not run", "reason": _sentence(error)}
    except Exception as error:
        return {**row, "outcome": "wrong", "reason": f"traceback of the probe: {_place(error)}"}
    if any(tensor.isnan().any() for tensor in outputs):
        return {**row, "outcome": "not run", "reason": "random weights give NaN"}
    if problem := _dense_problem(model, batch, outputs):
        return {**row, "outcome": "not run", "reason": f"transformers does not reload the dense model: {problem}"}
    found = [_guarded(partial(_examine_heads, model_type, batch, discover=discover)) for discover in (False, True)]
    # Discovery counts where it finds more than the registry; where neither does, it knows more of the reason.
    better = _rank(found[1]) > _rank(found[0]) or found[1]["outcome"] == "refused"
    row |= {"by": "discovery" if better else "registry", **found[better]}
    if "ungated" in row and "ungated" in found[1]:
        row["ungated"] = found[1]["ungated"]
    if row["outcome"] == "exact":
        discover = bool(better)
        row |= _guarded(lambda: _examine_neurons(model_type, batch), prefix="neurons_")
        row |= _guarded(lambda: _save(model_type, batch, folder, discover=discover), prefix="save_")
        if row.get("save_outcome") != "exact" or row.get("neurons_outcome") == "wrong":
            row["outcome"] = "wrong"
    return row


def _dense_problem(model: PreTrainedModel, batch: Any, outputs: Sequence[Tensor]) -> str | None:
    """Return what goes wrong when transformers saves and loads the dense model, or None."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            loaded = type(model).from_pretrained(folder).eval()
            difference = max_relative_difference(list(outputs), forward_outputs(loaded, batch))
        except Exception as error:
            return _place(error)
    return f"outputs differ by {difference:.1e}" if difference > EXACT else None


def _rank(found: Row) -> tuple[int, int]:
    order = ("wrong", "refused", "exact")
    return order.index(found["outcome"]), -sum(one["number"] for one in found.get("ungated", ()))


def _guarded(function: Callable[[], Row], *, prefix: str = "") -> Row:
    """Return the result of a function; an error of this package is a refusal, any other error is wrong."""
    try:
        found = function()
    except UserError as error:
        found = {"outcome": "refused", "reason": _sentence(error)}
    except Exception as error:
        found = {"outcome": "wrong", "reason": _place(error)}
    return {f"{prefix}{name}": value for name, value in found.items()}


def _examine_heads(model_type: str, batch: Any, *, discover: bool) -> Row:
    model = build(model_type)
    blocks, ungated = search_attention(model, discover=discover, probe=batch if discover else None)
    row: Row = {
        "num_blocks": len(blocks),
        "num_heads": sum(block.num_heads for block in blocks),
        "classes": sorted({type(block.module).__name__ for block in blocks}),
        "towers": sorted({block.tower for block in blocks}),
        "ungated": [{"class": one.class_name, "number": len(one.names), "reason": one.reason} for one in ungated],
    }
    if unnamed := _unnamed(model, blocks, [name for one in ungated for name in one.names]):
        return {**row, "outcome": "wrong", "reason": f"no word about {', '.join(unnamed)}"}
    unreached = _unreached(model, blocks, batch)
    row["unreached"] = sorted({type(block.module).__name__ for block in unreached})
    if len(unreached) == len(blocks):
        return {**row, "outcome": "refused", "reason": "the batch reaches no block with gates, so nothing is proven"}
    differences = [_removal(model, blocks, batch, seed, discover=discover) for seed in range(_PATTERNS)]
    row["difference"] = max(differences)
    if row["difference"] > EXACT:
        return {**row, "outcome": "wrong", "reason": f"compact outputs differ by {row['difference']:.1e}"}
    generated = _generation(model, blocks, batch, discover=discover)
    row["generates"] = generated
    if generated is False:
        return {**row, "outcome": "wrong", "reason": "other tokens are generated"}
    return {**row, "outcome": "exact"}


def _unnamed(model: PreTrainedModel, blocks: Sequence[AttentionBlock], named: Sequence[str]) -> list[str]:
    """Return classes named attention that hold no gated or named module and are inside of none."""
    modules = dict(model.named_modules())
    prefix = f"{model.base_model_prefix}."
    known = {block.module for block in blocks}
    known |= {modules[name if name in modules else prefix + name] for name in named}
    inside = {part for module in known for part in module.modules()}
    return sorted(
        {
            type(module).__name__
            for module in modules.values()
            if looks_like_attention(module)
            and not isinstance(module, PreTrainedModel)
            and module not in inside
            and not set(module.modules()) & known
            # Without projections of its own, as of position biases.
            and any(isinstance(part, (torch.nn.Linear, torch.nn.Conv2d)) for part in module.modules())
        }
    )


def _unreached(model: PreTrainedModel, blocks: Sequence[Block], batch: Any) -> list[Block]:
    """Return the blocks that a forward pass does not call."""
    reached: set[str] = set()
    handles = [block.hook_features(lambda _, name=block.name: reached.add(name)) for block in blocks]
    try:
        forward_outputs(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [block for block in blocks if block.name not in reached]


def _pattern(blocks: Sequence[Block], seed: int) -> dict[str, set[int]]:
    """Return random units to keep in each block; the first block keeps none where it can, the last one all."""
    generator = random.Random(seed)
    kept = {}
    for index, block in enumerate(blocks):
        spec = getattr(block, "spec", None)
        least = 1 if getattr(spec, "returns", "") == "unknown" else 0
        number = generator.randint(least, len(block.unit_ids))
        if seed == 0 and index == 0:
            number = least
        if seed == 0 and index == len(blocks) - 1 and index:
            number = len(block.unit_ids)
        kept[block.name] = set(generator.sample(block.unit_ids, number))
    return kept


def _removal(model: PreTrainedModel, blocks: Sequence[Block], batch: Any, seed: int, *, discover: bool) -> float:
    """Return the difference between the outputs of the masked and of the compact model."""
    kept = _pattern(blocks, seed)
    with units_masked(blocks, kept):
        expected = forward_outputs(model, batch)
    compact = _compact(model, blocks, kept, batch, discover=discover)
    return max_relative_difference(expected, forward_outputs(compact, batch))


def _compact(
    model: PreTrainedModel, blocks: Sequence[Block], kept: dict[str, set[int]], batch: Any, *, discover: bool
) -> PreTrainedModel:
    compact = deepcopy(model)
    removed = {block.name: set(block.unit_ids) - kept[block.name] for block in blocks}
    gating.prune_heads(compact, removed, discover=discover, probe=batch if discover else None)
    return compact


def _generation(model: PreTrainedModel, blocks: Sequence[Block], batch: Any, *, discover: bool) -> bool | None:
    """Return whether the masked and the compact model generate the same tokens; None where the model generates none."""
    if not model.can_generate():
        return None
    inputs = {name: value for name, value in batch.items() if name != "decoder_input_ids"}
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 1}

    def generate(one: PreTrainedModel) -> Tensor:
        torch.manual_seed(0)
        result = one.generate(**inputs, **options)
        return result if isinstance(result, Tensor) else result["sequences"]

    kept = _pattern(blocks, 1)
    try:
        generate(model)
    except Exception:
        return None  # The dense model does not, for these inputs.
    with units_masked(blocks, kept):
        expected = generate(model)
    return torch.equal(expected, generate(_compact(model, blocks, kept, batch, discover=discover)))


def _examine_neurons(model_type: str, batch: Any) -> Row:
    model = build(model_type)
    blocks = gating.find_feed_forward_blocks(model, group_size=16, discover=True, probe=batch)
    worst = 0.0
    for seed in range(2):
        kept = _pattern(blocks, seed)
        with units_masked(blocks, kept):
            expected = forward_outputs(model, batch)
        compact = deepcopy(model)
        removed = {block.name: set(block.unit_ids) - kept[block.name] for block in blocks}
        gating.prune_neurons(compact, removed, group_size=16, probe=batch)
        worst = max(worst, max_relative_difference(expected, forward_outputs(compact, batch)))
    return {"outcome": "exact" if worst <= EXACT else "wrong", "difference": worst, "num_blocks": len(blocks)}


def _save(model_type: str, batch: Any, folder: Path, *, discover: bool) -> Row:
    """Save a compact model, with a batch and its outputs for another process."""
    model = build(model_type)
    blocks, _ = search_attention(model, discover=discover, probe=batch if discover else None)
    compact = _compact(model, blocks, _pattern(blocks, 0), batch, discover=discover)
    gating.save_compact(compact, folder / "model", probe=batch)
    torch.save({"batch": dict(batch), "outputs": forward_outputs(compact, batch)}, folder / BATCH)
    return {"outcome": "exact"}


def _sentence(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:400] or type(error).__name__


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {_sentence(error)[:300]} ({Path(last.filename).name}:{last.lineno})"
