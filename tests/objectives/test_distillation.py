"""The loss of distillation, and teachers that do not fit."""

import pytest
import torch

from gating import Distillation
from gating.objectives.distillation import check_teacher, distillation_loss
from tests.support.tiny_models import batch_for, build

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


@pytest.mark.parametrize(("arguments", "match"), [({"weight": 1.5}, "weight=1.5"), ({"temperature": 0.0}, "positive")])
def test_numbers_out_of_range_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Distillation(**arguments)


def test_a_teacher_with_other_classes_is_refused():
    student, teacher = build("bert"), build("bert")
    batch = batch_for(student)
    check_teacher(teacher, student, batch)
    teacher.config.id2label = {0: "yes", 1: "no"}
    with pytest.raises(ValueError, match="yes, no"):
        check_teacher(teacher, student, batch)
    assert student.training == teacher.training
