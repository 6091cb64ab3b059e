"""Feed-forward blocks without common names are found by the widths of their layers, and by a trial."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import gating
from gating.discovery.discover import discover_layouts
from gating.families import registry as families
from gating.loader.modeling import RECORD_KEY
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.structure.feed_forward import iter_feed_forward_blocks
from tests.support.family_models import FAMILIES, GROUPED, IDS, ZOO, Family
from tests.support.masked_models import units_masked
from tests.support.tiers import first_of

SAMPLE = [
    "albert-1group",
    "bert",
    "blip",
    "clip",
    "falcon-new",
    "gpt2",
    "gptj",
    "llama",
    "modernbert",
    "mt5",
    "opt",
    "phi3",
    "siglip",
    "swin",
    "t5",
    "wav2vec2",
    "whisper",
]
_PROPHETNET = {"vocab_size": 99, "hidden_size": 64, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, **IDS}
_PROPHETNET |= {f"num_{tower}_layers": 2 for tower in ("encoder", "decoder")}
_PROPHETNET |= {f"num_{tower}_attention_heads": 4 for tower in ("encoder", "decoder")}
UNKNOWN = {
    **{name: ZOO[name] for name in ("ctrl", "funnel", "lfm2", "moshi")},
    "prophetnet": Family("ProphetNetForConditionalGeneration", "ProphetNetConfig", _PROPHETNET, ("eager",)),
    "xlnet": Family(
        "XLNetLMHeadModel",
        "XLNetConfig",
        {"vocab_size": 99, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 48, **IDS},
        ("eager",),
    ),
}


def _layouts(model):
    return {
        block.name: (type(block.module), frozenset(block.spec.ups), block.spec.down)
        for block in iter_feed_forward_blocks(model)
    }


@pytest.fixture
def without_names(monkeypatch):
    monkeypatch.setattr(families, "_FEED_FORWARD", ())


@pytest.mark.parametrize("name", SAMPLE)
def test_widths_of_layers_find_the_blocks_that_names_find(name, monkeypatch):
    model = FAMILIES[name].build().train()
    by_names = _layouts(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    monkeypatch.setattr(families, "_FEED_FORWARD", ())
    assert not _layouts(model)
    with torch.inference_mode():
        assert not discover_layouts(model, "neurons")
    assert _layouts(model) == by_names
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None and not parameter.is_inference() for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    linears = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in linears)


class Between(nn.Module):
    """Projections with a function between them."""

    def __init__(self, function, rows=12, width=12, hidden=8, up=nn.Linear):
        super().__init__()
        self.first, self.between, self.second = up(hidden, rows), function, nn.Linear(width, hidden)

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Gated(Between):
    """Two up projections, of which one is a gate."""

    def __init__(self):
        super().__init__(nn.SiLU())
        del self.second
        self.other, self.second = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return self.second(self.between(self.first(x)) * self.other(x))


class Residual(Between):
    """Adds another layer's output between the projections."""

    def __init__(self):
        super().__init__(nn.GELU())
        self.other = nn.Linear(4, 12)

    def forward(self, x):
        return self.second(self.between(self.first(x)) + self.other(x[..., :4]))


class Used(Between):
    """Returns its intermediate features, too."""

    def forward(self, x):
        features = self.first(x)
        return {"x": self.second(features.relu()), "y": features[..., :1].sin()}


def _discover(block):
    torch.manual_seed(0)
    # Blocks are made as the module is imported, with whatever random numbers.
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    model = nn.ModuleDict({"block": block}).eval()
    model.forward = lambda x: block(x)
    problems = discover_layouts(model, "neurons", probe={"x": torch.randn(8, 16, 8)})
    return getattr(block, "feed_forward_spec", None), problems.get(block, "")


def _pairs(x):
    gate, values = x.unflatten(-1, (-1, 2)).unbind(-1)
    return gate.sigmoid() * values


def _halves(x):
    gate, values = x.chunk(2, dim=-1)
    return gate.relu() * values


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


@pytest.mark.parametrize(
    ("block", "ups"),
    [
        (Between(nn.GELU()), (("first", "plain"),)),
        (Between(nn.ReLU(inplace=True)), (("first", "plain"),)),
        (Between(nn.PReLU()), (("first", "plain"),)),
        (Between(nn.GELU(), up=lambda hidden, rows: Conv1D(rows, hidden)), (("first", "plain"),)),
        (Between(nn.GELU(), rows=8, width=8), (("first", "plain"),)),
        (Between(Function(_pairs), rows=24), (("first", "pairs"),)),
        (Between(Function(_halves), rows=24), (("first", "halves"),)),
        (Gated(), (("first", "plain"), ("other", "plain"))),
    ],
)
def test_layouts_of_rows(block, ups):
    assert _discover(block) == (gating.FeedForwardSpec(ups, "second"), "")


@pytest.mark.parametrize(
    "block",
    [
        Between(nn.LayerNorm(12)),
        Between(nn.LayerNorm(12, elementwise_affine=False)),
        Between(nn.Sequential(nn.Flatten(0, 1), nn.PReLU(12))),
        Between(nn.Softmax(-1)),
        Between(Function(lambda x: x.flip(-1))),
        Between(Function(lambda x: x / x.abs().amax(-1, keepdim=True))),
        Between(Function(lambda x: x * (x > x.mean(-1, keepdim=True)))),
        Between(Function(lambda x: x * 0)),
        Between(Function(lambda x: x[..., :12]), rows=24),
        Residual(),
        Used(nn.GELU()),
    ],
)
def test_layers_whose_neurons_depend_on_each_other_are_no_block(block):
    spec, problem = _discover(block)
    assert spec is None
    assert problem.startswith("discover=True found it, but ")


@pytest.mark.parametrize("name", first_of(UNKNOWN, every=4))
def test_layers_with_other_names_are_found(name, without_names, tmp_path):
    model = UNKNOWN[name].build()
    with pytest.raises(ValueError, match="discover=True"):
        gating.find_feed_forward_blocks(model)
    blocks = gating.find_feed_forward_blocks(model, group_size=8, discover=True)
    kept = {block.name: [g for g in block.group_ids if (g + number) % 3] for number, block in enumerate(blocks)}
    kept[blocks[0].name] = []
    probe = make_probe(model)
    with units_masked(blocks, kept):
        expected = forward_outputs(model, probe)
    removed = {block.name: set(block.group_ids) - set(kept[block.name]) for block in blocks}
    report = gating.prune_neurons(model, removed, group_size=8)
    assert report.num_neurons == 8 * sum(map(len, kept.values()))
    assert max_relative_difference(expected, forward_outputs(model, probe)) < 1e-5
    if name in ("ctrl", "moshi"):
        gating.save_compact(model, tmp_path)
        again = gating.load_compact(tmp_path)
        assert max_relative_difference(forward_outputs(model, probe), forward_outputs(again, probe)) < 1e-5


def test_gates_on_discovered_blocks(without_names, tmp_path):
    model = UNKNOWN["lfm2"].build()
    gates = gating.inject_gates(model, units=["neurons"], group_size=8, discover=True)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.where(torch.arange(len(gates.log_alpha)) % 3 == 0, -9.0, 9.0))
    report = gating.finalize(model, gates)
    assert report.max_difference < 1e-5
    gating.save_compact(model, tmp_path / "compact")
    units = model.config.to_dict()[RECORD_KEY]["units"]
    spec = {"ups": [["w1", "plain"], ["w3", "plain"]], "down": "w2"}
    assert units["layers.0.feed_forward"] == {"feed_forward_spec": spec}
    again = gating.load_compact(tmp_path / "compact")
    probe = make_probe(model)
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(again, probe)) < 1e-5


class Adapted(nn.Module):
    """A layer with a low-rank adapter."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = nn.Linear(base_layer.in_features, 4), nn.Linear(4, base_layer.out_features)

    def forward(self, inputs):
        return self.base_layer(inputs) + self.up(self.down(inputs))


def test_adapters_are_no_blocks_and_must_be_merged(monkeypatch):
    known, unknown = FAMILIES["llama"].build(), UNKNOWN["lfm2"].build()
    known.model.layers[0].mlp.up_proj = Adapted(known.model.layers[0].mlp.up_proj)
    known.lm_head = Adapted(known.lm_head)
    assert len(gating.find_feed_forward_blocks(known, discover=True)) == 3
    unknown.model.layers[0].feed_forward.w1 = Adapted(unknown.model.layers[0].feed_forward.w1)
    monkeypatch.setattr(families, "_FEED_FORWARD", ())
    with pytest.raises(ValueError, match=r"w1 has an adapter .*merge"):
        gating.find_feed_forward_blocks(unknown, discover=True)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (Family("BitNetForCausalLM", "BitNetConfig", GROUPED), r"ffn_sub_norm \(BitNetRMSNorm\) between"),
        (Family("SegformerModel", "SegformerConfig", {}, ("eager",)), r"dwconv \(Conv2d\) between"),
        (Family("GLPNModel", "GLPNConfig", {}, ("eager",)), r"encoder.*dwconv \(Conv2d\) between"),
    ],
)
@pytest.mark.parametrize("discover", [False, True])
def test_norms_and_convolutions_between_projections_are_refused_with_the_reason(family, reason, discover):
    with pytest.raises(ValueError, match=f"Neurons cannot be removed .*{reason}"):
        gating.find_feed_forward_blocks(family.build(), discover=discover)


def test_an_activation_may_have_learned_scalars(without_names):
    model = Family("ApertusForCausalLM", "ApertusConfig", GROUPED).build()
    assert len(gating.find_feed_forward_blocks(model, discover=True)) == 3


class Layer(nn.Module):
    """A layer of a model of the user, with one expert that gets no position."""

    def __init__(self, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 96), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(96, hidden))
        self.expert = Between(nn.GELU(), rows=96, width=96, hidden=hidden)

    def forward(self, x):
        x = x + self.mlp(self.norm(x))
        return torch.cat([x, self.expert(x[:, :0])], dim=1)


class Custom(PreTrainedModel):
    """A model of the user without attention."""

    config_class = PreTrainedConfig

    def __init__(self, config, layer=Layer):
        super().__init__(config)
        self.embeddings = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(layer(32) for _ in range(3))
        self.head = nn.Linear(32, 50)
        self.post_init()

    def forward(self, input_ids):
        hidden_states = self.embeddings(input_ids)
        for layer in self.layers:
            hidden_states = layer(x=hidden_states)
        return {"logits": self.head(hidden_states)}


def _tokens():
    return {"input_ids": torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))}


def test_a_model_of_the_user():
    model = Custom(PreTrainedConfig())
    # The model never calls its experts.
    with pytest.warns(UserWarning, match="keep all neurons"):
        blocks = gating.find_feed_forward_blocks(model, group_size=32, discover=True, probe=_tokens())
    assert [block.name for block in blocks] == [f"layers.{number}.mlp.3" for number in range(3)]
    # A batch that was made and not used up left the whole model in evaluation, or brought the modes back at any time.
    assert all(module.training for module in model.modules())
    assert gating.prune_neurons(model, {1: [0, 2]}, group_size=32, probe=_tokens()).num_neurons == 2 * 96 + 32


class Masked(nn.Module):
    """An activation with a buffer of its width, which is not part of the graph."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scales", torch.ones(96))

    def forward(self, inputs):
        return inputs.relu() * self.scales


def test_a_block_that_fails_the_trial_is_named_and_gets_no_gates():
    activations = iter((nn.GELU(), nn.GELU(), Masked()))
    model = Custom(PreTrainedConfig(), layer=lambda hidden: Between(next(activations), 96, 96, hidden))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"layers.0"):
        gating.find_feed_forward_blocks(model, discover=True, probe=_tokens())
    assert not any(hasattr(module, "feed_forward_spec") for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
