"""Gates in the trainers of sentence-transformers: their losses, folders, interruptions and adapters."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import losses as cross_losses
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Router, Transformer

import gating
from gating.errors import InputError, OperationError
from gating.structure.layers import count_units
from tests.integrations.conftest import CHECKPOINTING, weights_of
from tests.integrations.sentence_models import (
    make_cross_encoder,
    make_embedder,
    make_trainer,
    pairs,
    save_transformer,
    texts,
)
from tests.integrations.test_resume import StopAt, StopInRecovery

TEXTS = texts(5, seed=7)
SCORES = {"label": [number % 3 / 2 for number in range(64)]}


def test_a_compact_folder_embeds_as_the_model_in_memory(tmp_path):
    model = make_embedder(tmp_path)
    trainer = make_trainer(tmp_path, model, args={"save_strategy": "no"})
    folder = trainer.train_and_compact(tmp_path / "compact")
    loaded = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert count_units(model.transformers_model, "heads") == count_units(gating.load_compact(folder), "heads") == 5
    assert np.array_equal(loaded.encode(TEXTS), model.encode(TEXTS))
    trainer.save_compact(folder, overwrite=True)


LOAD = """
import sys, numpy, sentence_transformers
sys.modules["gating"] = None  # as where it is not installed
folder, cls, trust = sys.argv[1:4]
model = getattr(sentence_transformers, cls)(folder, trust_remote_code=trust != "False", device="cpu")
texts = sys.argv[5:]
numpy.save(sys.argv[4], model.encode(texts) if trust != "pairs" else model.predict([*zip(texts, texts[1:])]))
"""


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["embedder", "stock", "cross-encoder"])
def test_a_compact_folder_computes_the_same_in_a_fresh_process_without_this_package(tmp_path, kind):
    options = {}
    if kind == "cross-encoder":
        model = make_cross_encoder(tmp_path)
        data = pairs(label=[float(number % 2) for number in range(64)])
        options = {"loss": cross_losses.BinaryCrossEntropyLoss, "train_dataset": data}
    else:
        model = make_embedder(tmp_path, dense=True)
    if kind == "stock":
        uniform = gating.ExactBudget(keep=0.5, uniform=True)
        options = {"objective": uniform, "gate_options": {"units": "neurons", "group_size": 8}}
    folder = make_trainer(tmp_path, model, **options).train_and_compact(tmp_path / "compact")
    is_cross = kind == "cross-encoder"
    how = ("CrossEncoder", "pairs") if is_cross else ("SentenceTransformer", kind != "stock")
    arguments = [folder, *how, tmp_path / "out.npy"]
    subprocess.run([sys.executable, "-c", LOAD, *map(str, arguments), *TEXTS], check=True, cwd=tmp_path)
    expected = model.predict([*pairwise(TEXTS)]) if is_cross else model.encode(TEXTS)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def softmax(model):
    """Return a loss with weights of its own."""
    torch.manual_seed(2)
    return losses.SoftmaxLoss(model, 16, 3)


@pytest.mark.runs
@pytest.mark.parametrize("stop", [StopInRecovery(3), StopAt(7), StopInRecovery(1)])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, assert_same, stop):
    def compact(folder, *, stop=None, resume=None):
        model = make_embedder(folder, dense=True)
        data = pairs(label=[number % 3 for number in range(64)])
        callbacks = [] if stop is None else [stop]
        trainer = make_trainer(folder, model, loss=softmax, train_dataset=data, callbacks=callbacks)
        trainer.train_and_compact(folder / "compact", resume_from_checkpoint=resume)
        return trainer

    whole = compact(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop=stop)
    resumed = compact(tmp_path / "parts", resume=True)
    assert_same(weights_of(whole), weights_of(resumed))
    assert_same(whole.loss.state_dict(), resumed.loss.state_dict())


def step(folder, loss, *, sample=None, **options):
    """Return a trainer with gates whose loss was computed and whose gradients are there."""
    trainer = make_trainer(
        folder, make_embedder(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), loss=loss, **options
    )
    trainer.search.update(0.5)
    drawn = trainer.gates.sample
    trainer.gates.sample = (lambda: sample(drawn())) if sample else trainer.gates.values
    batch = trainer.data_collator([*trainer.train_dataset.select(range(8))])
    trainer.compute_loss(trainer.model.train(), batch).backward()
    return trainer


def test_losses_that_cache_gradients_give_the_gates_the_same(tmp_path):
    plain = step(tmp_path, losses.MultipleNegativesRankingLoss)
    cached = step(tmp_path, lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4))
    gradient = plain.gates.log_alpha.grad
    assert gradient.abs().max() > 1e-4
    assert torch.allclose(cached.gates.log_alpha.grad, gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_sample_is_that_of_a_step_or_of_a_pass_and_its_repetition(tmp_path, is_cached):
    drawn = []
    plain, cached = losses.MultipleNegativesRankingLoss, losses.CachedMultipleNegativesRankingLoss
    step(
        tmp_path,
        (lambda model: cached(model, mini_batch_size=4)) if is_cached else plain,
        sample=lambda values: [values, drawn.append(values.detach())][0],
    )
    # Two columns of 8 texts in parts of 4, without gradients and with them.
    assert len(drawn) == (8 if is_cached else 1)
    if is_cached:
        assert all(torch.equal(one, other) for one, other in zip(drawn[:4], drawn[4:], strict=True))
        assert not torch.equal(drawn[0], drawn[1])


def test_a_pass_in_a_backward_pass_that_skips_the_hooks_is_refused(tmp_path):
    model = make_embedder(tmp_path).train()
    gates = gating.inject_gates(model.transformers_model)
    loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4)
    with pytest.raises(OperationError, match="would give the gates no gradient"):
        loss([model.preprocess(TEXTS), model.preprocess(TEXTS)], None).backward()
    model[0].register_forward_pre_hook(gates.pass_values.begin_pass)
    loss([model.preprocess(TEXTS), model.preprocess(TEXTS)], None).backward()
    assert gates.log_alpha.grad.any()


LOSSES = {
    "matryoshka of cached": lambda model: losses.MatryoshkaLoss(
        model, losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4), [32, 16]
    ),
    "adaptive layers": lambda model: losses.AdaptiveLayerLoss(model, losses.MultipleNegativesRankingLoss(model)),
    "guided": lambda model: losses.CachedGISTEmbedLoss(model, make_guide(model), mini_batch_size=4),
    "one for each data set": lambda model: {
        "pairs": losses.MultipleNegativesRankingLoss(model),
        "scores": losses.CoSENTLoss(model),
    },
}


def make_guide(model):
    return SentenceTransformer(model.tokenizer.name_or_path, device="cpu")


@pytest.mark.runs
# transformers' name for it in models that it does not know.
@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("matryoshka of cached", {"gradient_accumulation_steps": 2}),
        ("adaptive layers", {"bf16": True}),
        ("guided", {CHECKPOINTING: True}),
        ("one for each data set", {CHECKPOINTING: True}),
        ("one for each data set", {"bf16": True}),
    ],
)
def test_any_loss_trains_the_gates_and_its_model_is_the_compact_one(tmp_path, name, args):
    model = make_embedder(tmp_path)
    data = {"pairs": pairs(), "scores": pairs(**SCORES)} if name == "one for each data set" else pairs()
    trainer = make_trainer(tmp_path, model, loss=LOSSES[name], train_dataset=data, args=args)
    trainer.train()
    assert trainer.gates.log_alpha.detach().std() > 0.01
    trainer.finalize()
    before = weights_of(trainer)
    trainer.train()
    assert sum(not torch.equal(one, before[name]) for name, one in weights_of(trainer).items()) > 10
    folder = trainer.save_compact(tmp_path / "compact")
    loaded = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert np.array_equal(loaded.encode(TEXTS), model.encode(TEXTS))


@pytest.mark.runs
def test_the_best_model_is_that_of_the_recovery(tmp_path, assert_same):
    args = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 5e-2}
    trainer = make_trainer(tmp_path, make_embedder(tmp_path), args=args, eval_dataset=pairs().select(range(8)))
    trainer.train_and_compact(tmp_path / "compact")
    losses = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    assert list(losses) == [0, 2, 4]
    best = min(losses.values())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-5)


def test_models_that_gates_cannot_be_put_on_are_refused(tmp_path):
    model = make_embedder(tmp_path)
    with pytest.raises(InputError, match=r"put gates on one of them, model\.get_submodule\('0\.model'\)"):
        gating.inject_gates(model)
    routes = {name: [Transformer(save_transformer(tmp_path / name))] for name in ("query", "document")}
    router = SentenceTransformer(modules=[Router(routes), model[1]], device="cpu")
    with pytest.raises(InputError, match="has 2 transformers, as one with a Router"):
        make_trainer(tmp_path, router, args={"router_mapping": {"anchor": "query", "positive": "document"}})
    model[0].model = get_peft_model(model[0].model, LoraConfig(r=2, target_modules=["query", "value"]))
    with pytest.raises(InputError, match=r"got a PeftModel"):
        make_trainer(tmp_path, model)
