"""Tests that the loss of every method has to pass: subclass `LossTests`, name the loss, its inputs and its reference.

The reference is written from the paper's formula in float64 NumPy, without looking at the implementation.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kdbench.methods import Method

Side = list[Tensor]


class LossTests:
    """Conformance of one loss. `inputs`, `loss` and `reference` are given by the subclass."""

    method: ClassVar[type[Method]]
    """Class whose `invariants` are checked."""
    settings: ClassVar[Sequence[dict[str, Any]]] = ({},)
    """Keyword arguments of `loss` and `reference` with which the tests are repeated."""
    half_tolerance: ClassVar[float] = 1e-4
    """Largest relative difference between the loss of half-precision inputs and its float64 value for the same."""

    def inputs(self, draw: Callable[..., Tensor]) -> tuple[Side, Side]:
        """Return tensors of student and teacher with the images first; draw(*shape) is standard normal, float64."""
        raise NotImplementedError

    def loss(self, student: Side, teacher: Side, **setting: Any) -> Tensor:
        """Return the public function's value."""
        raise NotImplementedError

    def reference(self, student: list[Any], teacher: list[Any], **setting: Any) -> float:
        """Return the value by the paper's formula; the tensors are float64 NumPy arrays."""
        raise NotImplementedError

    def reordered(self, side: Side, order: Tensor) -> Side:
        """Return the tensors of a side with the images in another order."""
        return [value[order] for value in side]

    # The tests

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "setting" in metafunc.fixturenames:
            names = ["-".join(f"{key}={value}" for key, value in one.items()) or "default" for one in self.settings]
            metafunc.parametrize("setting", self.settings, ids=names)
        if "invariant" in metafunc.fixturenames:
            metafunc.parametrize("invariant", self.method.invariants)

    def drawn(self) -> tuple[Side, Side]:
        generator = torch.Generator().manual_seed(0)
        return self.inputs(lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64))

    def expected(self, student: Side, teacher: Side, setting: dict[str, Any]) -> float:
        sides = [[value.detach().double().numpy() for value in side] for side in (student, teacher)]
        return float(self.reference(*sides, **setting))

    def test_it_equals_the_float64_reference(self, setting):
        student, teacher = self.drawn()
        measured = self.loss(student, teacher, **setting)
        assert measured.dtype == torch.float64
        assert measured.shape == ()
        assert float(measured) == pytest.approx(self.expected(student, teacher, setting), rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_narrow_inputs_are_accumulated_in_float32(self, setting, dtype):
        student, teacher = ([value.to(dtype) for value in side] for side in self.drawn())
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            measured = self.loss(student, teacher, **setting)
        assert measured.dtype == torch.float32
        expected = self.expected(student, teacher, setting)
        assert float(measured) == pytest.approx(expected, rel=self.half_tolerance, abs=1e-6)

    def test_its_gradient_is_that_of_finite_differences(self, setting):
        student, teacher = self.drawn()
        for value in student:
            value.requires_grad_()
        assert torch.autograd.gradcheck(lambda *own: self.loss(list(own), teacher, **setting), student)

    def test_the_gradient_reaches_the_student_and_never_the_teacher(self, setting):
        student, teacher = self.drawn()
        for value in (*student, *teacher):
            value.requires_grad_()
        self.loss(student, teacher, **setting).backward()
        assert all(float(value.grad.abs().sum()) > 0 for value in student)
        assert all(value.grad is None for value in teacher)

    def test_declared_invariant(self, setting, invariant):
        student, teacher = self.drawn()
        value = float(self.loss(student, teacher, **setting))
        if invariant == "zero_for_identical":
            student, value = [value.clone() for value in teacher], 0.0
        elif invariant == "batch_order":
            order = torch.randperm(len(student[0]), generator=torch.Generator().manual_seed(1))
            student, teacher = self.reordered(student, order), self.reordered(teacher, order)
        elif invariant == "logit_shift":
            student, teacher = [value + 3 for value in student], [value - 2 for value in teacher]
        elif invariant == "student_scale":
            student = [2.5 * value for value in student]
        elif invariant == "teacher_scale":
            teacher = [0.4 * value for value in teacher]
        else:
            pytest.fail(f"no test of the invariant {invariant}")
        assert float(self.loss(student, teacher, **setting)) == pytest.approx(value, rel=1e-6, abs=1e-8)
