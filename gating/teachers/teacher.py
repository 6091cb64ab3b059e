"""A dense model that is asked for its outputs in each training step: another one, or the model with all gates open."""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.loss.loss_utils import ForCausalLMLoss

from gating.compact.load import load_compact
from gating.errors import InputError
from gating.gates import HeadGates
from gating.loader.modeling import RECORD_KEY
from gating.loader.record import LAYERS_KEY
from gating.proof.outputs import evaluating
from gating.teachers.distillation import HIDDEN_STATES, IGNORED, LOGITS, Distillation

# With targets, a model would compute a loss that nobody reads.
_TARGETS = ("labels", "shift_labels", "start_positions", "end_positions")


class OpenTeacher(nn.Module):
    """The dense model that a model with gates on frozen weights still is.

    Its outputs are those of the model with all gates at 1, without adapters and dropout, and without a gradient. Call
    it before the pass of the gates that learn from it: gradient checkpointing computes activations of the last pass
    again.
    """

    def __init__(self, model: nn.Module, gates: HeadGates) -> None:
        """Make a model with gates, whose weights are frozen, a teacher of these gates."""
        super().__init__()
        # In a tuple they are no submodules: modes and parameters of the model are not the teacher's to change.
        self._held = model, gates

    @property
    def config(self) -> Any:
        """Configuration of the model, which says how it takes targets."""
        return getattr(self.opened, "config", None)

    @property
    def opened(self) -> nn.Module:
        """The model, whose class says at which positions its labels are."""
        return self._held[0]

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        """Return the outputs of the dense model for keyword arguments of the model."""
        model, gates = self._held
        with _evaluated(model), gates.fixed_at(torch.ones_like(gates.log_alpha)):
            return model(**inputs)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Take dropout and adapters out of a model inside of a ``with`` block."""
    # Layers of PEFT, which the core does not import; models of transformers have a method of that name.
    adapted: list[Any] = [module for module in model.modules() if getattr(module, "disable_adapters", None) is False]
    for layer in adapted:
        layer.enable_adapters(False)
    try:
        with evaluating(model):
            yield
    finally:
        for layer in adapted:
            layer.enable_adapters(True)


class Teacher:
    """A dense model and the loss with which another model learns from it.

    It is no module of the model that is trained: it is not in its checkpoints, and no optimizer has its weights. Runs,
    ``GatedTrainer`` and loops of users ask it in the same way.

    Attributes:
        model: The dense model, in evaluation mode.
        distillation: The mixture of losses.

    Example:
        >>> import copy
        >>> import gating
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10)
        >>> model = BertForSequenceClassification(config)
        >>> teacher = Teacher(copy.deepcopy(model), distillation=gating.Distillation(hidden_weight=1.0))
        >>> batch = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([1])}
        >>> teacher.check(model, batch)
        >>> gates = gating.inject_gates(model)
        >>> outputs = model(**batch, **teacher.options)
        >>> teacher.loss(outputs.loss, outputs, batch).shape
        torch.Size([])
    """

    @property
    def is_student(self) -> bool:
        """Whether the model that learns is the teacher, with all gates open."""
        return isinstance(self.model, OpenTeacher)

    def __init__(
        self, model: PreTrainedModel | nn.Module | str | os.PathLike[str], *, distillation: Distillation | None = None
    ) -> None:
        """Store or load the model, and set it to evaluation mode.

        Args:
            model: A model, fine-tuned for the same task; or its folder, or its name on the hub, as for
                :func:`gating.load_compact`. It may be larger than the model that learns, with the same tokenizer and
                classes, unless hidden states are compared.
            distillation: The mixture of losses; by default ``Distillation()``, which compares logits.

        Raises:
            FileNotFoundError: The folder is missing.
            InputError: The folder cannot be loaded.
        """
        self.model: Any = model if isinstance(model, nn.Module) else load_compact(model)
        self.model.eval()
        self.distillation = distillation or Distillation()
        self._is_encoder_decoder = bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))
        asked = self.model.opened if isinstance(self.model, OpenTeacher) else self.model
        self._labels_follow = not self._is_encoder_decoder and any(map(_shifts_labels, asked.modules()))

    @property
    def options(self) -> dict[str, bool]:
        """Keyword arguments, besides the batch, with which the model that learns is called."""
        return {"output_hidden_states": True} if self.distillation.hidden_weight else {}

    def check(self, student: nn.Module, batch: Mapping[str, Any], *, tokenizer: Any = None) -> None:
        """Check that a model can learn from this one; nothing is changed.

        Args:
            student: The model, before it has lost anything.
            batch: Keyword arguments of both forward passes, on the student's device.
            tokenizer: The student's tokenizer, to compare with the one in the folder of the teacher, if it has one.

        Raises:
            InputError: It has other classes or outputs, is the same model, has another tokenizer, or does not run.
        """
        _check_tokenizer(self.model, tokenizer)
        self._move_to(next(student.parameters()).device)
        _check_fits(self.model, student, batch, distillation=self.distillation)

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs for a batch without gradients, on the device of the batch, to which the model moves once.

        Args:
            batch: Keyword arguments of the forward pass; targets are left out where outputs do not need them.
        """
        self._move_to(next(value.device for value in batch.values() if isinstance(value, Tensor)))
        if self.model.training:
            self.model.eval()
        needs_targets = self._is_encoder_decoder and "decoder_input_ids" not in batch
        inputs = {name: value for name, value in batch.items() if needs_targets or name not in _TARGETS}
        with torch.no_grad():
            outputs: Mapping[str, Any] = self.model(**inputs, **self.options)
        return outputs

    def loss(
        self,
        task_loss: Tensor,
        outputs: Mapping[str, Any],
        batch: Mapping[str, Any],
        *,
        model: nn.Module | None = None,
        answers: Mapping[str, Any] | None = None,
        factors: tuple[Tensor | float, Tensor | float] = (1.0, 1.0),
    ) -> Tensor:
        """Return the loss of a batch for the model that learns, a scalar.

        Args:
            task_loss: Loss of the task, a mean over the batch.
            outputs: Outputs of the model that learns, called with :attr:`options`.
            batch: The keyword arguments of its forward pass, targets included.
            model: The model that learns, if hidden states are compared and whole layers may have left it.
            answers: Outputs of this model for the batch, if they are known.
            factors: Of a batch that is a part of a step: its shares of the targets, such as tokens with a label, and of
                the examples, over which the distance of hidden states is averaged.

        Raises:
            InputError: The outputs have no hidden states, and these are compared.
        """
        if self.options and not any(outputs.get(name) for name in HIDDEN_STATES):
            raise InputError(
                f"hidden_weight={self.distillation.hidden_weight} compares hidden states, and the outputs of the model "
                "have none: call it with model(**batch, **teacher.options)."
            )
        answers = self(batch) if answers is None else answers
        ours, theirs = _kept_layers(model), _kept_layers(self.model)
        # Layers may have left both before the training.
        layers = {
            name: [theirs[name].index(number) for number in numbers if number in theirs[name]]
            if name in theirs
            else numbers
            for name, numbers in ours.items()
        }
        problem, labels = getattr(getattr(self.model, "config", None), "problem_type", None), self.labels(batch)
        options: dict[str, Any] = {"masks": batch, "layers": layers, "problem": problem, "factors": factors}
        return self.distillation.loss(task_loss, outputs, answers, labels, **options)

    def labels(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return the labels of a batch, each at the position of its logits; None without any.

        Of a decoder's labels, the first has no logits, and the last logits have no label: it becomes -100.
        """
        if "shift_labels" in batch:
            shifted: Tensor = batch["shift_labels"]
            return shifted
        labels: Tensor | None = batch.get("labels")
        if labels is None or not self._labels_follow:
            return labels
        return functional.pad(labels[..., 1:], (0, 1), value=IGNORED)

    def _move_to(self, device: torch.device) -> None:
        """Move the model to a device, unless it is there, or the model that learns is its own teacher."""
        weight = next(self.model.parameters(), None)
        if weight is not None and weight.device != device:
            self.model.to(device)


def _kept_layers(model: Any) -> dict[str, list[int]]:
    """Return the original numbers of the present layers of each list that layers have left, also through wrappers."""
    record = getattr(getattr(model, "config", None), RECORD_KEY, None) or {}
    return dict(record.get(LAYERS_KEY, {}).get("kept", {}))


def _shifts_labels(module: nn.Module) -> bool:
    """Return whether a model of transformers is taught by labels of the next position.

    Its name does not tell: ``GPT2LMHeadModel`` shifts labels as ``LlamaForCausalLM`` does, and ``BartForCausalLM`` and
    ``XLNetLMHeadModel`` do not. Those that do call ``loss_function`` or have a variable for them.
    """
    if not isinstance(module, PreTrainedModel):
        return False
    passes = [inspect.unwrap(vars(cls)["forward"]).__code__ for cls in type(module).__mro__ if "forward" in vars(cls)]
    if any("shift_labels" in one.co_varnames for one in passes):
        return True
    return any("loss_function" in one.co_names for one in passes) and module.loss_function is ForCausalLMLoss


def _check_tokenizer(teacher: nn.Module, tokenizer: Any) -> None:
    """Check that the tokenizer in the folder of a teacher, if there is one, has the vocabulary of the student's."""
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


def _check_fits(
    teacher: nn.Module, student: nn.Module, batch: Mapping[str, Any], *, distillation: Distillation
) -> None:
    """Check that a teacher has the student's classes and shapes of outputs, and none of its weights."""
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
        raise InputError(
            f"The teacher has the classes {_listed(theirs)}, this data has {_listed(ours)}. Fine-tune the teacher on "
            "this data first (in a command with objective=none), or let the run do it (distillation.teacher=null)."
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
    """Return the shapes of the outputs that are compared, by name; refuse a model without them."""
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
