"""The model card of a compact model: kept heads and neurons, and measurements."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from huggingface_hub import ModelCard
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import nn
from transformers import PreTrainedModel

from gating.loader.compact import auto_classes
from gating.proof.probe import make_probe
from gating.pruning.measure import cache_bytes_per_token
from gating.pruning.recording import build_original
from gating.report.metadata import card_metadata
from gating.report.rows import CompactReport, KeptHeads, KeptNeurons, Row, heads_per_layer, neurons_per_layer
from gating.structure.feed_forward import iter_feed_forward_blocks

__all__ = ["write_card"]

# Auto classes whose models have another one, of a clearer name; BART is among the masked language models, too.
_VAGUE = ("AutoModelForMaskedLM", "AutoModelForTextEncoding", "AutoModelForPreTraining")

# Auto classes of texts with an example in the card. Those of the second kind make the tokens of a decoder themselves.
_OF_TEXTS = (
    *("", "ForCausalLM", "ForMaskedLM", "ForNextSentencePrediction", "ForPreTraining", "ForTextEncoding"),
    "ForTokenClassification",
)
_WITH_DECODERS = ("ForSeq2SeqLM", "ForSequenceClassification", "ForQuestionAnswering")
# Files of an image processor beside the card.
_IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# Modes of pictures by their number of channels.
_MODES = {1: "L", 3: "RGB"}
# Number of tokens that the texts of all examples fit in, also as single bytes.
_LENGTH = 60


def write_card(
    path: Path,
    model: PreTrainedModel,
    report: CompactReport | None,
    stock: bool = False,
    *,
    repo_id: str | None = None,
) -> None:
    """Write a model card with the metadata that hubs read.

    Args:
        path: Path of the README.md.
        model: The compact model.
        report: Measurements for the card; without sizes among them, it has the numbers of heads and neurons.
        stock: Whether the folder holds a stock model, which loads without further code.
        repo_id: Name on the hub that the card is uploaded to; its license may then be looked up there.
    """
    heads, neurons = heads_per_layer(model), neurons_per_layer(model)
    units = _removed_units(heads, neurons)
    metadata = card_metadata(
        model,
        name=(repo_id or f"compact {model.config.model_type}").rpartition("/")[2],
        data=None if report is None else report.data,
        scores=() if report is None else report.scores,
        base_model=None if report is None else report.base_model,
        online=repo_id is not None,
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---\n",
        f"# Compact {model.config.model_type}\n",
        f"{_TITLES[units]} were removed from this model with head-gating; the others kept their original numbers.\n",
    ]
    measured = [] if report is None else report.rows
    sizes = [[row.name, row.before, row.after, row.ratio] for row in measured or _recorded_rows(model, heads, neurons)]
    parts += [_table(["", "before", "after", "ratio"], sizes)] if sizes else []
    if report is not None:
        if report.scores and not report.metrics:
            shown = [[split, metric, f"{value:.4f}"] for split, metric, value in report.scores]
            parts.append(_table(["split", "metric", "value"], shown))
        if report.metrics:
            heading = ["stage", f"validation {report.metric_name}", f"test {report.metric_name}"]
            parts.append(_table(heading, [list(row) for row in report.metrics]))
        parts += [f"{note}\n" for note in report.notes]
    place = repo_id or "."
    usage = _usage(model, path.parent, place=place, units=units, stock=stock)
    parts += [*_heads_section(heads), *_neurons_section(model), usage]
    ModelCard("\n".join(parts)).save(path)


def _usage(model: PreTrainedModel, folder: Path, *, place: str, units: str, stock: bool) -> str:
    """Return the section about loading the model and predicting with it."""
    loader = PackageLoader("gating", "report")
    # A card is Markdown, in which nothing is escaped.
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)
    config, task = model.config, _auto_suffix(model)
    problem = getattr(config, "problem_type", None)
    return environment.get_template("usage.md.j2").render(
        task=task,
        example=_example(model, folder, task),
        place=place,
        trust="" if stock else ", trust_remote_code=True",
        stock=stock,
        units=units,
        problem="regression" if getattr(config, "num_labels", 0) == 1 and problem is None else problem,
        mode=_MODES.get(getattr(config, "num_channels", 3)),
    )


def _example(model: PreTrainedModel, folder: Path, task: str) -> str | None:
    """Return the input of the example, ``image`` or ``text``; None where loading alone is shown."""
    if task == "ForImageClassification":
        has_processor = any((folder / name).is_file() for name in _IMAGE_PROCESSOR_FILES)
        return "image" if has_processor and getattr(model.config, "num_channels", 3) in _MODES else None
    takes = {"input_ids", *(["decoder_input_ids"] if task in _WITH_DECODERS else [])}
    if task not in (*_OF_TEXTS, *_WITH_DECODERS) or not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        probe = make_probe(model, length=_LENGTH)
    except ValueError:
        return None
    # Probes are shorter for models with fewer positions.
    return "text" if probe.keys() <= takes and probe["input_ids"].shape[1] == _LENGTH else None


# First words of a card, by the removed units.
_TITLES = {
    "heads": "Attention heads",
    "neurons": "Feed-forward neurons",
    "heads and neurons": "Attention heads and feed-forward neurons",
}


def _removed_units(heads: Sequence[KeptHeads], neurons: Sequence[KeptNeurons]) -> str:
    has_all_heads = all(len(head_ids) == num_heads for _, head_ids, num_heads in heads)
    has_all_neurons = all(kept == before for _, kept, before in neurons)
    if has_all_neurons:
        return "heads"
    return "neurons" if has_all_heads else "heads and neurons"


def _recorded_rows(model: PreTrainedModel, heads: Sequence[KeptHeads], neurons: Sequence[KeptNeurons]) -> list[Row]:
    """Return the heads, neurons and bytes of the key-value cache before and after, where there are fewer now."""
    original = build_original(model, model.config)
    sizes = {
        "heads": (sum(num_heads for _, _, num_heads in heads), sum(len(head_ids) for _, head_ids, _ in heads)),
        "neurons": (sum(before for _, _, before in neurons), sum(kept for _, kept, _ in neurons)),
        "key-value cache (bytes per token)": (cache_bytes_per_token(original), cache_bytes_per_token(model)),
    }
    return [Row(name, f"{old:,}", f"{new:,}", f"{new / old:.2f}") for name, (old, new) in sizes.items() if new < old]


def _heads_section(heads: Sequence[KeptHeads]) -> list[str]:
    rows = [
        [name, ", ".join(map(str, head_ids)) or "none", f"{len(head_ids)} of {num_heads}"]
        for name, head_ids, num_heads in heads
    ]
    if not rows:
        return []
    return ["## Heads that were kept\n", _table(["attention block", "numbers of the kept heads", "kept"], rows)]


def _neurons_section(model: nn.Module) -> list[str]:
    blocks = list(iter_feed_forward_blocks(model))
    if all(block.num_neurons == block.width_before for block in blocks):
        return []
    rows = [
        [
            block.name,
            _ranges(block.group_ids) or "none",
            f"{block.group_size}",
            f"{block.num_neurons:,} of {block.width_before:,}",
        ]
        for block in blocks
    ]
    header = ["feed-forward block", "numbers of the kept groups", "neurons in a group", "kept neurons"]
    return [
        "## Neurons that were kept\n",
        "Neurons are numbered as before the removal. Group 0 has the first of them, group 1 the next, and so on.\n",
        _table(header, rows),
    ]


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, consecutive ones as a range.

    Example:
        >>> _ranges([0, 1, 2, 5])
        '0-2, 5'
    """
    ends = [(first, second) for first, second in pairwise(numbers) if second != first + 1]
    starts = [*numbers[:1], *(second for _, second in ends)]
    stops = [*(first for first, _ in ends), *numbers[-1:]]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _auto_suffix(model: PreTrainedModel) -> str:
    """Return the suffix of the Auto class that loads this model, such as ``ForSequenceClassification``."""
    name = type(model).__name__
    matches = [auto for auto, base in auto_classes(type(model.config)).items() if base.__name__ == name]
    # The clearest: those that are not in the list, then in its order.
    clearest = min(matches, key=lambda auto: _VAGUE.index(auto) if auto in _VAGUE else -1, default="AutoModel")
    return clearest.removeprefix("AutoModel")
