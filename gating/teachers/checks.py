"""Whether a model can learn from a teacher, before anything is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gating.discovery.vocabulary import vocabulary_size
from gating.errors import InputError, RemedyError, UserError
from gating.objectives.distillation import HIDDEN_STATES, LOGITS, Distillation
from gating.proof.outputs import evaluating

__all__ = ["check_fits", "check_outputs", "check_tokenizer"]

Shapes = dict[str, Any]


def check_tokenizer(teacher: nn.Module, tokenizer: Any) -> None:
    """Check that the tokenizer in the folder of a teacher, if there is one, has the vocabulary of the student's.

    Raises:
        InputError: The same tokens have other numbers.
    """
    folder = Path(str(getattr(teacher, "name_or_path", "") or "/nowhere"))
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not (folder / "tokenizer_config.json").is_file():
        return
    theirs = AutoTokenizer.from_pretrained(folder).get_vocab()
    ours = tokenizer.get_vocab()
    if differing := [token for token, number in ours.items() if theirs.get(token) != number]:
        raise InputError(
            f"The teacher in {folder} has another tokenizer: the token {min(differing)!r} has the number "
            f"{theirs.get(min(differing))} there, and {ours[min(differing)]} here. It must have the same tokenizer."
        )


def check_fits(teacher: nn.Module, student: nn.Module, batch: Mapping[str, Any], *, distillation: Distillation) -> None:
    """Check that a teacher has the same classes, and outputs of the same shapes, as a student.

    Raises:
        RemedyError: The teacher has other classes.
        InputError: It has weights of the student, knows fewer tokens, does not run on the batch, or has other outputs.
    """
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise InputError(
            "The teacher has weights of the model that is trained, and would change with it: give a copy of the model, "
            "copy.deepcopy(model), made before gates are put on it, or a folder."
        )
    ours, theirs = (getattr(getattr(model, "config", None), "id2label", None) for model in (student, teacher))
    if len(ours or ()) != len(theirs or ()) or (ours != theirs and not _are_made_up(ours)):
        raise RemedyError(
            f"The teacher has the classes {_listed(theirs)}, this data has {_listed(ours)}. Fine-tune the "
            "teacher on this data first",
            python=".",
            command=" (objective=none), or let this run do it: distillation.teacher=null.",
        )
    sizes = [vocabulary_size(model) if isinstance(model, PreTrainedModel) else None for model in (teacher, student)]
    if None not in sizes and sizes[0] < sizes[1]:  # type: ignore[operator]
        raise InputError(
            f"The teacher knows {sizes[0]} tokens, and this model {sizes[1]}: it must have the same tokenizer."
        )
    expected = check_outputs(student, batch, distillation=distillation)
    try:
        found = check_outputs(teacher, batch, distillation=distillation)
    except UserError:
        raise
    except Exception as error:
        raise InputError(
            f"The teacher, a {type(teacher).__name__}, does not run on this model's inputs "
            f"({', '.join(batch)}): {str(error).strip().splitlines()[0]}. It must have the same task and tokenizer."
        ) from error
    for name in (name for name in {**expected, **found} if expected.get(name) != found.get(name)):
        if name in HIDDEN_STATES:
            raise InputError(
                f"hidden_weight={distillation.hidden_weight} compares models of the same width and depth, and the "
                f"teacher's {name} are {_described(found.get(name))}, this model's {_described(expected.get(name))}: "
                "give hidden_weight=0 (distillation=logits), or a teacher of the same size."
            )
        raise InputError(
            f"The teacher's outputs are {found}, this model's are {expected}: it must have the same task and "
            "vocabulary."
        )


@torch.no_grad()
def check_outputs(model: nn.Module, batch: Mapping[str, Any], *, distillation: Distillation) -> Shapes:
    """Check the outputs of a model that are compared, and return their shapes by name.

    Raises:
        InputError: It has no logits, or no hidden states.
    """
    options = {"output_hidden_states": True} if distillation.hidden_weight else {}
    # Some models draw random numbers in evaluation, too.
    with evaluating(model), torch.random.fork_rng():
        outputs = model(**batch, **options)
    logits = {name: tuple(outputs[name].shape) for name in LOGITS if name in outputs} if distillation.weight else {}
    if distillation.weight and not logits:
        raise InputError(
            f"weight={distillation.weight} compares logits, and a {type(model).__name__} returns none: take a model "
            "with a head for the task, or compare hidden states alone, Distillation(weight=0.0, hidden_weight=1.0)."
        )
    if not distillation.hidden_weight:
        return logits
    states = {name: outputs[name] for name in HIDDEN_STATES if outputs.get(name)}
    if not states:
        raise InputError(
            f"hidden_weight={distillation.hidden_weight} compares hidden states, and a {type(model).__name__} returns "
            "none with output_hidden_states=True: give hidden_weight=0 (distillation=logits)."
        )
    return {**logits, **{name: [tuple(state.shape) for state in several] for name, several in states.items()}}


def _described(shapes: Any) -> str:
    return f"{len(shapes)} of shape {shapes[-1]}" if shapes else "missing"


def _are_made_up(names: Mapping[int, str] | None) -> bool:
    """Return whether names of classes are those of transformers for a model without names."""
    return all(name == f"LABEL_{number}" for number, name in (names or {}).items())


def _listed(names: Mapping[int, str] | None) -> str:
    return ", ".join(names.values()) if names else "none"
