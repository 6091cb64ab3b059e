"""The loss of distillation, and the divergence of softmaxes, some rows at a time."""

import pytest
import torch
from torch.nn import functional

from gating import Distillation
from gating.teachers import distillation
from gating.teachers.distillation import distillation_loss, hidden_loss, softmax_divergence

STUDENT = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 0.0]])
TEACHER = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def reference_loss(student, teacher, temperature):
    """Return the formula as a sum over classes, averaged over rows."""
    p, q = ((logits / temperature).softmax(-1) for logits in (teacher, student))
    return temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_distance_matches_the_formula(temperature):
    expected = reference_loss(STUDENT, TEACHER, temperature)
    torch.testing.assert_close(distillation_loss(STUDENT, TEACHER, temperature=temperature), expected)


def test_gradient_norm_is_independent_of_the_temperature():
    norms = []
    for temperature in (5.0, 50.0):
        student = STUDENT.clone().requires_grad_()
        distillation_loss(student, TEACHER, temperature=temperature).backward()
        norms.append(float(student.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_a_single_logit_has_a_squared_error():
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [5.0]])
    assert distillation_loss(student, teacher, temperature=3.0).item() == pytest.approx((1 + 4) / 2)


def test_several_numbers_have_a_squared_error():
    loss = distillation_loss(STUDENT, STUDENT + 5, temperature=3.0, problem="regression")
    assert loss.item() == pytest.approx(25)


def test_several_labels_are_compared_each_by_itself():
    """The gradient of the distance is that of binary cross-entropy with the teacher's probabilities."""
    student, other = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    loss = distillation_loss(student, TEACHER, temperature=1.0, problem="multi_label_classification")
    loss.backward()
    functional.binary_cross_entropy_with_logits(other, TEACHER.sigmoid()).backward()
    torch.testing.assert_close(student.grad, other.grad)
    equal = distillation_loss(TEACHER, TEACHER, temperature=2.0, problem="multi_label_classification")
    assert equal.item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("problem", "labels", "expected"),
    [
        ("regression", None, "regression"),
        (None, torch.ones(2, 3), "multi_label_classification"),
        (None, torch.tensor([0, 1]), None),
    ],
)
def test_the_problem_is_that_of_the_model(problem, labels, expected):
    loss = Distillation(weight=1.0).loss(
        torch.tensor(0.0), {"logits": STUDENT}, {"logits": TEACHER}, labels, problem=problem
    )
    assert torch.equal(loss, distillation_loss(STUDENT, TEACHER, temperature=2.0, problem=expected))


def test_logits_of_tokens_are_classes_whatever_an_earlier_task_was():
    student, teacher = STUDENT[None], TEACHER[None]
    loss = Distillation(weight=1.0).loss(
        torch.tensor(0.0), {"logits": student}, {"logits": teacher}, None, problem="regression"
    )
    assert torch.equal(loss, distillation_loss(student, teacher, temperature=2.0))


def test_loss_is_the_mixture():
    loss = Distillation(weight=0.3, temperature=2.0).loss(
        torch.tensor(4.0), {"logits": STUDENT}, {"logits": TEACHER}, torch.tensor([0, 1])
    )
    torch.testing.assert_close(loss, 0.7 * torch.tensor(4.0) + 0.3 * reference_loss(STUDENT, TEACHER, 2.0))


def test_positions_without_a_label_are_ignored():
    labels = torch.tensor([[2, -100], [-100, 1]])
    student, teacher = torch.stack([STUDENT, STUDENT]), torch.stack([TEACHER, TEACHER])
    loss = Distillation(weight=1.0, temperature=1.0).loss(
        torch.tensor(0.0), {"logits": student}, {"logits": teacher}, labels
    )
    torch.testing.assert_close(loss, reference_loss(STUDENT, TEACHER, 1.0))


def test_start_and_end_logits_are_averaged():
    answers = {"start_logits": STUDENT, "end_logits": TEACHER}, {"start_logits": TEACHER, "end_logits": TEACHER}
    loss = Distillation(weight=1.0, temperature=1.0).loss(torch.tensor(0.0), *answers, None)
    torch.testing.assert_close(loss, reference_loss(STUDENT, TEACHER, 1.0) / 2)


def test_half_precision_logits_are_compared_in_single():
    loss = distillation_loss(STUDENT.bfloat16(), TEACHER.bfloat16(), temperature=1.0)
    assert loss.dtype == torch.float32
    assert loss > 0


def test_without_a_position_to_count_the_distance_is_zero():
    labels = torch.full((2, 2), -100)
    student, teacher = torch.stack([STUDENT, STUDENT]), torch.stack([TEACHER, TEACHER])
    assert Distillation(weight=1.0).loss(torch.tensor(torch.nan), {"logits": student}, {"logits": teacher}, labels) == 0


def test_distance_of_hidden_states_is_relative_to_the_teacher_and_leaves_out_padding():
    teacher = torch.randn(2, 3, 4)
    student = teacher * torch.tensor([1.5, 1.0, 9.0]).view(1, 3, 1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert hidden_loss(student, teacher, counted=mask).item() == pytest.approx((0.25 / 2 + 0.25) / 2)
    # Whatever the size of the states, and in half precision, too.
    assert hidden_loss(1e4 * student, 1e4 * teacher, counted=mask).item() == pytest.approx(0.375 / 2)
    assert hidden_loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


def test_hidden_states_are_added_to_the_mixture_by_layer():
    teacher = torch.ones(1, 2, 4)
    answers = {"logits": STUDENT, "hidden_states": (teacher, teacher, teacher)}
    outputs = {"logits": STUDENT, "hidden_states": (teacher, 2 * teacher, teacher)}
    distillation = Distillation(weight=0.25, hidden_weight=3.0)
    loss = distillation.loss(torch.tensor(4.0), outputs, answers, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(0.75 * 4 + 3.0 * 1 / 3)


@pytest.mark.parametrize("present", [[0, 2, 3], [1, 3], [2, 3], [0, 1]])
def test_a_layer_that_has_left_passes_its_input_on(present):
    generator = torch.Generator().manual_seed(0)
    teacher, own = (torch.randn(5, 1, 2, 4, generator=generator) for _ in range(2))
    passed = [0]
    for number in range(4):
        passed.append(number + 1 if number in present else passed[-1])
    # A model normalizes the state after its last layer, so that those after later layers are not compared.
    known = [number for number in range(5) if number == 4 or passed[number] != passed[4]]
    expected = torch.stack([hidden_loss(own[passed[number]], teacher[number]) for number in known]).mean()
    states = {"hidden_states": [own[0], *(own[number + 1] for number in present)]}, {"hidden_states": list(teacher)}
    distillation = Distillation(weight=0.0, hidden_weight=1.0)
    layers = {"layers": present}
    torch.testing.assert_close(distillation.loss(torch.tensor(0.0), *states, None, layers=layers), expected)
    # If nobody knows which have left, the first and the last state are compared.
    ends = torch.stack([hidden_loss(states[0]["hidden_states"][end], teacher[end]) for end in (0, -1)]).mean()
    torch.testing.assert_close(distillation.loss(torch.tensor(0.0), *states, None), ends)


COUNTED = torch.tensor([[True, False, True], [True, True, False]])


def logits(seed, dtype=torch.float32):
    return torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("chunk", [1, 14, 2**20])
@pytest.mark.parametrize("counted", [None, COUNTED], ids=["all", "some"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient_are_those_of_torch(monkeypatch, chunk, counted, temperature):
    monkeypatch.setattr(distillation, "_CHUNKS", {"cpu": chunk})
    ours, reference = logits(0).requires_grad_(), logits(0).requires_grad_()
    taken = torch.ones(2, 3, dtype=torch.bool) if counted is None else counted
    expected = functional.kl_div(
        (reference[taken] / temperature).log_softmax(-1),
        (logits(1)[taken] / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    found = softmax_divergence(ours, logits(1), temperature=temperature, counted=counted)
    torch.testing.assert_close(found, expected)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, reference.grad)


def test_halves_are_compared_in_single_and_have_gradients_in_half():
    ours = logits(0, torch.bfloat16).requires_grad_()
    found = softmax_divergence(ours, logits(1, torch.bfloat16))
    found.backward()
    single = ours.detach().float().requires_grad_()
    softmax_divergence(single, logits(1, torch.bfloat16).float()).backward()
    assert found.dtype == torch.float32
    assert torch.equal(ours.grad, single.grad.bfloat16())


def test_equal_logits_have_no_divergence_and_no_gradient():
    ours = logits(0).requires_grad_()
    found = softmax_divergence(ours, logits(0))
    found.backward()
    assert found == 0
    assert not ours.grad.any()
