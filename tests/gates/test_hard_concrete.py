"""The hard concrete distribution equals the formulas of Louizos et al. 2018."""

import math

import pytest
import torch

from gating.gates import hard_concrete

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def test_defaults_are_those_of_the_paper():
    assert hard_concrete.DEFAULT_TEMPERATURE == BETA
    assert hard_concrete.DEFAULT_STRETCH_LIMITS == (GAMMA, ZETA)


@pytest.mark.parametrize("log_alpha", [-1.5, -0.3, 0.0, 0.7, 1.9])
def test_sample_is_equations_10_and_11_for_the_same_noise(log_alpha):
    torch.manual_seed(3)
    values = hard_concrete.sample(torch.full((50,), log_alpha))
    noise = torch.rand(50, generator=torch.Generator().manual_seed(3)).tolist()
    for value, u in zip(values.tolist(), noise, strict=True):
        s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + log_alpha) / BETA))
        # Single precision against double precision.
        assert value == pytest.approx(min(1.0, max(0.0, s * (ZETA - GAMMA) + GAMMA)), abs=2e-6)


@pytest.mark.parametrize(
    ("log_alpha", "expected"),
    [
        (0.0, 0.5),
        (math.log(3), 0.75 * 1.2 - 0.1),
        (-math.log(3), 0.25 * 1.2 - 0.1),
        (math.log(1 / 11), 0.0),
        (math.log(11), 1.0),
        (-30.0, 0.0),
        (30.0, 1.0),
    ],
)
def test_deterministic_is_equation_13(log_alpha, expected):
    assert hard_concrete.deterministic(torch.tensor(log_alpha)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("log_alpha", "temperature", "limits"), [(0.0, BETA, (GAMMA, ZETA)), (-2.4, BETA, (GAMMA, ZETA)), (1, 0.5, (-1, 2))]
)
def test_prob_open_is_equation_12(log_alpha, temperature, limits):
    shifted = log_alpha - temperature * math.log(-limits[0] / limits[1])
    prob = hard_concrete.prob_open(torch.tensor(log_alpha), temperature=temperature, stretch_limits=limits)
    assert prob.item() == pytest.approx(1 / (1 + math.exp(-shifted)), abs=1e-6)


def test_prob_open_of_known_values():
    # sigmoid(2/3 log 11) = 11^(2/3) / (1 + 11^(2/3))
    assert hard_concrete.prob_open(torch.tensor(0.0)).item() == pytest.approx(0.831822, abs=1e-5)
    # Where the deterministic gate reaches zero, a gate is still open with 1 / (1 + 11^(1/3)).
    assert hard_concrete.prob_open(torch.tensor(-math.log(11))).item() == pytest.approx(0.310176, abs=1e-5)


@pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize(("temperature", "limits"), [(BETA, (GAMMA, ZETA)), (0.3, (-0.4, 1.2))])
def test_the_frequency_of_open_samples_is_prob_open(log_alpha, temperature, limits):
    count = 200_000
    options = {"temperature": temperature, "stretch_limits": limits}
    torch.manual_seed(0)
    values = hard_concrete.sample(torch.full((count,), log_alpha), **options)
    prob = hard_concrete.prob_open(torch.tensor(log_alpha), **options).item()
    # Four standard errors of a frequency.
    tolerance = 4 * math.sqrt(prob * (1 - prob) / count) + 1e-6
    assert (values > 0).float().mean().item() == pytest.approx(prob, abs=tolerance)


def test_samples_have_exact_zeros_and_ones_and_values_between():
    torch.manual_seed(0)
    values = hard_concrete.sample(torch.zeros(10_000))
    assert (values == 0).any()
    assert (values == 1).any()
    assert ((values > 0) & (values < 1)).any()
    assert values.min() >= 0
    assert values.max() <= 1


@pytest.mark.parametrize("prob", [1e-4, 0.31, 0.5, 0.98, 0.9999])
def test_log_alpha_for_inverts_prob_open(prob):
    log_alpha = hard_concrete.log_alpha_for(prob, temperature=0.5, stretch_limits=(-0.2, 1.3))
    found = hard_concrete.prob_open(torch.tensor(log_alpha), temperature=0.5, stretch_limits=(-0.2, 1.3))
    assert found.item() == pytest.approx(prob, abs=1e-6)


FUNCTIONS = [hard_concrete.sample, hard_concrete.deterministic, hard_concrete.prob_open]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_answers_are_float32_and_exact_under_bfloat16_autocast(function):
    log_alpha = torch.linspace(-3, 3, 9)
    torch.manual_seed(0)
    expected = function(log_alpha)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = function(log_alpha)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_finite_at_extreme_locations(function):
    log_alpha = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], requires_grad=True)
    value = function(log_alpha)
    assert value.isfinite().all()
    value.sum().backward()
    assert log_alpha.grad.isfinite().all()


def test_sample_is_finite_at_the_ends_of_the_noise(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.tensor([0.0, 1 - 2**-24]).expand(shape))
    log_alpha = torch.zeros(2, requires_grad=True)
    values = hard_concrete.sample(log_alpha)
    values.sum().backward()
    assert values.tolist() == [0.0, 1.0]
    assert log_alpha.grad.isfinite().all()


def test_gradient_of_a_sample_reaches_log_alpha_through_values_between_zero_and_one():
    log_alpha = torch.zeros(1000, requires_grad=True)
    torch.manual_seed(0)
    values = hard_concrete.sample(log_alpha)
    values.sum().backward()
    between = (values > 0) & (values < 1)
    assert (log_alpha.grad[between] > 0).all()
    # d z / d log_alpha = (zeta - gamma) s (1 - s) / beta
    s = (values[between] - GAMMA) / (ZETA - GAMMA)
    torch.testing.assert_close(log_alpha.grad[between], (ZETA - GAMMA) * s * (1 - s) / BETA, rtol=1e-4, atol=1e-5)
