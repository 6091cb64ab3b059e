"""The phases of a trainer with gates: the steps of its search, its checkpoints, and the change to the recovery."""

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, SaveStrategy, TrainOutput

from gating.embedding.parts import SentenceProcessor
from gating.errors import InputError
from gating.gates.attachment import unfreeze
from gating.integrations.checkpoints import load_dense, load_start, read_state, recovery_args, write_state
from gating.integrations.teaching import is_added_up, taught_loss
from gating.integrations.wrappers import (
    base_model,
    is_sentence_model,
    load_other_weights,
    other_weights,
    own_names,
    use_model,
    with_new_adapters,
)
from gating.objectives.parameter_groups import gate_groups
from gating.objectives.search import Search
from gating.plan import Plan
from gating.teachers.distillation import Distillation
from gating.teachers.teacher import Teacher

# The class may be any that is made from transformers' Trainer.
_Base: Any = object
# Names in the log of the numbers of one layer, of which a model has dozens.
_OF_LAYER = re.compile(r"gates/\w+_\d+/")


class GatedPhases(_Base):  # type: ignore[misc]
    """Methods of a trainer that train gates beside the weights as long as it has a search, and begin the recovery."""

    search: Search | None = None  # None after the removal.
    _plan: Plan
    _objective: Any  # What is asked for; until units are ranked, the objective of the search keeps all.
    _whole_args: Any  # Arguments of all phases together.
    _own_distillation: Distillation | None = None  # Loss with which the recovery learns from the dense state.
    _total = 0  # Steps of all phases, where units are ranked.
    teacher: Teacher | None = None
    speedup: float | None = None
    _adapters: Any = None  # Configuration of PEFT's adapters.
    _recovery_steps = 0  # Steps of the recovery, once it has begun.
    _early_stopping: Sequence[EarlyStoppingCallback] = ()  # Callbacks that wait for the recovery.
    _frozen: frozenset[str] = frozenset()  # Names of the weights that the search freezes.
    args: Any  # This and the next four are attributes of transformers' Trainer.
    model: Any
    optimizer: Any
    lr_scheduler: Any
    model_init: Any

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer, with groups for gates and multipliers, before the scheduler counts its groups."""
        if self.search is None or self.optimizer is not None:
            return super().create_optimizer(*args, **kwargs)
        gates = self.search.gates
        # Otherwise the gates would be among the weights, with their rate and decay.
        gates.requires_grad_(False)
        try:
            optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        finally:
            gates.requires_grad_(not self._plan.ranks)
        if self._plan.ranks:
            return optimizer
        groups = gate_groups(gates, self.search.objective, **self._rates)
        if len(groups) > 1 and "maximize" not in optimizer.defaults:
            self.optimizer = None
            raise InputError(
                f"{type(self.search.objective).__name__} trains multipliers, and {type(optimizer).__name__} has no "
                "option maximize: choose an optimizer of torch, such as args.optim='adamw_torch'."
            )
        for group in groups:
            optimizer.add_param_group(group)
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of a step and the number of their targets; count their examples in this process."""
        # Trainers leave the gradients of gates, and older ones those of losses.
        self.optimizer.zero_grad()
        batches, number = super().get_batch_samples(*args, **kwargs)
        self.examples_of_step = sum(find_batch_size(batch) or 1 for batch in batches)
        return batches, number

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Follow the objective's schedule, and train on a batch; return its loss, a scalar."""
        if self.search is not None:
            self.search.update(self.state.global_step / self._search_end.num_steps)
        return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, a scalar; in training, with that of a teacher and the penalty on open gates."""
        options = {"num_items_in_batch": num_items_in_batch}
        if not model.training or (self.teacher is None and self.search is None):
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **options)
        if self.teacher is not None:
            loss, outputs = taught_loss(self, super().compute_loss, model, inputs, **options)
        else:
            found = super().compute_loss(model, inputs, return_outputs=return_outputs, **options)
            loss, outputs = found if return_outputs else (found, None)
        if self.search is not None:
            num_parts = self.current_gradient_accumulation_steps if is_added_up(self, num_items_in_batch) else 1
            loss = self.search.add_penalty(loss, num_parts=num_parts)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log numbers of the training; in the search, also the state of the gates."""
        if self.search is not None and "loss" in logs:
            found = self.search.metrics()
            logs = {**logs, **{name: value for name, value in found.items() if not _OF_LAYER.match(name)}}
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers' Trainer does, and in a checkpoint also the state of the gates."""
        with own_names(self.model) if _internal_call else nullcontext():
            super().save_model(output_dir, _internal_call)
        if self.args.should_save and _internal_call:
            state: dict[str, Any] = {"others": other_weights(self.model, self._losses)}
            if self.search is not None:
                measured = getattr(self._objective, "measured", None)
                state |= {"search_steps": self._search_end.num_steps, "search": self.search.state_dict()}
                state["measured"] = measured
            write_state(Path(output_dir or self.args.output_dir), state)
        elif self.args.should_save and self.search is not None:
            warnings.warn("The saved model still has gates: call finalize() first for a compact one.", stacklevel=2)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        base, state = base_model(self.model), read_state(Path(resume_from_checkpoint))
        load_other_weights(self.model, self._losses, state["others"])
        if is_sentence_model(self.model):
            # That of sentence-transformers makes the whole model again, which would have all heads and no gates.
            Trainer._load_from_checkpoint(self, resume_from_checkpoint, base)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.search is not None:
            self.search.load_state_dict(state["search"])
            if self._plan.ranks and state["measured"]:
                self._objective.take_measured(state["measured"])
            self._search_end.num_steps = state["search_steps"]

    def _load_complete(self, checkpoint: Path) -> TrainOutput:
        """Load the end of a phase; the trainer would take a step more before it stops."""
        self._load_from_checkpoint(str(checkpoint))
        self._load_rng_state(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        return TrainOutput(self.state.global_step, 0.0, {})

    def _load_best_model(self) -> None:
        # In a search, a model with more open heads would be better.
        if self.search is None:
            super()._load_best_model()

    def _begin_recovery(
        self, compact: PreTrainedModel, state: Mapping[str, Any], *, dense: nn.Module | None = None
    ) -> None:
        """Make this an ordinary trainer of a compact model, in a folder of its own and for the steps that are left."""
        self.search = self.optimizer = self.lr_scheduler = None
        self.speedup, self._recovery_steps = state["speedup"], state["total"] - state["search_steps"]
        if self.teacher is not None and self.teacher.is_student:
            self.teacher = None  # The compact model is another one.
        if dense is not None and self._own_distillation is not None:
            self.teacher = Teacher(dense, distillation=self._own_distillation)
        self.remove_callback(self._search_end)
        for callback in self._early_stopping:
            self.add_callback(callback)
        self._use_model(compact)
        if not self._recovery_steps:
            return
        self.args = recovery_args(self._whole_args, steps=self._recovery_steps, total=state["total"])
        if self.args.load_best_model_at_end:
            self.add_callback(RemovedFirst(self))
        if self._adapters is not None:
            set_seed(self.args.seed)
            self._use_model(with_new_adapters(compact, self._adapters))

    def _resume_recovery(self, folder: Path) -> None:
        """Make the model of this trainer the one that a recovery in a folder began with."""
        assert self.search is not None
        unfreeze(self.model, self._frozen)
        dense = None
        if self._own_distillation is not None:
            with self.search.gates.detached():
                dense = load_dense(folder, deepcopy(self.model))
        compact, state = load_start(folder, self.model, self.search.gates)
        load_other_weights(self.model, self._losses, state["others"])
        self._begin_recovery(compact, state, dense=dense)

    @property
    def _losses(self) -> dict[str, nn.Module]:
        """Losses of a trainer of sentence-transformers: the data sets of one trainer may have one each."""
        loss = getattr(self, "loss", None)
        return loss if isinstance(loss, dict) else {} if loss is None else {"": loss}

    @property
    def _saved_beside(self) -> Any:
        """Tokenizer or processor of the compact model, or the other modules of a model of sentence-transformers."""
        return SentenceProcessor(self.model) if is_sentence_model(self.model) else self.processing_class

    def _use_model(self, model: nn.Module) -> None:
        """Go on with a model; with that of sentence-transformers around it, in which it was changed in place."""
        if is_sentence_model(self.model):
            model = self.model
            use_model(self._losses, model)
        self.model = self.model_wrapped = self.callback_handler.model = model


class TrainerSearchEnd(TrainerCallback):
    """Callback that ends the training after the steps of the search, with a last log, evaluation and checkpoint."""

    def __init__(self, search: Search, *, recovery: float) -> None:
        """Args: ``search`` is the search to end, ``recovery`` the share of the training's steps after it."""
        self._search, self._recovery, self.num_steps = search, recovery, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the length of the search; one that was stopped, or ran out of memory, begins anew unless resumed."""
        if state.global_step:
            return  # The number is that of the checkpoint.
        if self.num_steps:
            self._search.begin()
        self.num_steps = max(1, round((1 - self._recovery) * state.max_steps))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the rates of gates and multipliers."""
        for group in kwargs["optimizer"].param_groups:
            if group.get("name") in ("gates", "multipliers"):
                group["lr"] = group.setdefault("initial_lr", group["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the training after the last step of the search, or at a logged step if the gates have converged."""
        if self._search.check_end(state.global_step, self.num_steps, is_due=control.should_log) is not None:
            self.num_steps = state.global_step
            control.should_training_stop = control.should_log = True
            # With strategies by epoch, the end of a training is the end of an epoch, with its own.
            control.should_evaluate = control.should_evaluate or args.eval_strategy == IntervalStrategy.STEPS
            control.should_save = control.should_save or args.save_strategy == SaveStrategy.STEPS


class RemovedFirst(TrainerCallback):
    """Callback that evaluates the removed model before the recovery, and saves it as the best one so far."""

    def __init__(self, trainer: Any) -> None:
        """Args: ``trainer`` begins a recovery with ``load_best_model_at_end``."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write ``checkpoint-0``, unless the recovery is resumed."""
        if state.best_metric is None:
            self._trainer._determine_best_metric(self._trainer._evaluate(None, None, skip_scheduler=True), trial=None)
            state.best_model_checkpoint = str(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-0")
            self._trainer._save_checkpoint(self._trainer.model, trial=None)


def check_trainer(trainer: Trainer, *, has_adapters: bool) -> None:
    """Raise ``InputError`` for a trainer whose search and recovery would train another model than it is asked for."""
    # TRL makes no reference of its own for a model with adapters. This one would have gates, and lose its heads.
    has_reference = getattr(trainer, "ref_model", trainer) is not None or getattr(trainer, "beta", None) == 0
    problems: dict[str, Any] = {
        "optimizers= has no learning rate for gates, and parameters that will be gone: give args.optim, or "
        "optimizer_cls_and_kwargs=(cls, options).": trainer.optimizer or trainer.lr_scheduler,
        "Heads are removed from whole weights, which FSDP and DeepSpeed shard: use DDP, or train.py trainer=fsdp.": (
            trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        ),
        "nn.DataParallel loses the gates: use torchrun, or one GPU by CUDA_VISIBLE_DEVICES.": trainer.args.n_gpu > 1,
        f"{type(trainer).__name__} would take the model itself as the reference, which loses its heads: give "
        "ref_model=..., a copy of the model before the training.": has_adapters and not has_reference,
    }
    for problem, is_present in problems.items():
        if is_present:
            raise InputError(problem)
