import math

import numpy as np
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import Progress, wasserstein_features
from kdbench.methods.wasserstein_feature import WassersteinFeatureDistillation, cosine_decay
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


class TestWassersteinFeatures(LossTests):
    method = WassersteinFeatureDistillation
    settings = (
        {"mean_weight": 1.0, "grid": 1},
        {"mean_weight": 4.0, "grid": 2},
        {"mean_weight": 0.0, "grid": 1},
    )

    def inputs(self, draw):
        sides = [[draw(3, 2, 4, 4), 0.5 + 2 * draw(3, 3, 4, 2)] for _ in range(2)]
        return sides[0], sides[1]

    def loss(self, student, teacher, **setting):
        return wasserstein_features(student, teacher, **setting)

    def reference(self, student, teacher, mean_weight, grid):
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            images, channels, height, width = s.shape
            h, w = height // grid, width // grid
            for b in range(images):
                for row in range(grid):
                    for column in range(grid):
                        for c in range(channels):
                            (mean_s, std_s), (mean_t, std_t) = (
                                self.fit(side[b, c, row * h : (row + 1) * h, column * w : (column + 1) * w])
                                for side in (s, t)
                            )
                            distance = mean_weight * (mean_s - mean_t) ** 2 + (std_s - std_t) ** 2
                            total += distance / images / grid**2
        return total

    @staticmethod
    def fit(cell):
        values = [float(value) for value in np.asarray(cell).ravel()]
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) + 1e-5)


def test_case_by_hand():
    # Two channels of 1 x 2 positions. Student: (0, 2) and (1, 1); teacher: (4, 4) and (1, 1). Unbiased variances: 2, 0
    # and 0, 0. Channel 1: means 1 and 4, deviations sqrt(2) and 0; channel 2: no difference. Distance 9 w + 2.
    student = torch.tensor([[0.0, 2.0], [1.0, 1.0]]).reshape(1, 2, 1, 2)
    teacher = torch.tensor([[4.0, 4.0], [1.0, 1.0]]).reshape(1, 2, 1, 2)
    assert float(wasserstein_features([student], [teacher], 1.0, 1)) == pytest.approx(11, abs=0.02)
    assert float(wasserstein_features([student], [teacher], 4.0, 1)) == pytest.approx(38, abs=0.02)


def test_stages_and_channels_are_summed_and_images_and_cells_averaged():
    student, teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def value(change, grid=1):
        return float(wasserstein_features(change(student), change(teacher), 2.0, grid))

    once = value(lambda m: [m])
    assert value(lambda m: [m, m]) == pytest.approx(2 * once)
    assert value(lambda m: [m.repeat(1, 2, 1, 1)]) == pytest.approx(2 * once)
    assert value(lambda m: [m.repeat(2, 1, 1, 1)]) == pytest.approx(once)
    assert value(lambda m: [m.repeat(1, 1, 2, 2)], grid=2) == pytest.approx(once)


def test_the_order_of_positions_in_a_cell_does_not_matter():
    student, teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plain = float(wasserstein_features([student], [teacher], 2.0, 1))
    assert float(wasserstein_features([student.flip(2, 3)], [teacher], 2.0, 1)) == pytest.approx(plain)
    assert float(wasserstein_features([student.flip(2, 3)], [teacher], 2.0, 2)) != pytest.approx(
        float(wasserstein_features([student], [teacher], 2.0, 2))
    )


@pytest.mark.parametrize("student_is_larger", [True, False])
def test_the_larger_map_is_pooled_to_the_smaller(student_is_larger):
    large, small = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    pair = (large, small) if student_is_larger else (small, large)
    expected = float(wasserstein_features([pooled], [small], 2.0, 2))
    assert float(wasserstein_features([pair[0]], [pair[1]], 2.0, 2)) == pytest.approx(expected)


def test_constant_maps_have_finite_gradients():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    wasserstein_features([student], [torch.ones(2, 3, 4, 4)], 1.0, 1).backward()
    assert torch.isfinite(student.grad).all()


def test_narrow_maps_do_not_overflow():
    student, teacher = (torch.full((2, 3, 4, 4), v, dtype=torch.float16) for v in (300.0, -300.0))
    assert float(wasserstein_features([student], [teacher], 1.0, 1)) == pytest.approx(3 * 600**2)


def test_wrong_arguments_are_errors():
    one = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="1 student maps and 2 teacher maps"):
        wasserstein_features([one], [one, one], 1.0, 1)
    with pytest.raises(ValueError, match="grid is 3; it must divide height and width of the maps, 4 x 4"):
        wasserstein_features([one], [one], 1.0, 3)
    with pytest.raises(ValueError, match="grid is 4; a deviation needs cells of at least two positions"):
        wasserstein_features([one], [one], 1.0, 4)


# The decay


def decay(epoch, epochs, start=150):
    return cosine_decay(Progress(torch.tensor(float(epoch)), epochs), start).item()


def test_the_decay_begins_after_its_epoch_and_ends_at_0():
    # Epochs counted from 1: 150 is index 149; half of the 90 that remain is epoch 195, index 194.
    assert [decay(epoch, 240) for epoch in (0, 100, 149)] == [1, 1, 1]
    assert decay(150, 240) == pytest.approx((1 + math.cos(math.pi / 90)) / 2)
    assert decay(194, 240) == pytest.approx(0.5, abs=1e-6)
    assert decay(239, 240) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("epochs", [1, 100, 150])
def test_short_runs_do_not_decay(epochs):
    assert {decay(epoch, epochs) for epoch in range(epochs)} == {1}


def test_the_decay_follows_the_scalar_on_the_device():
    epoch = torch.tensor(0.0)
    progress = Progress(epoch, 10)
    assert cosine_decay(progress, 0).item() == pytest.approx((1 + math.cos(math.pi / 10)) / 2)
    epoch.fill_(9)
    assert cosine_decay(progress, 0).item() == pytest.approx(0, abs=1e-6)


# The method


def test_the_defaults_are_those_of_the_source_and_the_last_maps_are_compared():
    built = build_method("wkd_f", batch_size=4)
    keys = built.method.config
    assert (keys.ce_weight, keys.kd_weight, keys.mean_weight, keys.grid, keys.decay_from) == (1, 0.08, 4, 1, 150)
    assert built.method.requires.student_stages == built.method.requires.teacher_stages == ("layer3",)
    assert not built.method.requires.teacher_logits
    assert not built.method.requires.whole_batch


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("student=resnet8", "teacher=resnet18", "method.grid=2"),
        ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
    ],
)
def test_the_total_is_the_weighted_sum_and_the_projector_is_trained(overrides):
    built = build_method("wkd_f", *overrides, batch_size=4)
    result = built.step()
    terms = {name: value.item() for name, value in result.terms.items()}
    assert all(math.isfinite(value) for value in terms.values())
    assert terms["kd"] > 0
    assert terms["total"] == pytest.approx(terms["ce"] + 0.08 * terms["kd"], rel=1e-6)
    result.terms["total"].backward()
    trained = [*built.student.parameters(), *built.method.parameters()]
    assert all(parameter.grad is not None for parameter in trained)
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in built.method.parameters())


def test_the_weight_of_the_kd_term_decays():
    built = build_method("wkd_f", "method.decay_from=2", "recipe.epochs=6", batch_size=4)
    for epoch, factor in ((1, 1.0), (3, 0.5), (5, 0.0)):
        terms = {name: value.item() for name, value in built.step(epoch).terms.items()}
        assert terms["total"] == pytest.approx(terms["ce"] + 0.08 * factor * terms["kd"], rel=1e-5)


def test_inference_is_without_the_projector():
    assert build_method("wkd_f", batch_size=4).method.inference_state() == {}


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        (["method.grid=3"], "out_of_range", "method.grid"),
        (["method.grid=8"], "out_of_range", "method.grid"),
        (["method.grid=0"], "out_of_range", "method.grid"),
        (["method.mean_weight=-1"], "out_of_range", "method.mean_weight"),
        (["method.pairs={layer3: layer9}"], "unknown_stage", "method.pairs"),
    ],
)
def test_keys_out_of_range_are_errors(overrides, code, key):
    with pytest.raises(ConfigError) as error:
        build_method("wkd_f", *overrides)
    assert (error.value.code, error.value.key) == (code, key)
