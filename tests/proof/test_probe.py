"""Probe inputs of models, and differences of their outputs."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

import gating
from gating.proof.outputs import forward_outputs, max_relative_difference, rounding_tolerance, tolerance_for
from gating.proof.probe import make_probe, run_probe
from gating.proof.prove import try_removal
from tests.support.family_models import FAMILIES


def test_every_model_accepts_its_probe(model):
    outputs = forward_outputs(model, make_probe(model))
    assert outputs[0].shape == (2, 3)
    assert all(output.isfinite().all() for output in outputs)


def test_the_probe_is_reproducible_and_leaves_the_global_generator_unchanged(bert):
    state = torch.get_rng_state()
    first, second = make_probe(bert), make_probe(bert)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["input_ids"], second["input_ids"])


@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_of_evaluation_and_the_mode_stays(bert, training):
    bert.train(training)
    probe = make_probe(bert)
    first, second = forward_outputs(bert, probe), forward_outputs(bert, probe)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not first[0].requires_grad
    assert bert.training == training


def test_the_mode_stays_after_an_error(bert):
    bert.train()
    with pytest.raises(ValueError, match="input_ids"):
        forward_outputs(bert, {})
    assert bert.training


def test_outputs_are_found_in_nested_answers():
    class Nested(nn.Module):
        def forward(self, x):
            return {"a": x, "b": [x + 1, (x + 2, None)], "counts": torch.tensor([1])}

    outputs = forward_outputs(Nested(), {"x": torch.zeros(1)})
    assert [float(output) for output in outputs] == [0, 1, 2]


def test_the_difference_is_relative_to_the_largest_value_of_each_tensor():
    one = [torch.tensor([100.0, 1.0]), torch.tensor([1.0])]
    other = [torch.tensor([100.0, 2.0]), torch.tensor([1.001])]
    assert max_relative_difference(one, other) == pytest.approx(0.01)
    assert max_relative_difference(one, one) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([torch.ones(2)], [torch.ones(3)]),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)]),
        ([torch.ones(2)], [torch.tensor([1.0, math.nan])]),
        ([torch.tensor([1.0, math.nan])], [torch.tensor([1.0, math.nan])]),
        ([torch.ones(2)], [torch.tensor([1.0, math.inf])]),
    ],
)
def test_outputs_that_cannot_be_compared_are_infinitely_different(one, other):
    assert max_relative_difference(one, other) == math.inf


def test_zeros_in_half_precision_are_equal():
    zeros = torch.zeros(3, dtype=torch.float16)

    assert max_relative_difference([zeros], [zeros.clone()]) == 0
    assert max_relative_difference([zeros], [torch.ones_like(zeros)]) > 1


def test_the_tolerance_is_about_a_hundred_roundings_and_of_16_bits_four():
    assert tolerance_for(torch.float32) == pytest.approx(1.19e-5, rel=0.01)
    assert tolerance_for(torch.float16) == pytest.approx(4e-3, rel=0.03)
    assert tolerance_for(torch.bfloat16) == pytest.approx(3e-2, rel=0.05)


@pytest.mark.parametrize(
    ("dtype", "change", "tolerance"),
    [(torch.float32, 1e-3, 3e-3), (torch.bfloat16, 0.05, 0.2), (torch.bfloat16, 1.0, 0.78), (torch.bfloat16, 0, 0.031)],
)
def test_models_that_amplify_rounding_have_a_wider_tolerance(dtype, change, tolerance):
    outputs = [torch.ones(1, dtype=dtype)]
    assert rounding_tolerance(outputs, [tensor * (1 - change) for tensor in outputs]) == pytest.approx(
        tolerance, rel=0.05
    )


class Picky(PreTrainedModel):
    """A model that takes no batch but its dummy inputs."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(1, 1)
        self.config.vocab_size = 9

    @property
    def dummy_inputs(self):
        return {"input_ids": torch.tensor([[7, 7]])}

    def forward(self, input_ids):
        if input_ids.shape != (1, 2):
            raise RuntimeError("two tokens, please")
        return {"out": self.layer(input_ids[..., None].float())}


def test_dummy_inputs_of_the_model_are_the_last_resort():
    model = Picky(PreTrainedConfig())
    batch, outputs = run_probe(model)
    assert batch["input_ids"].tolist() == [[7, 7]]
    assert outputs[0].shape == (1, 2, 1)


def test_a_block_that_the_batch_does_not_reach_is_named():
    model = FAMILIES["bert"].build()
    model.spare = deepcopy(model.bert.encoder.layer[0].attention)
    (spare,) = [block for block in gating.find_attention_blocks(model) if block.name == "spare.self"]
    with pytest.raises(ValueError, match="pass probe="):
        try_removal(model, [spare], {spare.name: (0,)})
