"""``GatedTrainer``: transformers' Trainer with a search for heads, their removal, and a recovery."""

import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from gating.compact.save import save_compact
from gating.compensation.compensate import compensate
from gating.errors import OperationError
from gating.gates import HeadGates, inject_gates
from gating.gates.attachment import freeze, unfreeze
from gating.integrations.budgets import check_budget, kept_at_speedup, measured_budget
from gating.integrations.checkpoints import find_checkpoint, read_state, save_start, set_aside
from gating.integrations.phases import GatedPhases, TrainerSearchEnd, check_trainer
from gating.integrations.ranked import (
    GROUP_SIZE,
    dense_args,
    own_distillation,
    plan_of,
    ranked_search,
    solved_batches,
    total_steps,
)
from gating.integrations.teaching import teacher_for
from gating.integrations.wrappers import adapter_config, base_model, hook_passes, merged, other_weights
from gating.loader.saving import has_lost_units
from gating.objectives import ExactBudget, IterativePruning, KeepsBudget, Magnitude, Objective
from gating.objectives.search import Convergence, Search
from gating.pruning.finalize import FinalizeReport, finalize
from gating.pruning.prune_report import unproven_note
from gating.storage.files import check_free
from gating.structure.layers import count_units
from gating.teachers.distillation import Distillation
from gating.teachers.teacher import OpenTeacher, Teacher


class GatedTrainerMixin(GatedPhases):
    """Gates for transformers' Trainer and those made from it: ``class GatedSFT(GatedTrainerMixin, trl.SFTTrainer)``.

    The first ``train()`` is the search: weights and gates are trained together for ``1 - recovery`` of the steps that
    the training arguments give. Then :meth:`finalize` removes the closed units. A second ``train()``, the recovery,
    trains the compact model for the other steps, in ``output_dir/recovery``, as an ordinary trainer: the best model
    and early stopping are those of the recovery. :meth:`train_and_compact` does all of it.

    Attributes:
        speedup: Time of the dense model over that of the compact one, measured by :meth:`finalize` with ``speedup=``.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective | None = None,
        speedup: float | None = None,
        keep: float | None = None,
        num_heads: int | None = None,
        fine_tuning: float | None = None,
        recovery: float | None = None,
        gate_lr: float | None = None,
        multiplier_lr: float = 0.1,
        gate_options: Mapping[str, Any] | None = None,
        convergence: Convergence | None = None,
        freeze_weights: bool = False,
        distillation: Distillation | None = None,
        teacher: nn.Module | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the trainer, and put gates on its model, in place.

        Args:
            args: Arguments of the trainer.
            objective: Objective that closes gates; or give one of the three next budgets.
            speedup: Time of the dense model over that of the compact one, measured here; neurons have gates, too.
            keep: Share of the gated units that stays.
            num_heads: Number of heads that stay.
            fine_tuning: Share of the steps that train the dense model, whose units are then ranked instead of searched
                for; by default 0.67 with gates on heads and neurons, and 0 with another objective, loss or trainer for
                which a ranking cannot stand, or with frozen weights.
            recovery: Share of the steps after the removal; by default the rest after the fine-tuning, else 0.25, and 0
                with gates on heads alone, unless the search freezes the weights, or the best model or early stopping is
                asked for.
            gate_lr: Constant learning rate of the gates; by default 0.1, and 0.2 with gates on neurons.
            multiplier_lr: Constant learning rate of the objective's multipliers, if it has any.
            gate_options: Arguments of :func:`gating.inject_gates`, such as ``{"units": ["heads", "neurons"]}``.
            convergence: Criterion that ends the search early; None for a search of all its steps.
            freeze_weights: Whether the search trains the gates alone, or gates and adapters.
            distillation: Loss with which the model also learns from a teacher, by default ``Distillation()``. Without
                ``teacher`` it is the dense state of the model, in the recovery; with ``freeze_weights`` the model with
                all gates open, in the search.
            teacher: A dense model that was fine-tuned for the same task, or its folder, or its name on the hub.
            kwargs: Keyword arguments of the trainer.

        Raises:
            FileNotFoundError: The folder of the teacher is missing.
            InputError: An argument, the model, the teacher or the strategy of the training cannot be used with gates.
        """
        check_budget(objective=objective, speedup=speedup, keep=keep, num_heads=num_heads)
        self._rates = {"gate_lr": gate_lr, "multiplier_lr": multiplier_lr}
        self._wanted_speedup, options = speedup, dict(gate_options or {})
        if speedup is not None:
            options.setdefault("units", ["heads", "neurons"])
        super().__init__(*args, **kwargs)
        self.model_init = None  # Only the model that it has made has gates.
        self._adapters = adapter_config(self.model)
        stops = any(isinstance(callback, EarlyStoppingCallback) for callback in self.callback_handler.callbacks)
        check_trainer(self, has_adapters=self._adapters is not None)
        is_alone = distillation is not None and teacher is None and not freeze_weights
        self._plan = plan_of(
            self,
            objective,
            units=options.get("units", "heads"),
            fine_tuning=fine_tuning,
            recovery=recovery,
            learns_from_itself=is_alone,
            is_frozen=freeze_weights,
            is_needed=freeze_weights or self.args.load_best_model_at_end or stops,
        )
        self.teacher = teacher_for(
            self, teacher, distillation, is_frozen=freeze_weights, learns_from_itself=self._plan.ranks
        )
        if self._plan.ranks:
            options = {"group_size": GROUP_SIZE, **options}
            self._own_distillation = None if teacher is not None else distillation or own_distillation(self.model)
        if speedup is not None:
            objective = measured_budget(self, speedup, options)
        elif objective is None:
            objective = ExactBudget(keep=keep, num_heads=num_heads)
        self._objective = objective
        self.search = self._search_with(objective, convergence, is_frozen=freeze_weights, gate_options=options)
        hook_passes(self._losses, self.model, self.gates)
        if distillation is not None and self.teacher is None and freeze_weights:
            self.teacher = Teacher(OpenTeacher(base_model(self.model), self.gates), distillation=distillation)
        self._whole_args = self.args
        if self._plan.ranks:
            self._total = total_steps(self)
            self.args = dense_args(self.args, steps=self._plan.steps(self._total)[0], total=self._total)
        self._search_end = TrainerSearchEnd(self.search, recovery=0.0 if self._plan.ranks else self._plan.recovery)
        self.add_callback(self._search_end)

    @property
    def gates(self) -> HeadGates:
        """The gates of the model; raises ``OperationError`` after they have been removed."""
        if self.search is None:
            raise OperationError("The gates have been removed: the search of this trainer is over.")
        return self.search.gates

    def print_trainable_units(self) -> None:
        """Print how many heads and neurons have gates, of how many, as PEFT prints trainable parameters."""
        model = base_model(self.model)
        for unit in self.gates.units:
            gated, total = sum(self.gates.counts[unit]), count_units(model, unit)
            print(f"gated {unit}: {gated:,} || all {unit}: {total:,} || gated%: {100 * gated / total:.4f}")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the search or, after :meth:`finalize`, the recovery.

        Args:
            resume_from_checkpoint: As in transformers' Trainer. Where a recovery has begun, True resumes it.
            args: Further arguments of the trainer's ``train``.
            kwargs: Further keyword arguments.

        Raises:
            OperationError: The search is complete, and :meth:`finalize` has not been called; or no step is left.
            FileNotFoundError: There is no checkpoint, or it is of a trainer without gates.
            InputError: The checkpoint has no optimizer, or is of another model.
        """
        place = Path(self.args.output_dir)
        recovery, checkpoint = find_checkpoint(resume_from_checkpoint, place.parent if self._recovery_steps else place)
        if self.search is not None and recovery is not None:
            self._resume_recovery(recovery)
        if self.search is None:
            return self._recover(checkpoint, *args, **kwargs)
        if checkpoint is not None:
            if read_state(checkpoint)["search"]["reason"] is not None:
                return self._load_complete(checkpoint)
        elif not self._plan.fine_tuning and self._plan.ranks:
            self.search.reason = "the model is ranked as it is"
            return TrainOutput(0, 0.0, {})
        elif self.search.reason:
            raise OperationError("The search is complete: call finalize(), then train() for the recovery.")
        else:
            if self.args.should_save:
                set_aside(place)
            self.accelerator.wait_for_everyone()
        # In a search, the score falls as heads close.
        while callback := self.pop_callback(EarlyStoppingCallback):
            self._early_stopping = [*self._early_stopping, callback]
        return super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)

    def finalize(self, *, kept: Tensor | None = None, probe: Mapping[str, Tensor] | None = None) -> FinalizeReport:
        """Remove the gates and all units that the objective does not keep, and check that no output changes.

        Adapters are merged first; the recovery trains new ones with the same settings.

        Args:
            kept: Boolean mask of the gates to keep, ``[num_gates]``; by default the objective's choice.
            probe: Batch for the check, as keyword arguments of the model; by default made from its configuration.

        Raises:
            OperationError: The search is not complete, or the gates were removed; masked and compact outputs differ.
        """
        gates, search = self.gates, self.search
        assert search is not None
        if search.reason is None:
            done = f"{self.state.global_step} of {self._search_end.num_steps or 'its'} steps are done"
            raise OperationError(f"No heads are removed before the search is complete: {done}. Call train().")
        if self._plan.ranks:
            self.search = search = self._rank()
        chosen = search.kept() if kept is None else kept
        model = merged(self.model)
        if kept is None and self._wanted_speedup is not None:
            chosen, self.speedup = kept_at_speedup(self, model, gates, self._wanted_speedup)
            self.log({"speedup": self.speedup})
        # Weights have their names in the dense model until layers leave it.
        unfreeze(self.model, self._frozen)
        try:
            (chosen,) = broadcast_object_list([None if chosen is None else chosen.cpu()])
            dense = self._dense(model, gates)
            with gates.fixed_at(chosen.float()) if dense is not None and chosen is not None else nullcontext():
                report = finalize(model, gates, kept=chosen, probe=probe)
        except BaseException:
            if self._frozen:
                freeze(self.model)
            raise
        if report.unproven and self.args.should_save:
            warnings.warn(f"{unproven_note(report.unproven)}.", stacklevel=2)
        steps, total = self._search_end.num_steps, self._total or self.state.max_steps
        if dense is not None and has_lost_units(model):
            print(compensate(model, dense, solved_batches(self, has_recovery=steps < total)))
        state: dict[str, Any] = {"search_steps": steps, "total": total, "speedup": self.speedup}
        if steps < total and self.args.save_strategy != "no":
            if self.args.should_save:
                state["others"] = other_weights(self.model, self._losses)
                save_start(Path(self.args.output_dir), model, state, tokenizer=self._saved_beside, dense=dense)
            self.accelerator.wait_for_everyone()
        self._begin_recovery(model, state, dense=dense)
        return report

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
            overwrite: Whether an earlier folder may be renamed.
            stock: Whether to write a model of plain transformers, as in :func:`gating.save_compact`.
            probe: Batch for the checks, as in :meth:`finalize`.

        Raises:
            FileExistsError: The folder is not empty and ``overwrite`` is false; nothing is trained.
            ValueError: ``stock`` is true, and layers differ, or the configuration cannot describe fewer units.
            OperationError: The training was stopped, other than by early stopping in the recovery; nothing is saved.
        """
        check_free(Path(output_dir), overwrite=overwrite, setting="output_dir")
        self.train(resume_from_checkpoint)
        if self.search is not None:
            self.finalize(probe=probe)
            if self._recovery_steps:
                self.train()
        step, last = self.state.global_step, self.state.max_steps
        is_early = any(
            one.early_stopping_patience_counter >= one.early_stopping_patience
            for one in self.callback_handler.callbacks
            if isinstance(one, EarlyStoppingCallback)
        )
        if self._recovery_steps and step < last and not is_early:
            raise OperationError(
                f"The recovery was stopped after {step} of {last} steps, nothing is saved: make the trainer anew and "
                "resume, or call save_compact()."
            )
        return self.save_compact(output_dir, overwrite=overwrite, stock=stock, probe=probe)

    def save_compact(self, output_dir: str | Path, **options: Any) -> Path:
        """Save the model of :meth:`compact` on rank 0 by :func:`gating.save_compact`; return its folder."""
        model = base_model(self.compact())
        if self.args.should_save:
            save_compact(model, output_dir, **{"tokenizer": self._saved_beside, **options})
        self.accelerator.wait_for_everyone()
        return Path(output_dir)

    def compact(self) -> nn.Module:
        """Return the compact model in evaluation mode, its adapters merged; ``OperationError`` before the removal."""
        if self.search is not None:
            raise OperationError("The model still has gates: call finalize() before it is saved as a compact model.")
        self._use_model(merged(self.model))
        return self.model.eval()

    def _search_with(
        self, objective: Objective, convergence: Convergence | None, *, is_frozen: bool, gate_options: Mapping[str, Any]
    ) -> Search:
        """Put gates on the model, and return the search; after an error the model is as before."""
        # Before the gates, which scale the features of frozen weights; below adapters they are frozen already.
        self._frozen = freeze(self.model) if is_frozen and self._adapters is None else frozenset()
        gates = None
        try:
            gates = inject_gates(base_model(self.model), **gate_options)
            if self._plan.ranks:
                # All of them are open, without noise, until they are ranked.
                objective.check(gates)
                return Search(gates, IterativePruning(Magnitude(), keep=1.0))
            return Search(gates, objective, convergence=convergence)
        except BaseException:
            if gates is not None:
                gates.remove()
            unfreeze(self.model, self._frozen)
            raise

    def _rank(self) -> Search:
        """Return the search that chooses by a ranking of the fine-tuned model."""
        assert isinstance(self._objective, KeepsBudget)
        has_labels = self.teacher is None or self.teacher.distillation.weight < 1
        return ranked_search(self, self.gates, self._objective, has_labels=has_labels)

    def _dense(self, model: nn.Module, gates: HeadGates) -> nn.Module | None:
        """Return a copy of the fine-tuned model without gates, which the compact one follows; None after a search."""
        if not self._plan.ranks:
            return None
        gates.attach_again()
        with gates.detached() as plain:
            return deepcopy(plain)

    def _recover(self, checkpoint: Path | None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the compact model as any other trainer does."""
        if not self._recovery_steps:
            raise OperationError("No step is left: with recovery=0, all steps are the search.")
        # The order of the data and dropout do not depend on what this process did before.
        set_seed(self.args.seed)
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            if state.global_step >= state.max_steps:
                return self._load_complete(checkpoint)
        return super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)


class GatedTrainer(GatedTrainerMixin, Trainer):
    """transformers' Trainer with gates: search, removal of heads, and recovery."""
