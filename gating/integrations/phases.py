"""Checkpoints of a trainer with gates, and the change from the search to an ordinary training of the compact model."""

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from gating.embedding.processor import SentenceProcessor
from gating.gates.attachment import unfreeze
from gating.integrations.checkpoints import load_start, read_state, recovery_args, save_start, write_state
from gating.integrations.sentences import hook_passes, is_sentence_model, load_other_weights, other_weights, use_model
from gating.integrations.steps import GatedSteps
from gating.integrations.wrappers import (
    base_model,
    has_own_adapters,
    load_own_adapters,
    with_new_adapters,
    without_autocast,
)
from gating.pruning.finalize import FinalizeReport
from gating.pruning.prune_report import unproven_note
from gating.report.rows import CompactReport, size_rows
from gating.structure.hooks import Handle
from gating.teachers.teacher import OpenTeacher

__all__ = ["GatedPhases"]


class _RemovedFirst(TrainerCallback):
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


class GatedPhases(GatedSteps):
    """Methods of a trainer that save and load the state of gates, and begin the recovery."""

    # Configuration of the adapters of PEFT; None without them.
    _adapters: Any = None
    # The user has given the optimizer.
    _given_optimizer: torch.optim.Optimizer | None = None
    _report: FinalizeReport | None = None
    speedup: float | None = None
    # Steps of the recovery, once it has begun.
    _recovery_steps = 0
    # Names of the weights that are frozen in the search.
    _frozen: frozenset[str] = frozenset()
    # Hooks of losses or modules of sentence-transformers that begin a pass of the gates.
    _pass_handles: Sequence[Handle] = ()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers' Trainer does, and in a checkpoint also the state of the gates."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and _internal_call:
            state: dict[str, Any] = {"others": other_weights(self.model, self._losses)}
            if self.search is not None:
                state |= {"search_steps": self._search_end.num_steps, "search": self.search.state_dict()}
            write_state(Path(output_dir or self.args.output_dir), state)
        elif self.args.should_save and self.search is not None:
            warnings.warn("The saved model still has gates: call finalize() first for a compact one.", stacklevel=2)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        base, state = base_model(self.model), read_state(Path(resume_from_checkpoint))
        load_other_weights(self.model, self._losses, state["others"])
        if has_own_adapters(base):
            load_own_adapters(base, Path(resume_from_checkpoint))
        elif is_sentence_model(self.model):
            # That of sentence-transformers makes the whole model again, which would have all heads and no gates.
            Trainer._load_from_checkpoint(self, resume_from_checkpoint, base)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.search is not None:
            self.search.load_state_dict(state["search"])
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

    def _begin_recovery(self, compact: PreTrainedModel, *, search_steps: int, total: int, is_new: bool) -> None:
        """Make this an ordinary trainer of a compact model, in a folder of its own and for the steps that are left.

        A new recovery is saved, for a process that resumes it.
        """
        self.search, like = None, self.model
        self._recovery_steps = total - search_steps
        if self.teacher is not None and isinstance(self.teacher.model, OpenTeacher):
            self.teacher = None  # The compact model is another one.
        self._hook_passes(compact)
        self.remove_callback(self._search_end)
        self._use_model(compact)
        # A user's optimizer has parameters that are gone, and a function would make a model with all heads.
        if self._given_optimizer is not None:
            self.optimizer_cls_and_kwargs = _remake_options(self._given_optimizer)
        self.optimizer = self.lr_scheduler = self.model_init = None
        if not self._recovery_steps:
            return
        self.args = recovery_args(self.args, steps=self._recovery_steps, total=total)
        if self.args.load_best_model_at_end:
            self.add_callback(_RemovedFirst(self))
        if is_new and self.args.save_strategy != "no":
            if self.args.should_save:
                others = other_weights(self.model, self._losses)
                state = {"search_steps": search_steps, "total": total, "speedup": self.speedup, "others": others}
                save_start(Path(self.args.output_dir), compact, state, **self._save_options())
            self.accelerator.wait_for_everyone()
        if self._adapters is not None:
            set_seed(self.args.seed)
            self._use_model(with_new_adapters(compact, self._adapters, like=like))

    def _resume_recovery(self, folder: Path) -> None:
        """Make the model of this trainer the one that a recovery in a folder began with."""
        assert self.search is not None
        unfreeze(self.model, self._frozen)
        compact, state = load_start(folder, without_autocast(self.model), self.search.gates)
        load_other_weights(self.model, self._losses, state["others"])
        self.speedup = state["speedup"]
        self._begin_recovery(compact, search_steps=state["search_steps"], total=state["total"], is_new=False)

    def _hook_passes(self, model: nn.Module) -> None:
        """Hook the passes of the search's gates in a model of sentence-transformers; after the search, none."""
        for handle in self._pass_handles:
            handle.remove()
        self._pass_handles = ()
        if self.search is not None and is_sentence_model(model):
            self._pass_handles = hook_passes(self._losses, model, self.search.gates.pass_values)

    @property
    def _losses(self) -> dict[str, nn.Module]:
        """Losses of a trainer of sentence-transformers: the data sets of one trainer may have one each."""
        loss = getattr(self, "loss", None)
        return loss if isinstance(loss, dict) else {} if loss is None else {"": loss}

    def _save_options(self) -> dict[str, Any]:
        """Return what is saved beside a compact model: tokenizer, and sizes for the card if it was removed here."""
        done = self._report
        options: dict[str, Any] = {
            "tokenizer": SentenceProcessor(self.model) if is_sentence_model(self.model) else self.processing_class
        }
        if done is not None:
            sizes = {unit: (number, done.after.units[unit]) for unit, number in done.before.units.items()}
            rows = size_rows({**sizes, "parameters": (done.num_parameters_before, done.num_parameters)}, {})
            note = unproven_note(done.unproven)
            options["report"] = CompactReport(rows=rows, notes=[f"{note}."] if note else [])
        return options

    def _use_model(self, model: nn.Module) -> None:
        """Go on with a model; with that of sentence-transformers around it, in which it was changed in place."""
        if is_sentence_model(self.model):
            model = self.model
            use_model(self._losses, model)
        self.model = self.model_wrapped = self.callback_handler.model = model


def _remake_options(optimizer: torch.optim.Optimizer) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return class and arguments of an optimizer, to make one like it for other parameters."""
    accepted = inspect.signature(type(optimizer)).parameters
    return type(optimizer), {name: value for name, value in optimizer.defaults.items() if name in accepted}
