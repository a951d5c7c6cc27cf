import math

import numpy as np
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import RelationalDistillation, relational_kd
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def relative_distances(embeddings):
    images = len(embeddings)
    distances = np.zeros((images, images))
    for i in range(images):
        for j in range(images):
            distances[i, j] = math.sqrt(sum((a - b) ** 2 for a, b in zip(embeddings[i], embeddings[j], strict=True)))
    return distances / distances[distances > 0].mean()


def cosine_at(embeddings, i, j, k):
    a, b = embeddings[j] - embeddings[i], embeddings[k] - embeddings[i]
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 0 else 0.0


class TestRelationalKD(LossTests):
    method = RelationalDistillation
    settings = (
        {"distance_weight": 25.0, "angle_weight": 50.0},
        {"distance_weight": 2.0, "angle_weight": 0.0},
        {"distance_weight": 0.0, "angle_weight": 3.0},
    )

    def inputs(self, draw):
        return [draw(5, 4)], [3 * draw(5, 6)]

    def loss(self, student, teacher, **setting):
        return relational_kd(student[0], teacher[0], **setting)

    def reference(self, student, teacher, distance_weight, angle_weight):
        (s,), (t,) = student, teacher
        images = range(len(s))
        d_s, d_t = relative_distances(s), relative_distances(t)
        distance = np.mean([huber(d_s[i, j] - d_t[i, j]) for i in images for j in images])
        angle = np.mean(
            [huber(cosine_at(s, i, j, k) - cosine_at(t, i, j, k)) for i in images for j in images for k in images]
        )
        return distance_weight * distance + angle_weight * angle


def test_distances_by_hand():
    # Student on a line at 0, 1, 4: distances 1, 3, 4, mean 8/3, so 3/8, 9/8, 12/8. Teacher: equilateral, all 1.
    # Differences -5/8, 1/8, 4/8; Huber 25/128, 1/128, 16/128; each pair twice, over 9 entries with the diagonal.
    student = torch.tensor([[0.0], [1.0], [4.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert float(relational_kd(student, teacher, 1.0, 0.0)) == pytest.approx(2 * 42 / 128 / 9, rel=1e-5)


def test_angles_by_hand():
    # Student on a line at 0, 1, 2: cosines at the ends 1, in the middle -1. Teacher equilateral: all 1/2.
    # Differences 1/2, -3/2, 1/2; Huber 1/8, 1, 1/8; (j, k) and (k, j), over 27 triplets; j = k gives 1 on both sides.
    student = torch.tensor([[0.0], [1.0], [2.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert float(relational_kd(student, teacher, 0.0, 1.0)) == pytest.approx(2 * 1.25 / 27, rel=1e-5)


def test_the_loss_ignores_rotation_translation_and_scale():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    assert float(relational_kd(0.3 * teacher @ rotation + 5, teacher, 25.0, 50.0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "embeddings", [torch.zeros(4, 3), torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 2, 3], [1, 0, 0]])]
)
def test_coinciding_embeddings_have_moderate_gradients(embeddings):
    # A square root has an infinite slope at 0, and F.normalize multiplies a gradient there by 1e12.
    student = embeddings.clone().requires_grad_()
    teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    loss = relational_kd(student, teacher, 25.0, 50.0)
    loss.backward()
    assert bool(loss.isfinite())
    assert float(student.grad.abs().max()) < 100


def test_coinciding_images_do_not_count_in_the_mean_distance():
    # Distances 0, 2, 2: the mean of the positive ones is 2, so that all are 0 or 1. A mean of 4/3 gives 1.5.
    student = torch.tensor([[0.0], [0.0], [2.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert float(relational_kd(student, teacher, 1.0, 0.0)) == pytest.approx(2 * 0.5 / 9, rel=1e-5)


def test_small_distances_far_from_the_origin_are_not_lost():
    # |a|^2 + |b|^2 - 2 a.b has an error of about 1e-1 here.
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert float(relational_kd(1000 + 0.125 * teacher, teacher, 25.0, 50.0)) == pytest.approx(0, abs=1e-9)


def test_yaml_has_the_documented_defaults():
    params = build_method("rkd").config.method.params
    assert (params.ce_weight, params.kd_weight, params.distance_weight, params.angle_weight) == (1, 1, 25, 50)
    assert params.pairs is None


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("student=resnet8", "teacher=resnet18"),
        ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
        ("method.ce_weight=0.5", "method.kd_weight=3", "method.angle_weight=0"),
    ],
)
def test_total_is_the_weighted_sum_and_reaches_the_student(overrides):
    built = build_method("rkd", *overrides, batch_size=8)
    terms = built.step().terms
    params = built.config.method.params
    assert all(bool(term.isfinite()) for term in terms.values())
    expected = params.ce_weight * terms["ce"] + params.kd_weight * terms["kd"]
    assert float(terms["total"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    terms["kd"].backward()
    assert sum(float(p.grad.abs().sum()) for p in built.student.parameters() if p.grad is not None) > 0


def test_embeddings_are_the_pooled_features_by_default():
    built = build_method("rkd")
    assert (built.method.requires.student_stages, built.method.requires.teacher_stages) == (("pooled",), ("pooled",))
    assert built.method.requires.whole_batch
    own = built.student(built.batch.images).features["pooled"].detach()
    target = built.teacher(built.batch).features["pooled"]
    assert float(built.step().terms["kd"].detach()) == pytest.approx(
        float(relational_kd(own, target, 25.0, 50.0)), rel=1e-5
    )


def test_terms_of_several_pairs_are_added():
    both, one, other = (
        float(build_method("rkd", f"method.pairs={pairs}").step().terms["kd"].detach())
        for pairs in ("{layer2: layer2, layer3: layer3}", "{layer2: layer2}", "{layer3: layer3}")
    )
    assert both == pytest.approx(one + other, rel=1e-4)


def test_weights_that_are_all_zero_are_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("rkd", "method.distance_weight=0", "method.angle_weight=0")
    assert (error.value.code, error.value.key) == ("no_loss", "method.distance_weight")
