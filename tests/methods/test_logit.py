import math

import numpy as np
import pytest
import torch

from kdbench.methods import logit_kd


def reference(student, teacher, temperature):
    """Compute section 2 of Hinton et al. in float64 numpy: T^2 times the mean over the batch of KL(p_t || p_s)."""

    def softmax(z):
        e = np.exp(z / temperature - (z / temperature).max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p_s, p_t = softmax(np.asarray(student, float)), softmax(np.asarray(teacher, float))
    return temperature**2 * float((p_t * np.log(p_t / p_s)).sum(1).mean())


def test_case_by_hand():
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(logit_kd(student, teacher, temperature=1.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_the_float64_reference(temperature, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (5 * torch.randn(16, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    measured = logit_kd(student.to(dtype), teacher.to(dtype), temperature)
    assert measured.dtype == dtype
    assert float(measured) == pytest.approx(
        reference(student, teacher, temperature), rel=1e-10 if dtype == torch.float64 else 2e-4
    )


def test_the_mean_is_over_the_batch_not_over_classes():
    student, teacher = torch.randn(1, 10), torch.randn(1, 10)
    once, thrice = (logit_kd(student.repeat(n, 1), teacher.repeat(n, 1), 4.0) for n in (1, 3))
    assert float(once) == pytest.approx(float(thrice), rel=1e-5)


def test_identical_logits_give_zero_and_a_constant_changes_nothing():
    logits = torch.randn(8, 10, dtype=torch.float64)
    assert float(logit_kd(logits, logits, 4.0)) == pytest.approx(0, abs=1e-14)
    assert float(logit_kd(logits + 7, logits, 4.0)) == pytest.approx(0, abs=1e-12)


def test_it_is_not_negative_and_not_symmetric():
    a, b = torch.randn(32, 10, dtype=torch.float64), torch.randn(32, 10, dtype=torch.float64) * 3
    assert float(logit_kd(a, b, 2.0)) > 0
    assert float(logit_kd(a, b, 2.0)) != pytest.approx(float(logit_kd(b, a, 2.0)), rel=1e-3)


def test_the_gradient_reaches_the_student_and_never_the_teacher():
    student, teacher = (torch.randn(4, 10, requires_grad=True) for _ in range(2))
    logit_kd(student, teacher, 4.0).backward()
    assert float(student.grad.abs().sum()) > 0
    assert teacher.grad is None


def test_the_gradient_is_temperature_times_difference_of_probabilities():
    student, teacher = torch.randn(4, 10, dtype=torch.float64, requires_grad=True), torch.randn(4, 10).double()
    logit_kd(student, teacher, 4.0).backward()
    expected = 4.0 * (torch.softmax(student.detach() / 4, 1) - torch.softmax(teacher / 4, 1)) / 4
    assert torch.allclose(student.grad, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_stay_finite_and_accumulate_in_float32(dtype):
    student, teacher = torch.tensor([[60.0, -60.0, 0.0]], dtype=dtype), torch.tensor([[-60.0, 60.0, 0.0]], dtype=dtype)
    measured = logit_kd(student, teacher, 1.0)
    assert measured.dtype == torch.float32
    assert float(measured) == pytest.approx(120.0)


def test_standardised_logits_ignore_scale_and_shift():
    student, teacher = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64)
    plain = logit_kd(student, teacher, 2.0, standardize=True)
    scaled = logit_kd(3 * student + 1, 0.5 * teacher - 2, 2.0, standardize=True)
    assert float(plain) == pytest.approx(float(scaled), rel=1e-5)


def test_standardised_equals_reference_on_z_scores():
    student, teacher = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64)
    s, t = student.numpy(), teacher.numpy()
    z_s, z_t = ((z - z.mean(1, keepdims=True)) / (1e-7 + z.std(1, ddof=1, keepdims=True)) for z in (s, t))
    assert float(logit_kd(student, teacher, 2.0, True)) == pytest.approx(reference(z_s, z_t, 2.0), rel=1e-10)
