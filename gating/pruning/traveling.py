"""The files of the loader that travel in a compact folder: those that every model needs, and parts for its layouts."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, conversion_mapping
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.pytorch_utils import Conv1D

from gating.loader import permuted, sharded
from gating.loader.integrity import RECORD_KEY
from gating.loader.parts import PARTS

__all__ = ["choose_parts"]

_DOCSTRING = '"""Parts of the loader that only some models need; here those of the model of this folder."""'


def choose_parts(model: PreTrainedModel, folder: Path) -> None:
    """Rewrite ``parts.py`` in a folder that was just saved, and remove the files that its model does not need.

    transformers has copied all files of the loader there, as it follows their imports.
    """
    names = _parts_of_record(getattr(model.config, RECORD_KEY, None) or {}) | _parts_of_model(model)
    # Each part is in the file that defines it.
    modules = sorted({PARTS[name].__module__.rpartition(".")[2] for name in names & PARTS.keys()})
    (folder / "parts.py").write_text(_write_imports(modules), encoding="utf-8")
    needed = {Path(path).name for path in get_relative_import_files(folder / "compact.py")}
    for path in Path(sharded.__file__).parent.glob("[a-z]*.py"):
        if path.name not in {"compact.py", *needed}:
            (folder / path.name).unlink(missing_ok=True)


def _parts_of_record(record: dict[str, Any]) -> set[str]:
    """Return the names of the parts that the blocks of a record need; the loader itself has some of them."""
    layouts = record.get("specs", {})
    entries = record.get("blocks", {}).values()
    emptied = {entry["spec"] for entry in entries if not (entry["kept_heads"] or entry.get("padding_heads"))}
    names = {"padded"} if any(entry.get("padding_heads") for entry in entries) else set()
    for name, spec in layouts.items():
        returns = spec.get("returns", "pair")
        names |= {"shared_bias"} if returns == "t5" else set()
        names |= {"sliced_inputs"} if "per_head_inputs" in spec else set()
        names |= {"config_view"} if "config_counts" in spec else set()
        names |= {f"forward {spec['forward']}"} if "forward" in spec else set()
        names |= {f"emptied {'state' if spec.get('has_state') else returns}"} if name in emptied else set()
    is_experts = any("is_transposed" in spec for spec in record.get("feed_forward_specs", {}).values())
    return names | ({"experts"} if is_experts else set())


def _parts_of_model(model: PreTrainedModel) -> set[str]:
    """Return the names of the parts that the layers and weights of a model need."""
    conversions = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    needed = {
        "without_neurons": any(isinstance(module, Conv1D) for module in model.modules()),
        "indivisible_left_out": any(map(sharded.is_indivisible, model.parameters())),
        "rows_in_place": any(map(permuted.permutes_rows, conversions)),
    }
    return {name for name, is_needed in needed.items() if is_needed}


def _write_imports(names: list[str]) -> str:
    """Return the content of ``parts.py`` for the names of some modules."""
    imports = "".join(f"from .{name} import PARTS as _{name.upper()}\n" for name in names)
    parts = ", ".join(f"**_{name.upper()}" for name in names)
    imports = f"from typing import Any\n\n{imports}\n" if imports else "from typing import Any\n\n"
    return f'{_DOCSTRING}\n\n{imports}__all__ = ["PARTS"]\n\nPARTS: dict[str, Any] = {{{parts}}}\n'
