"""Compact and gated models in one compiled graph."""

import copy
from contextlib import contextmanager

import pytest
import torch
import transformers
from torch._dynamo.exc import Unsupported

import gating
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.tiers import first_of


@contextmanager
def one_graph(name):
    """Skip the test if one graph is not even possible for the dense model, as with transformers 5.0."""
    try:
        yield
    except Unsupported:
        dense = FAMILIES[name].build()
        dense.config.use_cache = False
        try:
            torch.compile(dense, backend="eager", fullgraph=True)(**make_probe(dense))
        except Unsupported:
            pytest.skip(f"{type(dense).__name__} has breaks in its graph with transformers {transformers.__version__}")
        raise


@pytest.mark.parametrize("name", first_of(["bert", "llama", "gpt2"]))
def test_compact_model_compiles_to_one_graph(name):
    model = FAMILIES[name].build()
    blocks = gating.find_attention_blocks(model)
    gating.prune_heads(model, {blocks[0].name: range(blocks[0].num_heads), blocks[1].name: [0, 1]})
    model.config.use_cache = False
    probe = make_probe(model)
    expected = forward_outputs(model, probe)
    # Only the graph can break; the code that a backend generates from it is torch's own.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with one_graph(name):
        assert max_relative_difference(expected, forward_outputs(compiled, probe)) <= 1e-6
    torch._dynamo.reset()


# Dynamo looks at every tensor it meets, also at the gate values, which are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("budget", first_of([True, False]))
@pytest.mark.parametrize("name", first_of(["bert", "llama"]))
def test_gated_model_compiles_to_one_graph_and_its_gates_get_the_same_gradients(name, budget):
    model = FAMILIES[name].build().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.use_cache = False
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=7)
    if budget:
        objective = gating.ExactBudget(keep=0.5)
        objective.attach(gates)
        objective.update(gates, 0.4)
    probe = make_probe(model)

    def gradients(run):
        gates.log_alpha.grad = None
        torch.manual_seed(0)
        run(**probe).logits.sum().backward()
        return gates.log_alpha.grad

    plain = gradients(model)
    with one_graph(name):
        compiled = gradients(torch.compile(model, backend="eager", fullgraph=True))
    assert plain.abs().max() > 0
    assert max_relative_difference([plain], [compiled]) <= 1e-5
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("after_pass", first_of([True, False]))
def test_a_compiled_part_that_is_called_alone_trains_the_gates_at_every_step(after_pass):
    model = FAMILIES["clip"].build().train()  # Which draws no other random numbers.
    gating.inject_gates(model, init_prob_open=0.6)
    batch = make_probe(model)
    if after_pass:
        with torch.no_grad():
            model(**batch)
    twin = copy.deepcopy(model)

    def gradients(part, log_alpha):
        torch.manual_seed(0)
        for _ in range(2):
            log_alpha.grad = None
            part(input_ids=batch["input_ids"]).pooler_output.pow(2).sum().backward()
            yield log_alpha.grad

    plain = list(gradients(model.text_model, model.head_gates.log_alpha))
    compiled = list(gradients(torch.compile(twin.text_model, backend="eager"), twin.head_gates.log_alpha))
    assert max_relative_difference(plain, compiled) <= 1e-5
    assert all(gradient.abs().sum() > 0 for gradient in compiled)
    torch._dynamo.reset()
