"""Gates beside adapters of PEFT, in trainers of TRL, and against the Lightning module on the same batches."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import gating
from gating.errors import InputError
from gating.integrations import GatedTrainer, GatedTrainerMixin
from gating.report.score import Score
from gating.structure.layers import count_units
from gating.tasks import SequenceClassification
from gating.training.module import FineTuning
from gating.training.optimizers import AdamW, WarmupSchedule
from tests.integrations.conftest import examples, make_classifier, make_trainer, weights_of
from tests.integrations.test_resume import StopAt, StopInRecovery


def with_lora(model=None, **options):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], **options)
    return get_peft_model(make_classifier() if model is None else model, config)


@pytest.mark.runs
def test_adapters_are_merged_for_the_removal_and_new_ones_are_trained_after_it(tmp_path):
    model = with_lora()
    frozen = model.get_base_model().bert.encoder.layer[0].intermediate.dense.weight.clone()
    trainer = make_trainer(tmp_path / "checkpoints", model=model, args={"learning_rate": 1e-2})
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {"lora_A", "lora_B", "head_gates"} <= {part for name in names for part in name.split(".")}
    trainer.train()
    trainer.finalize()
    assert isinstance(trainer.model, PeftModel)
    before = weights_of(trainer)
    trainer.train()
    changed = {name for name, tensor in weights_of(trainer).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name or "classifier" in name for name in changed)
    folder = trainer.save_compact(tmp_path / "compact")
    loaded = gating.load_compact(folder)
    assert count_units(loaded, "heads") == 5
    assert not any("lora" in name for name in loaded.state_dict())
    assert torch.equal(loaded.bert.encoder.layer[0].intermediate.dense.weight, frozen)


@pytest.mark.runs
@pytest.mark.parametrize("stop", [StopAt(7), StopInRecovery(1), StopInRecovery(3)])
def test_a_training_of_adapters_resumes_to_the_bit(tmp_path, assert_same, stop):
    def compact(folder, *, stop=None, resume=None):
        callbacks = [] if stop is None else [stop]
        trainer = make_trainer(
            folder / "checkpoints",
            model=with_lora(),
            callbacks=callbacks,
            args={"save_steps": 2, "learning_rate": 1e-2},
        )
        trainer.train_and_compact(folder / "compact", resume_from_checkpoint=resume)
        return trainer

    whole = compact(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop=stop)
    assert_same(weights_of(whole), weights_of(compact(tmp_path / "parts", resume=True)))


def test_adapters_that_cannot_be_merged_are_refused(tmp_path):
    model = get_peft_model(make_classifier(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    with pytest.raises(InputError, match="cannot be merged"):
        make_trainer(tmp_path, model=model)


class GatedSFTTrainer(GatedTrainerMixin, SFTTrainer):
    pass


class GatedDPOTrainer(GatedTrainerMixin, DPOTrainer):
    pass


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=45,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


@pytest.fixture
def words(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", eos_token="[SEP]", unk_token="[UNK]"
    )


ROWS = {
    "prompt": ["the cat sat", "a fast dog"] * 16,
    "completion": [" on the mat", " ran home"] * 16,
    "chosen": [" on the mat", " ran home"] * 16,
    "rejected": [" ran home", " on the mat"] * 16,
}
SHARED = {
    "max_steps": 8,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "log_level": "error",
    "learning_rate": 1e-3,
    "logging_steps": 1,
}


@pytest.mark.runs
@pytest.mark.parametrize("has_adapters", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_supervised_fine_tuning_of_trl(tmp_path, llama, words, has_adapters):
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = GatedSFTTrainer(
        model=llama,
        args=SFTConfig(output_dir=str(tmp_path / "sft"), max_length=16, **SHARED),
        train_dataset=Dataset.from_dict({name: ROWS[name] for name in ("prompt", "completion")}),
        processing_class=words,
        objective=gating.ExactBudget(num_heads=4),
        recovery=0.25,
        peft_config=adapters if has_adapters else None,
    )
    folder = trainer.train_and_compact(tmp_path / "compact")
    assert count_units(gating.load_compact(folder), "heads") == 4
    assert trainer.state.global_step == 2


@pytest.mark.runs
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_preference_optimization_of_trl(tmp_path, llama, words):
    trainer = GatedDPOTrainer(
        model=llama,
        ref_model=copy.deepcopy(llama),
        args=DPOConfig(output_dir=str(tmp_path / "dpo"), max_length=16, **SHARED),
        train_dataset=Dataset.from_dict({name: ROWS[name] for name in ("prompt", "chosen", "rejected")}),
        processing_class=words,
        objective=gating.ExactBudget(num_heads=4),
        recovery=0.25,
    )
    folder = trainer.train_and_compact(tmp_path / "compact")
    assert count_units(gating.load_compact(folder), "heads") == 4
    # The reference model has all heads.
    assert count_units(trainer.ref_model, "heads") == 8


class InOrder(GatedTrainer):
    """A trainer with batches in the order of the data, and the noise of the Lightning module."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args, **kwargs):
        step = self.state.global_step
        torch.manual_seed(1_000_003 * step + 1009 * (step % 8))
        return super().training_step(*args, **kwargs)


# Lightning's norm of the gradients has that of the multipliers, too.
@pytest.mark.runs
@pytest.mark.parametrize(
    ("objective", "clip"), [(gating.ExactBudget, 1.0), (gating.Lagrangian, 0.0), (gating.TopK, 1.0)]
)
def test_the_lightning_module_keeps_the_same_heads_on_the_same_batches(tmp_path, objective, clip):
    # In double precision: straight-through gates enlarge differences of rounding.
    trainer = make_trainer(
        tmp_path,
        model=make_classifier().double(),
        cls=InOrder,
        recovery=0,
        objective=objective(num_heads=5),
        args={
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "weight_decay": 0.0,
            "max_steps": 24,
            "max_grad_norm": clip,
        },
    )
    # Some objectives begin at random.
    start = trainer.gates.log_alpha.detach().clone()
    trainer.train()

    model = make_classifier().double()
    gates = gating.inject_gates(model)
    search = gating.Search(gates, objective(num_heads=5))
    gates.log_alpha.data.copy_(start)
    module = FineTuning(
        model,
        task=SequenceClassification(),
        metrics=MetricCollection({}),
        score=Score("accuracy"),
        optimizer=AdamW(lr=1e-3, weight_decay=0.0),
        scheduler=WarmupSchedule(warmup=0, shape="constant_with_warmup"),
        scheduled=(0, 24),
        search=search,
    )
    pl.Trainer(
        max_steps=24,
        accelerator="cpu",
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(module, *(DataLoader(examples(64, seed=1), batch_size=8) for _ in range(2)))
    assert torch.allclose(gates.log_alpha, trainer.gates.log_alpha)
    kept, expected = trainer.search.kept(), search.kept()
    assert torch.equal(kept, expected)
    assert int(kept.sum()) == 5
