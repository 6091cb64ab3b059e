"""One model type of the census: tiny models of two sizes, and which heads and neurons are removed exactly.

``python -m benchmarks.census.case FOLDER TYPE [TYPE ...]`` prints a JSON line for each type.
"""

import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from benchmarks.census.models import build, looks_like_attention, model_types
from benchmarks.census.removal import EXACT, Row, Tiny, examine_units, save
from benchmarks.census.settings import SIZES
from gating.discovery.find import search_blocks
from gating.errors import UserError
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import run_probe

# Standard deviations of the parameters: the second where blocks have too little effect with the first.
_SPREADS = (0.1, 0.4)
_UNEXAMINED = ("not built", "not run", "no attention")


def main() -> None:
    """Print the result of each model type of the command line."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    parent, *names = sys.argv[1:]
    for name in names:
        folder = Path(parent, name)
        folder.mkdir()
        print("EXAMINED", json.dumps(examine(name, folder)), flush=True)


def examine(model_type: str, folder: Path) -> Row:
    """Examine a model type; save compact models in subfolders, each with a batch and the outputs for it.

    Returns:
        The outcome: ``exact``, ``unproven``, ``refused``, ``wrong``, ``no attention``, ``not run`` or ``not built``;
        whether it is by the registry or by discovery; and what is measured. ``uneven`` is the outcome with the second
        sizes.
    """
    rows = []
    for class_name in model_types()[model_type]:
        build_one = partial(build, model_type, class_name=class_name)
        found = {"model_type": model_type, "model_class": class_name, **_examine_class(build_one, folder / class_name)}
        if found["outcome"] not in ("not built", "not run"):
            return found
        rows.append(found)
    return rows[0]


def _examine_class(build_one: Callable[..., PreTrainedModel], folder: Path) -> Row:
    """Examine a class of a model type with both sizes."""
    first, second = (_examine_sizes(partial(build_one, sizes), folder / f"{sizes.hidden}") for sizes in SIZES)
    if first["outcome"] in ("not built", "not run") and second["outcome"] not in _UNEXAMINED:
        first = second
    if first["outcome"] in _UNEXAMINED:
        return first
    row = first | {"uneven": {name: second[name] for name in ("outcome", "difference", "reason") if name in second}}
    if second["outcome"] == "wrong" and first["outcome"] != "wrong":
        row |= {"outcome": "wrong", "reason": f"with the second sizes: {second['reason']}"}
    return row


def _examine_sizes(build_one: Callable[..., PreTrainedModel], folder: Path) -> Row:
    """Examine a model of some sizes, with larger parameters if blocks have no effect with small ones."""
    row: Row = {}
    for spread in _SPREADS:
        found = _examine_model(partial(build_one, spread=spread), folder / f"{spread}")
        # Large parameters make rounding errors large, too, so that a difference with them is no mistake.
        if not row or _is_better(found, row):
            row = found
        if row["outcome"] not in ("exact", "unproven") or not _num_unproven(row):
            break
    return row


def _is_better(found: Row, row: Row) -> bool:
    return found["outcome"] == "exact" and (row["outcome"] != "exact" or _num_unproven(found) < _num_unproven(row))


def _num_unproven(row: Row) -> int:
    return sum(sum(row.get(name, {}).values()) for name in ("unproven", "neurons_unproven"))


def _examine_model(build_one: Callable[[], PreTrainedModel], folder: Path) -> Row:
    row: Row = {}
    try:
        model = build_one()
        row["num_parameters"] = model.num_parameters()
    except Exception as error:
        return {**row, "outcome": "not built", "reason": _sentence(error)}
    try:
        batch, outputs = run_probe(model)
    except UserError as error:
        if not _may_have_attention(model):
            return {**row, "outcome": "no attention"}
        return {**row, "outcome": "not run", "reason": _sentence(error)}
    except Exception as error:
        return {**row, "outcome": "wrong", "reason": f"traceback of the probe: {_place(error)}"}
    tiny = Tiny(model, batch, outputs)
    if not _may_have_attention(model) and not _has_blocks(tiny):
        return {**row, "outcome": "no attention"}
    if any(tensor.isnan().any() for tensor in outputs):
        return {**row, "outcome": "not run", "reason": "random weights give NaN"}
    if problem := _dense_problem(tiny):
        return {**row, "outcome": "not run", "reason": f"transformers does not reload the dense model: {problem}"}
    by, found = _search(tiny)
    row |= {"by": by, **found}
    if row["outcome"] != "exact":
        return row
    tiny = tiny._replace(discover=by == "discovery")
    row |= guarded(partial(examine_units, tiny, "neurons"), prefix="neurons_")
    row |= guarded(partial(save, tiny, folder, neurons=row["neurons_outcome"] == "exact"), prefix="save_")
    for part in ("save", "neurons"):
        if row[f"{part}_outcome"] == "wrong" or (part == "save" and row["save_outcome"] != "exact"):
            row |= {"outcome": "wrong", "reason": f"{part}: {row[f'{part}_reason']}"}
    return row


def _may_have_attention(model: PreTrainedModel) -> bool:
    return any(looks_like_attention(module) for module in model.modules())


def _has_blocks(tiny: Tiny) -> bool:
    """Return whether the registry or discovery finds attention whose class has another name."""
    try:
        return bool(search_blocks(deepcopy(tiny.model), "heads", discover=True, probe=tiny.batch)[0])
    except UserError:
        return False


def _dense_problem(tiny: Tiny) -> str | None:
    """Return what goes wrong when transformers saves and loads the dense model, or None."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.model.save_pretrained(folder)
        try:
            loaded = type(tiny.model).from_pretrained(folder).eval()
            difference = max_relative_difference(list(tiny.outputs), forward_outputs(loaded, tiny.batch))
        except Exception as error:
            return _place(error)
    return f"outputs differ by {difference:.1e}" if difference > EXACT else None


def _search(tiny: Tiny) -> tuple[str, Row]:
    """Return what the registry finds; or discovery, where it finds more or knows more of the reason."""
    by_registry = guarded(partial(examine_units, tiny, "heads"))
    if by_registry["outcome"] == "exact" and not by_registry["ungated"]:
        return "registry", by_registry
    # Discovery stores layouts in the modules.
    by_discovery = guarded(partial(examine_units, tiny._replace(model=deepcopy(tiny.model), discover=True), "heads"))
    if _rank(by_discovery) > _rank(by_registry) or by_registry["outcome"] == by_discovery["outcome"] == "refused":
        return "discovery", by_discovery
    if "ungated" in by_registry and "ungated" in by_discovery:
        by_registry["ungated"] = by_discovery["ungated"]
    return "registry", by_registry


def _rank(found: Row) -> tuple[int, int]:
    order = ("wrong", "refused", "unproven", "exact")
    return order.index(found["outcome"]), -sum(one["number"] for one in found.get("ungated", ()))


def guarded(function: Callable[[], Row], *, prefix: str = "") -> Row:
    """Return the result of a function; an error of this package is a refusal, any other error is wrong."""
    try:
        found = function()
    except UserError as error:
        found = {"outcome": "refused", "reason": _sentence(error)}
    except Exception as error:
        found = {"outcome": "wrong", "reason": _place(error)}
    return {f"{prefix}{name}": value for name, value in found.items()}


def _sentence(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:400] or type(error).__name__


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {_sentence(error)[:300]} ({Path(last.filename).name}:{last.lineno})"


if __name__ == "__main__":
    main()
