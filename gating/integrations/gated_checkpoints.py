"""Checkpoints of transformers' Trainer with the state of the gates, and the change from the search to the recovery."""

import inspect
import logging
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from gating.errors import InputError, OperationError
from gating.gates.attachment import freeze, unfreeze
from gating.integrations.descriptions import describe_object
from gating.integrations.gate_state import GateState
from gating.integrations.gated_steps import GatedSteps
from gating.integrations.removal import check_compact_weights, repeat_removal
from gating.integrations.search import ended_by_score
from gating.integrations.sentences import hook_passes, is_sentence_model, load_other_weights, other_weights, use_model
from gating.integrations.settings import phase_settings, training_settings
from gating.integrations.wrappers import (
    base_model,
    has_own_adapters,
    load_own_adapters,
    with_new_adapters,
    without_autocast,
)
from gating.loader.checksums import RECORD_KEY
from gating.storage.same_settings import check_same_settings
from gating.structure.hooks import Handle
from gating.teachers.teacher import OpenTeacher

__all__ = ["GatedCheckpoints"]

_log = logging.getLogger(__name__)


class GatedCheckpoints(GatedSteps):
    """Methods of a trainer that save and load the state of gates, and of models that have lost units."""

    # Configuration of the adapters of PEFT; None without them.
    _adapters: Any = None
    # The user has given the optimizer.
    _given_optimizer: torch.optim.Optimizer | None = None
    # Settings that decide the result: those of the search, those that its first step may change, and all of them.
    _search_settings: Mapping[str, Any]
    _first_settings: Mapping[str, Any] | None = None
    _settings: Mapping[str, Any]
    # Identity of the training, and digest of the weights below the adapters of its recovery.
    _training = ""
    _below: str | None = None
    # Checkpoint without weights at which the recovery begins in this process.
    _removal: str | None = None
    # Names of the weights that are frozen in the search.
    _frozen: frozenset[str] = frozenset()
    # Hooks of losses or modules of sentence-transformers that begin a pass of the gates.
    _pass_handles: Sequence[Handle] = ()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers' Trainer does, and in a checkpoint also the state of the gates."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and self.args.should_save:
            self._gate_state().save(Path(output_dir or self.args.output_dir))
        elif self.search is not None and self.args.should_save:
            warnings.warn("The saved model still has gates: call finalize() first for a compact one.", stacklevel=2)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if resume_from_checkpoint == self._removal:
            return  # The model is as it was removed from.
        state = GateState.load(Path(resume_from_checkpoint))
        self._training, self._below = state.training, state.below
        if state.record is not None and self.search is not None:
            with self._unfrozen():
                compact = repeat_removal(
                    without_autocast(self.model),
                    self.search.gates,
                    state.record,
                    adapters=self._adapters,
                    folder=Path(resume_from_checkpoint).parent,
                    digest=state.below,
                )
            self._begin_recovery(compact, search_steps=state.search_steps)
        self._load_weights(state, resume_from_checkpoint, model)
        if self.search is not None:
            self.search.load_state_dict(state.search)
            self._search_end.num_steps = state.search_steps

    def _load_weights(self, state: GateState, checkpoint: str, model: nn.Module | None) -> None:
        base, is_sentences = base_model(self.model), is_sentence_model(self.model)
        if is_sentences:
            load_other_weights(self.model, self._losses, state.others)
        if has_own_adapters(base):
            load_own_adapters(base, Path(checkpoint))
        elif is_sentences:
            # That of sentence-transformers makes the whole model again, which would have all heads and no gates.
            Trainer._load_from_checkpoint(self, checkpoint, base)
        else:
            super()._load_from_checkpoint(checkpoint, model)

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

    def _load_complete_search(self, checkpoint: Path) -> TrainOutput:
        """Load the end of a search; the trainer would take a step more before it stops."""
        self._load_from_checkpoint(str(checkpoint))
        self._load_rng_state(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        return TrainOutput(self.state.global_step, 0.0, {})

    def _load_best_model(self) -> None:
        if self.search is None:
            super()._load_best_model()

    def _gate_state(self) -> GateState:
        search = self.search
        return GateState(
            search_steps=self._first_step if search is None else self._search_end.num_steps,
            search={} if search is None else search.state_dict(),
            record=getattr(base_model(self.model).config, RECORD_KEY) if search is None else None,
            settings=dict(self._settings),
            training=self._training,
            below=self._below,
            others=other_weights(self.model, self._losses) if is_sentence_model(self.model) else {},
        )

    def _read_settings(self) -> None:
        """Read all settings that decide the result, as they are before a phase."""
        if self._first_settings is None:
            # A training changes its model, and a function may change what it was made with.
            self._first_settings = training_settings(self, has_adapters=self._adapters is not None, losses=self._losses)
        self._settings = {
            **self._search_settings,
            **phase_settings(self, adapters=self._adapters, optimizer=self._given_optimizer),
            **self._first_settings,
        }

    def _begin_training(self) -> None:
        """Give a new training an identity, and check that it can be resumed.

        Raises:
            InputError: A file of the user has the place of weights that it would save.
        """
        self._training, self._below = uuid.uuid4().hex, None
        self._check_weights()
        if self.args.save_only_model and self.args.save_strategy != "no" and self.args.should_save:
            warnings.warn(
                "save_only_model=True: this training cannot be resumed, because its checkpoints have no optimizer.",
                stacklevel=3,
            )

    def _check_weights(self) -> None:
        """Raise ``InputError`` if a file of the user has the place of the weights below adapters."""
        if self._adapters is not None and self.args.save_strategy != "no":
            check_compact_weights(Path(self.args.output_dir))

    def _check_resumed(self, state: GateState, checkpoint: Path) -> None:
        """Check that a checkpoint is one of this trainer; a budget that was measured again is that of the checkpoint.

        Raises:
            InputError: It is of a trainer with other settings, or incomplete.
            OperationError: It is of the search, and the model has lost units.
        """
        objective = state.settings["objective"]
        if self.search is not None and isinstance(objective, dict) and self.search.take_measured(objective):
            _log.warning(f"The budget is that of {checkpoint}, not the one that was measured again.")
            self._search_settings = {**self._search_settings, "objective": describe_object(self.search.objective)}
            self._read_settings()
        check_same_settings(
            state.settings,
            self._settings,
            stored=f"{checkpoint} was written by a trainer with",
            present="this one has",
            remedy="Make the trainer as before, or begin again without resume_from_checkpoint.",
        )
        if self.search is None and state.record is None:
            raise OperationError(
                f"{checkpoint} is of the search, and the model of this trainer has lost units already: make the "
                "trainer again to resume from it."
            )
        index = self.args.process_index
        needed = [TRAINER_STATE_NAME, "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{index}.pth"]
        # The recovery begins with a new optimizer.
        needed += [] if state.is_end_of_search else [OPTIMIZER_NAME, SCHEDULER_NAME]
        if missing := [name for name in needed if not (checkpoint / name).is_file()]:
            raise InputError(
                f"{checkpoint} has no {missing[0]}, without which the result would be another one: resume from a "
                "complete checkpoint, written with save_only_model=False."
            )
        if state.record is None:
            self._check_weights()

    def _stopped(self) -> str:
        """Return the beginning of a sentence if the recovery ended early for another reason than its score, or ""."""
        step, last = self.state.global_step, self.state.max_steps
        is_stopped = self.search is None and self._first_step < step < last and not ended_by_score(self)
        return f"The recovery was stopped after {step} of {last} steps" if is_stopped else ""

    @contextmanager
    def _unfrozen(self) -> Iterator[None]:
        """Remove units in a ``with`` block from weights that are trainable as before the search; frozen after an error.

        They have their names in the dense model until layers leave it.
        """
        unfreeze(self.model, self._frozen)
        try:
            yield
        except BaseException:
            if self._frozen:
                freeze(self.model)
            raise

    def _begin_recovery(self, compact: PreTrainedModel, *, search_steps: int) -> None:
        self.search, self._first_step = None, search_steps
        if self.teacher is not None and isinstance(self.teacher.model, OpenTeacher):
            self.teacher = None  # The compact model is another one.
        self._hook_passes(compact)
        self.remove_callback(self._search_end)
        adapters = self._adapters
        self._use_model(compact if adapters is None else with_new_adapters(compact, adapters, like=self.model))
        # A model with more open heads may have been better.
        self.state.best_metric = self.state.best_model_checkpoint = self.state.best_global_step = None
        # Their parameters are gone.
        if self._given_optimizer is not None:
            self.optimizer_cls_and_kwargs = _remake_options(self._given_optimizer)
        self.optimizer = self.lr_scheduler = None

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
