"""Whether a model can learn from a teacher, before anything is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gating.errors import InputError, RemedyError
from gating.objectives.distillation import HIDDEN_STATES, LOGITS, Distillation
from gating.proof.outputs import evaluating

__all__ = ["check_fits", "check_outputs", "check_tokenizer"]


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
        InputError: It has weights of the student, does not run on the batch, or has other outputs.
    """
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise InputError(
            "The teacher has weights of the model that is trained, and would change with it: give a copy of the model, "
            "copy.deepcopy(model), made before gates are put on it, or a folder."
        )
    ours, theirs = (getattr(getattr(model, "config", None), "id2label", None) for model in (student, teacher))
    # By transformers, for a model without names.
    made_up = all(name == f"LABEL_{number}" for number, name in (ours or {}).items())
    if len(ours or ()) != len(theirs or ()) or (ours != theirs and not made_up):
        raise RemedyError(
            f"The teacher has the classes {_listed(theirs)}, this data has {_listed(ours)}. Fine-tune the "
            "teacher on this data first",
            python=".",
            command=" (objective=none), or let this run do it: distillation.teacher=null.",
        )
    expected: Any = check_outputs(student, batch, distillation=distillation)
    try:
        found: Any = check_outputs(teacher, batch, distillation=distillation)
    except Exception as error:  # Models raise errors of any class.
        found = str(error).strip().partition("\n")[0]
    if found != expected:
        remedy = "" if not distillation.hidden_weight else ", and as many layers of the same width, or hidden_weight=0"
        raise InputError(
            f"The teacher, a {type(teacher).__name__}, returns {found} for a batch, and this model {expected}: it must "
            f"have the same task, tokenizer and vocabulary{remedy}."
        )


@torch.no_grad()
def check_outputs(model: nn.Module, batch: Mapping[str, Any], *, distillation: Distillation) -> dict[str, str]:
    """Check the outputs of a model that are compared, and return their shapes by name.

    Raises:
        InputError: It has no logits, or no hidden states.
    """
    options = {"output_hidden_states": True} if distillation.hidden_weight else {}
    # Some models draw random numbers in evaluation, too.
    with evaluating(model), torch.random.fork_rng():
        outputs = model(**batch, **options)
    shapes = dict[str, str]()
    for setting, names in (("weight", LOGITS), ("hidden_weight", HIDDEN_STATES)):
        found = {name: outputs[name] for name in names if outputs.get(name) is not None}
        if getattr(distillation, setting) and not found:
            raise InputError(
                f"{setting}={getattr(distillation, setting)} compares {' or '.join(names)}, and a "
                f"{type(model).__name__} returns none: give {setting}=0, or a model that returns them."
            )
        for name, value in found.items() if getattr(distillation, setting) else ():
            several = [value] if isinstance(value, torch.Tensor) else value
            shapes[name] = f"{len(several)} x {tuple(several[-1].shape)}"
    return shapes


def _listed(names: Mapping[int, str] | None) -> str:
    return ", ".join(names.values()) if names else "none"
