import math

import numpy as np
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import SimpleRecipeDistillation, logit_kd, projected_log_correlation, projected_log_sum
from kdbench.methods.base import NO_TEACHER
from tests.conftest import rest_wide
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

PAIRS = {
    "default": (),
    "other widths": ("student=resnet8", "teacher=resnet18"),
    "tokens": ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
}


def columns(values, eps):
    """Standardise column by column with the mean of squared deviations as variance."""
    result = np.empty_like(values)
    for d in range(values.shape[1]):
        mean = sum(values[:, d]) / len(values)
        variance = sum((value - mean) ** 2 for value in values[:, d]) / len(values)
        result[:, d] = (values[:, d] - mean) / (math.sqrt(variance + eps) or 1.0)  # a constant column: zeros
    return result


class TestProjectedLogSum(LossTests):
    method = SimpleRecipeDistillation
    settings = ({"exponent": 4.0}, {"exponent": 1.0}, {"exponent": 2.5})

    def inputs(self, draw):
        return [draw(6, 5)], [2 * draw(6, 5) + 1]

    def loss(self, student, teacher, exponent):
        return projected_log_sum(student[0], teacher[0], exponent)

    def reference(self, student, teacher, exponent):
        a, b = columns(student[0], 1e-4), columns(teacher[0], 1e-4)
        return math.log(sum(abs(a[index] - b[index]) ** exponent for index in np.ndindex(a.shape)))


class TestProjectedLogCorrelation(LossTests):
    method = SimpleRecipeDistillation

    def inputs(self, draw):
        return [draw(6, 5)], [2 * draw(6, 5) + 1]

    def loss(self, student, teacher):
        return projected_log_correlation(student[0], teacher[0])

    def reference(self, student, teacher):
        a, b = columns(student[0], 0), columns(teacher[0], 0)
        correlations = [sum(a[:, d] * b[:, d]) / len(a) for d in range(a.shape[1])]
        return math.log(sum((value - 1) ** 4 for value in correlations) + 1e-5)


def test_log_sum_by_hand():
    # Columns (1, -1) and (-1, 1) have variance 1: both standardised to +-0.99995, differences 1.9999 with either sign.
    # log(2 * 1.9999^4) = log 2 + 4 log 1.9999 = 0.6931 + 2.7724 = 3.4655.
    student, teacher = torch.tensor([[1.0], [-1.0]]), torch.tensor([[-1.0], [1.0]])
    assert float(projected_log_sum(student, teacher, 4.0)) == pytest.approx(3.4655, abs=1e-4)


def test_log_correlation_by_hand():
    # Column 1 has correlation 1, column 2 has -1: (1 - 1)^4 + (-1 - 1)^4 = 16, log 16 = 2.7726.
    student = torch.tensor([[1.0, 1.0], [3.0, 2.0]])
    teacher = torch.tensor([[0.0, 5.0], [7.0, 4.0]])
    assert float(projected_log_correlation(student, teacher)) == pytest.approx(2.7726, abs=1e-4)


def test_the_log_sum_is_below_zero_for_close_embeddings():
    teacher = torch.randn(8, 4, dtype=torch.float64)
    assert float(projected_log_sum(teacher + 1e-3 * torch.randn_like(teacher), teacher, 4.0)) < 0


@pytest.mark.parametrize("exponent", [1.0, 4.0])
@pytest.mark.parametrize("images", [8, 1])
def test_identical_embeddings_and_single_images_have_a_finite_value_and_no_gradient(images, exponent):
    student = torch.randn(images, 4, requires_grad=True)
    loss = projected_log_sum(student, student.detach().clone(), exponent)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(student.grad, torch.zeros(images, 4))


def test_the_sum_is_no_mean():
    student, teacher = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    once = float(projected_log_sum(student, teacher, 4.0))
    twice = float(projected_log_sum(student.repeat(2, 1), teacher.repeat(2, 1), 4.0))
    assert twice == pytest.approx(once + math.log(2))


@pytest.mark.parametrize("loss", [lambda s, t: projected_log_sum(s, t, 4.0), projected_log_correlation])
def test_scaling_and_shifting_projected_columns_changes_nothing(loss):
    student, teacher = 50 * torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    factors, shifts = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([9.0, -2.0, 0.0, 1.0]).double()
    assert float(loss(factors * student + shifts, teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-5)


@pytest.mark.parametrize("exponent", [1.0, 4.0, 16.0, 100.0])
@pytest.mark.parametrize("distance", [1e-6, 1e-2, 1e3])
def test_powers_neither_overflow_nor_underflow_in_float32(exponent, distance):
    teacher = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    student = (teacher + distance * torch.rand(64, 16)).requires_grad_()
    loss = projected_log_sum(student, teacher, exponent)
    loss.backward()
    expected = float(projected_log_sum(student.detach().double(), teacher.double(), exponent))
    assert loss.item() == pytest.approx(expected, rel=0.05, abs=1.0)
    assert torch.isfinite(student.grad).all()
    assert student.grad.any()


def test_half_precision_embeddings_whose_fourth_powers_overflow_are_finite():
    student, teacher = torch.zeros(64, 4, dtype=torch.float16), torch.zeros(64, 4, dtype=torch.float16)
    student[0], teacher[1] = 6e4, 6e4
    for loss in (projected_log_sum(student, teacher, 16.0), projected_log_correlation(student, teacher)):
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)


def test_a_constant_column_counts_as_uncorrelated_without_gradient():
    student, teacher = torch.randn(8, 3), torch.randn(8, 3)
    teacher[:, 0] = 0
    student[:, 1] = 0
    student.requires_grad_()
    loss = projected_log_correlation(student, teacher)
    loss.backward()
    third = np.corrcoef(student.detach()[:, 2].numpy(), teacher[:, 2].numpy())[0, 1]
    assert loss.item() == pytest.approx(math.log(2 + (third - 1) ** 4 + 1e-5), rel=1e-4)
    assert torch.isfinite(student.grad).all()
    assert not student.grad[:, 0].any()


def test_defaults_are_those_of_the_resnet_setting():
    built = build_method("srd")
    config = built.config.method.params
    weights = (config.ce_weight, config.log_sum_weight, config.kl_weight, config.correlation_weight)
    assert weights == (1, 2, 1, 1)
    assert (config.exponent, config.variant, config.pairs) == (4, "paper", None)
    requires = built.method.requires
    assert requires.student_stages == requires.teacher_stages == ("pooled",)
    assert requires.teacher_logits
    assert requires.whole_batch


@pytest.mark.parametrize("overrides", rest_wide((pair,) for pair in PAIRS.values()), ids=PAIRS)
@pytest.mark.parametrize("variant", ["paper", "deit"])
def test_a_step_trains_every_parameter_of_the_projection(variant, overrides):
    own = "method.log_sum_weight=3" if variant == "paper" else "method.correlation_weight=5"
    weights = ("method.ce_weight=0.5", own, "method.kl_weight=7")
    built = build_method("srd", *overrides, *weights, f"method.variant={variant}")
    terms = built.step().terms
    name, weight = ("log_sum", 3) if variant == "paper" else ("log_correlation", 5)
    assert terms.keys() == {"total", "ce", name, "kl"}
    expected = 0.5 * terms["ce"].item() + weight * terms[name].item() + 7 * terms["kl"].item()
    assert terms["total"].item() == pytest.approx(expected, rel=1e-5)
    terms[name].backward()
    (projection,) = built.method.pairs.projections
    assert float(projection.weight.grad.abs().sum()) > 0
    assert projection.bias.grad is not None  # its gradient is 0: batch statistics remove any shift
    assert any(p.grad is not None and p.grad.any() for p in built.student.parameters())


@pytest.mark.parametrize("variant", ["paper", "deit"])
def test_the_method_projects_pooled_embeddings_and_compares_logits_at_temperature_1(variant):
    keys = ("method.exponent=3",) if variant == "paper" else ("method.variant=deit",)
    built = build_method("srd", "student=resnet8", "teacher=resnet18", *keys)
    output, target = built.student(built.batch.images), built.teacher(built.batch)
    (projection,) = built.method.pairs.projections
    assert projection.weight.shape == (512, 64)
    own = output.features["pooled"] @ projection.weight.T + projection.bias
    terms = built.step().terms
    if variant == "paper":
        expected = TestProjectedLogSum().reference(*as_arrays(own, target.features["pooled"]), exponent=3)
        assert terms["log_sum"].item() == pytest.approx(expected, rel=1e-4)
    else:
        expected = TestProjectedLogCorrelation().reference(*as_arrays(own, target.features["pooled"]))
        assert terms["log_correlation"].item() == pytest.approx(expected, rel=1e-4)
    assert terms["kl"].item() == pytest.approx(logit_kd(output.logits, target.logits, 1.0).item(), rel=1e-4)


def as_arrays(*embeddings):
    return [[values.detach().double().numpy()] for values in embeddings]


def test_batch_statistics_are_used_in_evaluation_mode_too():
    built = build_method("srd")
    output, target = built.student(built.batch.images), built.teacher(built.batch).select(built.method.requires)
    first, second = (
        built.method.train(mode)(output, [target], built.batch, None).terms["total"].item() for mode in (True, False)
    )
    assert first == second
    assert not list(built.method.buffers())


@pytest.mark.slow
def test_only_the_weights_of_the_variant_count_as_a_loss():
    nothing = ("method.ce_weight=0", "method.kl_weight=0")
    for keys in (
        ("method.log_sum_weight=0",),
        ("method.variant=deit", "method.correlation_weight=0"),
    ):
        with pytest.raises(ConfigError) as error:
            build_method("srd", *nothing, *keys)
        assert (error.value.code, error.value.key) == ("no_loss", "method.ce_weight")
    for keys in (("method.correlation_weight=0",), ("method.variant=deit", "method.exponent=3")):
        with pytest.raises(ConfigError) as error:
            build_method("srd", *keys)
        assert (error.value.code, error.value.key) == ("unused_key", keys[-1].partition("=")[0])


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("srd", ("method.log_sum_weight=0", "method.kl_weight=0")),
        ("at", ("method.kd_weight=0",)),
        ("logit", ("method.alpha=0",)),
    ],
)
def test_a_run_that_learns_from_the_labels_alone_says_so(method, keys):
    assert build_method(method, *keys).method.remarks == (NO_TEACHER,)
    assert NO_TEACHER not in build_method(method).method.remarks


def test_an_exponent_below_1_is_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("srd", "method.exponent=0.5")
    assert (error.value.code, error.value.key) == ("out_of_range", "method.exponent")
