"""``GatedTrainer``: transformers' Trainer with a search for heads, their removal, and a recovery."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from gating.compact.save import save_compact
from gating.embedding.processor import SentenceProcessor
from gating.errors import InputError, OperationError
from gating.gates import HeadGates, inject_gates
from gating.gates.attachment import freeze, unfreeze
from gating.integrations.checks import check_arguments, check_choice, check_frozen, check_place, check_trainer
from gating.integrations.descriptions import describe_object
from gating.integrations.gate_state import GateState, find_checkpoint
from gating.integrations.gated_checkpoints import GatedCheckpoints
from gating.integrations.removal import check_stock, report_of, save_compact_weights
from gating.integrations.search import RemovedWeights, TrainerSearchEnd, without_early_stopping
from gating.integrations.sentences import is_sentence_model
from gating.integrations.settings import search_settings, weight_digests
from gating.integrations.teaching import check_teaching, given_teacher
from gating.integrations.wrappers import adapter_config, base_model, merged, without_autocast
from gating.objectives import Objective
from gating.objectives.distillation import Distillation
from gating.objectives.search import Convergence, Search
from gating.pruning.finalize import FinalizeReport, finalize
from gating.pruning.prune_report import unproven_note
from gating.teachers.teacher import OpenTeacher, Teacher

__all__ = ["GatedTrainer", "GatedTrainerMixin"]


class GatedTrainerMixin(GatedCheckpoints):
    """Gates for transformers' Trainer and those made from it: ``class GatedSFT(GatedTrainerMixin, trl.SFTTrainer)``.

    The first ``train()`` is the search: weights and gates are trained together for ``1 - recovery`` of the steps that
    the training arguments give. Then :meth:`finalize` removes the closed units, and a second ``train()``, the recovery,
    trains the compact model for the other steps, with the same schedule of the learning rate.
    :meth:`train_and_compact` does all of it.

    Checkpoints have the state of the gates: ``train(resume_from_checkpoint=True)`` resumes either phase. The best model
    and early stopping are those of the recovery, the weights right after the removal among them: in the search, a model
    with more open heads would be better.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        recovery: float = 0.25,
        gate_lr: float | None = None,
        multiplier_lr: float = 0.1,
        gate_options: Mapping[str, Any] | None = None,
        convergence: Convergence | None = None,
        freeze_weights: bool | Literal["search"] = False,
        restart_schedule: bool = True,
        distillation: Distillation | None = None,
        teacher: nn.Module | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the trainer, and put gates on its model, in place.

        Args:
            args: Arguments of the trainer.
            objective: Objective that closes gates.
            recovery: Share of the steps that train the compact model after the removal; 0 for none.
            gate_lr: Constant learning rate of the gates; by default 0.1, and 0.2 with gates on neurons.
            multiplier_lr: Constant learning rate of the objective's multipliers, if it has any.
            gate_options: Arguments of :func:`gating.inject_gates`, such as ``{"units": ["heads", "neurons"]}``. Not for
                a model that has gates already.
            convergence: Criterion that ends the search early; None for a search of all its steps.
            freeze_weights: Whether the gates alone are trained, or gates and adapters: True for the whole training,
                which has no recovery without adapters; ``search`` for a recovery that trains the weights.
            restart_schedule: Whether the recovery begins the schedule of the learning rate again, warm-up included, for
                its own steps; otherwise, it has the end of that of the search.
            distillation: Loss with which the model also learns from a teacher, in search and recovery. With
                ``freeze_weights`` and without ``teacher``, the gates learn from the model with all of them open, in the
                search.
            teacher: A dense model that was fine-tuned for the same task, or its folder, or its name on the hub; it is
                in no checkpoint. With ``distillation=None``, its logits are learned, ``Distillation()``.
            kwargs: Keyword arguments of the trainer.

        Raises:
            FileNotFoundError: The folder of the teacher is missing.
            InputError: An argument, the model or the strategy of the training cannot be used with gates, or the model
                cannot learn from the teacher.
        """
        check_arguments(
            objective=objective,
            recovery=recovery,
            gate_lr=gate_lr,
            multiplier_lr=multiplier_lr,
            gate_options=gate_options or {},
            convergence=convergence,
            freeze_weights=freeze_weights,
            restart_schedule=restart_schedule,
            optimizers=kwargs.get("optimizers"),
        )
        given = given_teacher(distillation, teacher, is_frozen=bool(freeze_weights))
        self._own_lesson = distillation if given is None else None
        self._objective = objective
        self._recovery, self._convergence, self._freeze = recovery, convergence, freeze_weights
        self._restart = restart_schedule
        self._rates = {"gate_lr": gate_lr, "multiplier_lr": multiplier_lr}
        self._gate_options = dict(gate_options or {})
        self._report: FinalizeReport | None = None
        super().__init__(*args, **kwargs)
        has_adapters = adapter_config(self.model) is not None
        check_trainer(self, has_adapters=has_adapters)
        check_frozen(freeze_weights, recovery=recovery, has_adapters=has_adapters)
        if (lesson := distillation if given is None else given.distillation) is not None:
            check_teaching(self, lesson, teacher=given)
        self.teacher = given
        self._given_optimizer = self.optimizer
        self._begin_search(self.model)

    @property
    def gates(self) -> HeadGates:
        """The gates of the model.

        Raises:
            OperationError: They have been removed.
        """
        return self._present_search().gates

    def call_model_init(self, trial: Any = None) -> Any:
        """Make a new model with new gates, for a trainer with ``model_init``."""
        model = super().call_model_init(trial)
        if self.search is not None:
            self._begin_search(model)
        return model

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the search or, after :meth:`finalize`, the recovery.

        Args:
            resume_from_checkpoint: As in transformers' Trainer; a checkpoint of the recovery makes the model compact.
            args: Further arguments of the trainer's ``train``.
            kwargs: Further keyword arguments of the trainer's ``train``.

        Raises:
            OperationError: The search is complete, and :meth:`finalize` has not been called; or no step is left.
            FileNotFoundError: The checkpoint is of a trainer without gates.
            InputError: The checkpoint is of another model, or of a trainer with other settings that decide the result.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        self._read_settings()
        if checkpoint is None:
            if self.search is None:
                return self._recover(*args, **kwargs)
            if self.search.reason and self.model_init is None:
                raise OperationError("The search is complete: call finalize(), then train() for the recovery.")
            self._begin_training()
            with without_early_stopping(self):
                return super().train(None, *args, **kwargs)
        state = GateState.load(checkpoint)
        self._check_resumed(state, checkpoint)
        if state.is_end_of_search:
            return self._load_complete_search(checkpoint)
        with without_early_stopping(self) if state.record is None else nullcontext():
            return super().train(str(checkpoint), *args, **kwargs)

    def finalize(self, *, kept: Tensor | None = None, probe: Mapping[str, Tensor] | None = None) -> FinalizeReport:
        """Remove the gates and all units that the objective does not keep, and check that no output changes.

        Adapters are merged first; the recovery trains new ones with the same settings.

        Args:
            kept: Boolean mask of the gates to keep, ``[num_gates]``; by default the objective's choice.
            probe: Batch for the check, as keyword arguments of the model; by default made from its configuration.

        Returns:
            The kept units, and the largest difference between masked and compact outputs.

        Raises:
            OperationError: The search is not complete, or the units were removed already; processes choose different
                gates; masked and compact outputs differ.
        """
        search = self._present_search()
        if search.reason is None:
            done = f"{self.state.global_step} of {self._search_end.num_steps or 'its'} steps are done"
            raise OperationError(
                f"No heads are removed before the search is complete: {done}. Call train(), or "
                "train(resume_from_checkpoint=True) after an interruption."
            )
        kept = search.kept() if kept is None else kept
        check_choice(self.accelerator, search.gates, kept)
        self._check_weights()
        model = merged(without_autocast(self.model))
        search.gates.attach_again()
        with self._unfrozen():
            self._report = finalize(model, search.gates, kept=kept, probe=probe)
        if self._report.unproven and self.args.should_save:
            warnings.warn(f"{unproven_note(self._report.unproven)}.", stacklevel=2)
        if self._adapters is not None and self.args.should_save and self.args.save_strategy != "no":
            self._below = save_compact_weights(model, Path(self.args.output_dir))
        self._begin_recovery(model, search_steps=self._search_end.num_steps)
        return self._report

    def train_and_compact(
        self,
        output_dir: str | Path,
        *,
        resume_from_checkpoint: str | bool | None = None,
        overwrite: bool = False,
        stock: bool | None = None,
        probe: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Search, remove the closed units, recover, and save the compact model; return its folder.

        Args:
            output_dir: Folder of the compact model; checkpoints go to ``args.output_dir``.
            resume_from_checkpoint: As in :meth:`train`.
            overwrite: Whether what is in its place may be renamed.
            stock: Whether to write a model of plain transformers, as in :func:`gating.save_compact`.
            probe: Batch for the checks, as in :meth:`finalize`.

        Raises:
            FileExistsError: The folder is not empty and ``overwrite`` is false; nothing is trained.
            ValueError: The folder is or holds that of the checkpoints; or ``stock`` is true, and the objective lets
                layers differ, or the configuration of the model cannot describe fewer units; nothing is trained.
            OperationError: The training was stopped, other than by early stopping in the recovery; nothing is saved.
        """
        check_place(Path(output_dir), overwrite=overwrite, checkpoints=self.args.output_dir)
        if stock and self.search is not None:
            check_stock(base_model(self.model), self.search)
        self.train(resume_from_checkpoint)
        if self.search is not None:
            self.finalize(probe=probe)
            if self.state.global_step < self.state.max_steps:
                self.train()
        if stopped := self._stopped():
            raise OperationError(
                f"{stopped}, by a callback or because the data ended, so nothing is saved. Make the trainer again and "
                "call train_and_compact(..., resume_from_checkpoint=True), or save this model with save_compact()."
            )
        return self.save_compact(output_dir, overwrite=overwrite, stock=stock, probe=probe)

    def save_compact(self, output_dir: str | Path, **options: Any) -> Path:
        """Merge the adapters, if there are any, and save the compact model on rank 0; return its folder.

        Args:
            output_dir: Folder of the compact model.
            options: Keyword arguments of :func:`gating.save_compact`.

        Raises:
            OperationError: The closed units have not been removed.
        """
        if self.search is not None:
            raise OperationError("The model still has gates: call finalize() before it is saved as a compact model.")
        model = merged(without_autocast(self.model))
        self._use_model(model)
        if self.args.should_save:
            if stopped := self._stopped():
                warnings.warn(f"{stopped}: the model is saved as it is.", stacklevel=2)
            tokenizer = SentenceProcessor(self.model) if is_sentence_model(self.model) else self.processing_class
            options = {"tokenizer": tokenizer, "report": report_of(self._report), **options}
            save_compact(model, output_dir, **options)
        self.accelerator.wait_for_everyone()
        return Path(output_dir)

    def _begin_search(self, model: nn.Module) -> None:
        base = base_model(model)
        self._adapters = adapter_config(model)
        present: HeadGates | None = getattr(base, "head_gates", None)
        if present is not None and self._gate_options:
            raise InputError("gate_options are for a model without gates, and this one has gates: leave them out.")
        objective, convergence = self._objective, self._convergence
        if self.model_init is not None:
            # They have a state, and each model begins with new ones.
            objective, convergence = deepcopy((objective, convergence))
        # Before the gates, which scale the features of frozen weights; below adapters they are frozen already.
        self._frozen = freeze(model) if self._freeze and self._adapters is None else frozenset()
        gates = present
        try:
            gates = inject_gates(base, **self._gate_options) if present is None else present
            self.search = Search(gates, objective, convergence=convergence)
        except BaseException:
            if present is None and gates is not None:
                gates.remove()
            unfreeze(model, self._frozen)
            raise
        self._hook_passes(model)
        if self._own_lesson is not None:
            self.teacher = Teacher(OpenTeacher(base, gates), distillation=self._own_lesson)
        self._search_settings = {
            **search_settings(self.search, recovery=self._recovery, rates=self._rates, args=self.args),
            "restart_schedule": self._restart,
            "distillation": None if self.teacher is None else describe_object(self.teacher.distillation),
            # Without weights, it is the model.
            "teacher": None if self.teacher is None else weight_digests(dict(self.teacher.model.state_dict())),
        }
        self._search_end = TrainerSearchEnd(self.search, recovery=self._recovery)
        self.remove_callback(TrainerSearchEnd)
        self.add_callback(self._search_end)

    def _recover(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the compact model for the steps that are left, as a training that resumes at the removal."""
        if self.state.global_step >= self.state.max_steps:
            raise OperationError(
                f"This training is over: all {self.state.max_steps} steps are done. Make a new trainer to train again; "
                "save_compact() writes this model once more."
            )
        model_init, self.model_init = self.model_init, None
        if self.args.load_best_model_at_end:
            self.add_callback(RemovedWeights(self))
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._removal = folder
                self.state.save_to_json(str(Path(folder) / TRAINER_STATE_NAME))
                self._save_rng_state(folder)
                return super().train(folder, *args, **kwargs)
        finally:
            self._removal, self.model_init = None, model_init
            self.remove_callback(RemovedWeights)

    def _present_search(self) -> Search:
        if self.search is None:
            raise OperationError("The gates have been removed: the search of this trainer is over.")
        return self.search


class GatedTrainer(GatedTrainerMixin, Trainer):
    """transformers' Trainer with gates: search, removal of heads, and recovery.

    Example::

        trainer = GatedTrainer(
            model=model, args=args, train_dataset=train, objective=gating.ExactBudget(num_heads=18), recovery=0.25
        )
        trainer.train_and_compact("compact")
    """
