"""Training steps with gates: learning rates, noise, resume and precision."""

import copy
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import gating
from gating.models.sources import enable_gradient_checkpointing
from gating.report.results import History
from gating.report.score import Score
from gating.report.summary import Summary
from gating.tasks import SequenceClassification
from gating.training.callbacks import GateMonitor
from gating.training.evaluation import evaluate
from gating.training.module import FineTuning
from gating.training.optimizers import AdamW, WarmupSchedule
from tests.support.metrics import class_metrics
from tests.support.tiers import first_of
from tests.support.tiny_run import make_model_folder

BATCH = {"input_ids": torch.arange(5, 17).view(2, 6), "labels": torch.tensor([0, 1])}
TASK = SequenceClassification()


def make_module(folder, *, gated: bool = True, **options) -> FineTuning:
    model = BertForSequenceClassification.from_pretrained(folder).train()
    if not gated:
        return assemble(model, **options)
    return assemble(model, gating.ExactBudget(num_heads=4), **options)


def assemble(model, objective=None, **options) -> FineTuning:
    search = gating.Search(gating.inject_gates(model), objective) if objective is not None else None
    return FineTuning(
        model.train(),
        task=TASK,
        metrics=class_metrics(["accuracy"], num_classes=2),
        score=Score("accuracy"),
        optimizer=AdamW(lr=1e-3),
        scheduler=WarmupSchedule(),
        scheduled=(0, 8),
        search=search,
        **options,
    )


def fit(module, *, steps: int, callbacks=(), ckpt_path=None, folder=".", batches=(BATCH, BATCH), **options):
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=steps,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **options,
    )
    loader = DataLoader(list(batches), batch_size=None)
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return trainer


def test_parts_of_a_batch_in_several_processes_are_one_batch(monkeypatch):
    """Targets, the tokens, are shared otherwise than the examples, by which hidden states count."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model, dense = (LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)) for _ in range(2))
    module = assemble(model, teacher=gating.Teacher(dense, distillation=gating.Distillation(hidden_weight=1.0)))
    tokens = torch.randint(20, (4, 6))
    counted = torch.arange(6) < torch.tensor([[3], [3], [6], [6]])
    labels = tokens.masked_fill(~counted | (torch.arange(6) == 0), -100)
    monkeypatch.setattr("gating.training.module.all_reduce_sum", lambda own: 4 if own in (1, 3) else 14)

    def gradient(*parts: slice) -> torch.Tensor:
        module._trainer = SimpleNamespace(world_size=len(parts), global_step=0)
        for part in parts:
            (module.training_step({"input_ids": tokens[part], "labels": labels[part]}, 0) / len(parts)).backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        module.zero_grad()
        return gradients

    module.log = lambda *_: None
    torch.testing.assert_close(gradient(slice(0, 3), slice(3, 4)), gradient(slice(0, 4)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("module") / "model")


def test_weights_and_gates_have_separate_learning_rates(folder):
    module = make_module(folder)
    before = module.model.bert.encoder.layer[0].attention.self.query.weight.clone()
    log_alpha = module.search.gates.log_alpha.clone()
    trainer = fit(module, steps=6)
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert set(groups) == {"weights", "weights_without_decay", "gates"}
    assert groups["gates"]["params"][0] is module.search.gates.log_alpha
    assert all(p is not module.search.gates.log_alpha for p in groups["weights"]["params"])
    assert (module.search.gates.log_alpha - log_alpha).abs().max() > 0.1
    assert 0 < (module.model.bert.encoder.layer[0].attention.self.query.weight - before).abs().max() < 0.05


def test_noise_depends_on_the_step_number_alone(folder):
    def loss_after(disturbance: int) -> torch.Tensor:
        module = make_module(folder)
        torch.manual_seed(disturbance)
        fit(module, steps=3)
        return module.search.gates.log_alpha.detach()

    assert torch.equal(loss_after(1), loss_after(2))


def test_the_objective_gets_the_loss_of_each_batch(folder):
    seen = []

    class Watching(gating.ExactBudget):
        def observe(self, loss):
            seen.append(loss)

    model = BertForSequenceClassification.from_pretrained(folder).train()
    fit(assemble(model, Watching(num_heads=4)), steps=3)
    assert len(seen) == 3
    assert all(loss.shape == () and loss > 0 and not loss.requires_grad for loss in seen)


def test_resumed_equals_uninterrupted(folder, tmp_path):
    whole = make_module(folder)
    fit(whole, steps=6)
    first = make_module(folder)
    trainer = fit(first, steps=6, callbacks=[StopAfter(4)])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_module(folder)
    fit(resumed, steps=6, ckpt_path=tmp_path / "half.ckpt")
    for (name, one), (_, other) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


class StopAfter(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


def test_history_and_seconds_are_saved_in_checkpoints(folder):
    history = History()
    monitor = GateMonitor(history, Summary(seconds={"search": 2.0}))
    fit(make_module(folder), steps=4, callbacks=[monitor])
    assert [observation.step for observation in history.observations] == [2, 4]
    summary = Summary()
    other = GateMonitor(History(), summary)
    other.load_state_dict(monitor.state_dict())
    assert other.history == history
    assert summary.all_seconds() == {"search": 2.0}


def test_recovery_continues_the_step_count_of_the_search(folder):
    history = History()
    module = make_module(folder, gated=False, first_step=5)
    fit(module, steps=2, callbacks=[GateMonitor(history, Summary())])
    assert [observation.step for observation in history.observations] == [7]
    assert history.observations[0].open == 12


def test_evaluation_uses_deterministic_gates_and_restores_the_mode(folder):
    module = make_module(folder)
    module.train()
    metrics = class_metrics(["accuracy"], num_classes=2)
    results = {evaluate(module.model, [BATCH], task=TASK, metrics=metrics).metrics["accuracy"] for _ in range(3)}
    assert len(results) == 1
    assert module.model.training


class Losses(pl.Callback):
    """Records losses, with gates at their deterministic values: compiled graphs draw noise in another order."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_start(self, trainer, pl_module):
        if pl_module.objective is not None:
            pl_module.search.gates.eval()

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.values.append(float(outputs["loss"]))


def two_phases(folder, *, compiler: str | None) -> list[float]:
    """Search, finalize and recover on batches of different lengths; return all losses."""
    model = BertForSequenceClassification.from_pretrained(
        folder,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        problem_type="single_label_classification",  # otherwise the first step sets it, which recompiles
    )
    losses = Losses()
    batches = [
        {"input_ids": torch.randint(5, 45, (2, length)), "labels": torch.tensor([0, 1])} for length in (6, 9, 4, 12)
    ]
    for objective in (gating.ExactBudget(num_heads=4), None):
        module = assemble(model, objective, compiler=compiler)
        if objective is not None:
            gates = module.search.gates
            torch.nn.init.normal_(gates.log_alpha, generator=torch.Generator().manual_seed(0))
        fit(module, steps=4, callbacks=[losses], batches=batches)
        assert not [name for name in module.state_dict() if "_orig_mod" in name]
        if objective is not None:
            assert gating.finalize(model, gates, num_heads=4).num_heads == 4
    return losses.values


# Dynamo reads .grad of all tensors, also of gate values, which are not leaves.
@pytest.mark.runs
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
# Imports of Inductor.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_steps_have_the_same_losses_before_and_after_removal(folder, compiler):
    torch.manual_seed(0)
    plain = two_phases(folder, compiler=None)
    torch.manual_seed(0)
    compiled = two_phases(folder, compiler=compiler)
    assert len(plain) == len(compiled) == 8
    assert compiled == pytest.approx(plain, abs=1e-5)


def test_recomputed_activations_give_the_same_losses_and_gradients(folder):
    def gradients(recompute: bool) -> dict[str, torch.Tensor]:
        module = make_module(folder)  # with dropout and the noise of gates
        if recompute:
            enable_gradient_checkpointing(module.model)
        torch.nn.init.normal_(module.search.gates.log_alpha, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(1)
        loss = module.model(**BATCH).loss
        loss.backward()
        return {"loss": loss} | {name: weight.grad for name, weight in module.model.named_parameters()}

    plain, recomputed = gradients(False), gradients(True)
    assert plain["head_gates.log_alpha"].abs().max() > 0
    for name, expected in plain.items():
        assert torch.equal(recomputed[name], expected), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.filterwarnings("ignore:.*precision='16-mixed'.*:UserWarning")
def test_gradients_of_a_fused_optimizer_are_clipped(precision, folder):
    model = BertForSequenceClassification.from_pretrained(folder).train()
    trainer = fit(assemble(model, gating.Lagrangian(num_heads=4)), steps=1, precision=precision, gradient_clip_val=0.01)
    (optimizer,) = trainer.optimizers
    assert optimizer.defaults["fused"]
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).norm()
    assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", first_of(["bf16-mixed", "16-mixed", "bf16-true", "16-true"]))
@pytest.mark.parametrize(
    "objective", [gating.Lagrangian(num_heads=4), gating.IterativePruning(gating.Importance(), num_heads=3)]
)
# On CPUs 16-mixed means bfloat16, with a warning.
@pytest.mark.filterwarnings("ignore:.*precision='16-mixed'.*:UserWarning")
def test_gates_and_objective_stay_in_full_precision(precision, objective, folder, tmp_path):
    def make() -> FineTuning:
        model = BertForSequenceClassification.from_pretrained(folder).train()
        return assemble(model, copy.deepcopy(objective))

    module = make()
    trainer = fit(module, steps=3, precision=precision)
    deciding = [*module.search.gates.state_dict().items(), *module.objective.state_dict().items()]
    of_device = [tensor for name, tensor in deciding if not name.endswith("_extra_state")]
    assert {tensor.dtype for tensor in of_device if tensor.is_floating_point()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for _, tensor in deciding)
    half = torch.float16 if precision == "16-true" else torch.bfloat16
    weight = module.model.bert.encoder.layer[0].output.dense.weight
    assert weight.dtype == (half if precision.endswith("true") else torch.float32)
    (optimizer,) = trainer.optimizers
    for group in optimizer.param_groups:
        if not group["name"].startswith("weights"):
            states = [optimizer.state[parameter] for parameter in group["params"] if parameter.requires_grad]
            assert {tensor.dtype for state in states for tensor in state.values()} <= {torch.float32}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = make()
    fit(other, steps=3, precision=precision, ckpt_path=tmp_path / "last.ckpt")
    resumed = {**other.search.gates.state_dict(), **other.objective.state_dict()}
    assert all(torch.equal(resumed[name], tensor) for name, tensor in deciding)
    if precision.endswith("mixed"):
        kept = module.search.kept()
        assert gating.finalize(module.model, module.search.gates, kept=kept).num_heads == int(kept.sum())
