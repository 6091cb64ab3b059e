"""The model card of a compact model: kept heads and neurons, and measurements."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedModel

from gating.loader.record import auto_classes
from gating.proof.probe import make_probe
from gating.report.metadata import TAG, base_of, is_sentence_folder, task_of
from gating.report.rows import CompactReport, heads_per_layer, layers_left, neurons_per_layer

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
# Metrics with another name on the hub.
_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
# A task of transformers that the hub does not list.
_UNLISTED = "text2text-generation"
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
    """Write a model card with the metadata that hubs read; a stock model loads without further code.

    The license of the base model is looked up on the hub for an upload alone, to ``repo_id``.
    """
    report, place = report or CompactReport(), repo_id or "."
    heads, neurons = heads_per_layer(model), neurons_per_layer(model)
    has_all_heads = all(len(head_ids) == num_heads for _, head_ids, num_heads in heads)
    has_all_neurons = all(kept == before for _, kept, before in neurons)
    text = _render(
        "card.md.j2",
        metadata=_metadata(model, report, folder=path.parent, repo_id=repo_id).to_yaml(),
        model_type=model.config.model_type,
        report=report,
        notes=[*report.notes, *map("Warning: {}".format, report.warnings), *filter(None, [layers_left(model)])],
        units="heads" if has_all_neurons else "neurons" if has_all_heads else "heads and neurons",
        heads=heads,
        neurons=[] if has_all_neurons else neurons,
        usage=usage_code(model, path.parent, place=place, stock=stock),
        place=place,
        stock=stock,
    )
    ModelCard(text).save(path)


def _metadata(
    model: PreTrainedModel, report: CompactReport, *, folder: Path, repo_id: str | None = None
) -> ModelCardData:
    """Return the metadata of a card in a folder; without data in the report, it has no results."""
    base, licenses = base_of(model, online=repo_id is not None)
    is_sentences, data = is_sentence_folder(folder), report.data
    task = "sentence-similarity" if is_sentences else task_of(model)
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=data.hub_id or data.name,
            dataset_name=data.name,
            dataset_config=data.config,
            dataset_split=data.splits.get(split, split),
            metric_type=_METRICS.get(metric, metric),
            metric_name=f"{split} {metric}",
            metric_value=round(value, 6),
        )
        for split, metric, value in report.scores
        if data is not None
    ]
    name = (repo_id or f"compact {model.config.model_type}").rpartition("/")[2]
    return ModelCardData(
        base_model=report.base_model or base,
        library_name="sentence-transformers" if is_sentences else "transformers",
        **licenses,
        pipeline_tag=None if task == _UNLISTED else task,
        tags=[TAG, "pruned"],
        datasets=[data.hub_id] if data is not None and data.hub_id else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def usage_code(model: PreTrainedModel, folder: Path, *, place: str, stock: bool) -> str:
    """Return Python code that loads a model from a folder or name with its tokenizer or processor, and predicts."""
    config, task = model.config, _auto_suffix(model)
    problem = getattr(config, "problem_type", None)
    return _render(
        "usage.py.j2",
        task=task,
        example=_example(model, folder, task),
        problem="regression" if getattr(config, "num_labels", 0) == 1 and problem is None else problem,
        mode=_MODES.get(getattr(config, "num_channels", 3)),
        place=json.dumps(place, ensure_ascii=False),
        trust="" if stock else ", trust_remote_code=True",
        is_sentences=is_sentence_folder(folder),
    ).strip()


def _render(template: str, **variables: object) -> str:
    # Nothing is escaped in Markdown.
    environment = Environment(loader=PackageLoader("gating", "report"), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(template).render(variables)


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


def _auto_suffix(model: PreTrainedModel) -> str:
    """Return the suffix of the Auto class that loads this model, such as ``ForSequenceClassification``."""
    name = type(model).__name__
    matches = [auto for auto, base in auto_classes(type(model.config)).items() if base.__name__ == name]
    # The clearest: those that are not in the list, then in its order.
    clearest = min(matches, key=lambda auto: _VAGUE.index(auto) if auto in _VAGUE else -1, default="AutoModel")
    return clearest.removeprefix("AutoModel")
