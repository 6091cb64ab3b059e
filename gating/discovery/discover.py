"""Discovery of the layout of heads in attention classes that the registry lacks.

A candidate for attention has projections with common names, a common name for the width of a head, and an output
projection with an input of a multiple of that width. Structure does not determine the order of rows in fused
projections, or the assumptions of a ``forward``. Each candidate layout is therefore tried on the model: it is accepted
if the outputs after a removal equal those with masked heads, and the removal is undone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from torch import Tensor, nn

from gating.discovery.dependence import why_heads_depend, why_not_attention
from gating.discovery.refusals import sort_blocks, why_not_editable
from gating.errors import InputError
from gating.families.layouts import AttentionSpec, RowLayout
from gating.families.linear import num_inputs, num_outputs
from gating.families.registry import find_spec
from gating.proof.conditions import check_no_adapters
from gating.proof.probe import run_probe
from gating.proof.prove import try_removal
from gating.structure.attention import AttentionBlock, iter_attention_blocks

__all__ = ["discover_specs"]

_TRIPLES = [
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("linear_q", "linear_k", "linear_v"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
]
_FUSED = ["qkv", "Wqkv", "qkv_proj", "query_key_value", "c_attn", "in_proj", "att_proj", "W_pack"]
# Fused rows, with as many key-value heads as query heads and with fewer of them.
_FUSED_LAYOUTS: dict[bool, tuple[RowLayout, RowLayout]] = {False: ("qkv", "hqkv"), True: ("qkv", "gqkv")}
_OUTPUTS = ["o_proj", "out_proj", "dense", "o", "out_lin", "c_proj", "Wo", "proj", "projection", "linear_out", "wo"]
_HEAD_DIMS = ["head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "d_head", "dim_head", "d_k"]
_WIDTHS = ("all_head_size", "inner_dim", "split_size")


def discover_specs(model: nn.Module, *, probe: Mapping[str, Tensor] | None = None) -> dict[type, str]:
    """Set the attribute ``attention_spec`` of the attention modules that have no spec yet, in place.

    Candidate layouts are tried on the probe, or on a batch that is made for the model.

    Returns:
        For each class that looks like attention although every candidate layout fails, the reason.

    Raises:
        ValueError: The model does not run on the probe.
    """
    candidates = _find_candidates(model)
    if not candidates:
        return {}
    check_no_adapters(model)
    # Here, so that a model that does not run at all is one error, not one for each candidate.
    batch, _ = run_probe(model, probe)
    problems = {type(modules[0]): _choose_spec(model, modules, specs, batch) for modules, specs in candidates}
    return {attention_class: problem for attention_class, problem in problems.items() if problem}


def _find_candidates(model: nn.Module) -> list[tuple[list[nn.Module], list[AttentionSpec]]]:
    """Return, for each class that looks like attention, its modules and candidate specs."""
    by_class: dict[type, list[nn.Module]] = {}
    candidates: dict[type, list[AttentionSpec]] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if find_spec(module) is None and why_not_attention(module) is None:
            guesses = list(_guess(module, modules[name.rpartition(".")[0]]))
            if guesses:
                by_class.setdefault(type(module), []).append(module)
                candidates.setdefault(type(module), guesses)
    return [(modules, candidates[attention_class]) for attention_class, modules in by_class.items()]


def _guess(module: nn.Module, parent: nn.Module) -> Iterator[AttentionSpec]:
    """Yield candidate specs of a module, the simplest first; none if it does not look like attention."""
    head_dim_name = next((name for name in _HEAD_DIMS if isinstance(getattr(module, name, None), int)), None)
    output_path = next((name for name in _OUTPUTS if _is_linear(module, name)), None)
    if output_path is None and _is_linear(parent, "output.dense"):
        output_path = "^output.dense"
    if head_dim_name is None or output_path is None:
        return
    head_dim = max(1, getattr(module, head_dim_name))
    output = (parent if output_path.startswith("^") else module).get_submodule(output_path.removeprefix("^"))
    num_heads, rest = divmod(num_inputs(output), head_dim)
    projections = list(_guess_projections(module, num_heads, head_dim)) if num_heads and not rest else []
    embed_dim = [(), ("embed_dim",)] if hasattr(module, "embed_dim") else [()]
    config = [(), ("num_attention_heads",)] if hasattr(module, "config") else [()]
    for laid_out, widths, counts in product(projections, embed_dim, config):
        yield AttentionSpec(
            laid_out,
            output_path,
            head_dim=head_dim_name,
            returns="context" if output_path.startswith("^") else "pair",
            head_widths=(*_WIDTHS, *widths),
            config_counts=counts,
        )


def _guess_projections(module: nn.Module, num_heads: int, head_dim: int) -> Iterator[tuple[tuple[str, RowLayout], ...]]:
    for query, key, value in _TRIPLES:
        if all(_is_linear(module, name) for name in (query, key, value)):
            rows = [num_outputs(module.get_submodule(name)) for name in (query, key, value)]
            groups = rows[1] // head_dim
            is_whole = rows == [num_heads * head_dim, groups * head_dim, groups * head_dim]
            if is_whole and groups and num_heads % groups == 0:
                yield (query, "q"), (key, "k"), (value, "v")
            return
    for name in _FUSED:
        if _is_linear(module, name):
            groups, rest = divmod(num_outputs(module.get_submodule(name)) - num_heads * head_dim, 2 * head_dim)
            if groups > 0 and rest == 0 and num_heads % groups == 0:
                for layout in _FUSED_LAYOUTS[groups < num_heads]:
                    yield ((name, layout),)
            return


def _is_linear(module: nn.Module, path: str) -> bool:
    try:
        child = module.get_submodule(path)
    except AttributeError:
        return False
    # Quantized layers, too: the error about them comes later.
    return why_not_editable(child) is None or hasattr(child, "weight")


def _choose_spec(
    model: nn.Module, modules: list[nn.Module], candidates: list[AttentionSpec], probe: Mapping[str, Tensor]
) -> str | None:
    """Give the modules of one class the first spec with which a removal equals masking; return the problem of none."""
    problem = ""
    for spec in candidates:
        try:
            _assign(modules, spec)
            _try(model, spec, probe, emptied=False)
        except Exception as error:  # A wrong layout may fail in any way before it is tried.
            problem = problem or (str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
            _assign(modules, None)
            continue
        try:
            _try(model, spec, probe, emptied=True)
        except Exception:  # As above.
            _assign(modules, replace(spec, returns="unknown"))
        return None
    return f"discover=True found it, but {problem[0].lower()}{problem[1:].rstrip('.')}"


def _assign(modules: list[nn.Module], spec: AttentionSpec | None) -> None:
    for module in modules:
        if spec is not None:
            module.attention_spec = spec  # type: ignore[assignment]
        elif hasattr(module, "attention_spec"):
            del module.attention_spec


def _try(model: nn.Module, spec: AttentionSpec, probe: Mapping[str, Tensor], *, emptied: bool) -> None:
    """Remove some heads, compare with masking them, and undo the removal.

    The first group of heads tells layouts apart: the values of the last one are at the end of a fused projection in
    every layout.
    """
    blocks = [block for block in sort_blocks(iter_attention_blocks(model), why_heads_depend)[0] if block.spec == spec]
    kept = {block.name: () if emptied else _all_but_first_group(block) for block in blocks}
    try_removal(model, blocks, kept, probe=probe)


def _all_but_first_group(block: AttentionBlock) -> tuple[int, ...]:
    # Removing a single group would empty the block; its first query head is enough.
    return block.head_slots[block.queries_per_key if block.num_key_value_heads > 1 else 1 :]
