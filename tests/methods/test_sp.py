import numpy as np
import pytest
import torch

from kdbench.methods import SimilarityPreserving, similarity_preserving
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def normalised_gram(maps):
    images = len(maps)
    gram = np.array([[float((maps[i] * maps[j]).sum()) for j in range(images)] for i in range(images)])
    for row in gram:
        row /= np.sqrt((row**2).sum())
    return gram


class TestSimilarityPreserving(LossTests):
    method = SimilarityPreserving

    def inputs(self, draw):
        # Widths and sizes differ between the sides: only the numbers of images agree.
        return [draw(4, 3, 2, 2), draw(4, 5, 1, 1)], [draw(4, 2, 3, 3), draw(4, 7, 2, 2)]

    def loss(self, student, teacher):
        return similarity_preserving(student, teacher)

    def reference(self, student, teacher):
        return sum(
            ((normalised_gram(s) - normalised_gram(t)) ** 2).sum() / len(s) ** 2
            for s, t in zip(student, teacher, strict=True)
        )


def test_case_by_hand():
    # Student (1, 0), (0, 1): G = identity. Teacher 1, 1: all entries 1/sqrt(2) after the rows are normalised.
    # Each row: (1 - r)^2 + r^2 = 2 - 2r with r = 1/sqrt(2); two rows over B^2 = 4: 1 - r.
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(2, 2, 1, 1)
    assert float(similarity_preserving([student], [torch.ones(2, 1, 1, 1)])) == pytest.approx(1 - 0.5**0.5, rel=1e-6)


def test_stages_are_added_not_averaged():
    student, teacher = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    once, twice = (similarity_preserving([student] * n, [teacher] * n) for n in (1, 2))
    assert float(twice) == pytest.approx(2 * float(once), rel=1e-5)


def test_an_image_without_activations_has_a_moderate_gradient():
    # F.normalize multiplies the gradient of a row of zeros by 1e12.
    student = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    student[1] = 0
    student.requires_grad_()
    loss = similarity_preserving([student], [torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))])
    loss.backward()
    assert bool(loss.isfinite())
    assert float(student.grad.abs().max()) < 10


def test_large_half_precision_maps_do_not_overflow():
    student = torch.full((4, 64, 8, 8), 6e4, dtype=torch.float16)
    assert float(similarity_preserving([student], [student])) == pytest.approx(0, abs=1e-12)


def test_wrong_numbers_of_maps_are_an_error():
    one = torch.ones(2, 1, 1, 1)
    with pytest.raises(ValueError, match="1 student maps and 2 teacher maps"):
        similarity_preserving([one], [one, one])


def test_yaml_has_the_documented_defaults():
    params = build_method("sp").config.method.params
    assert (params.ce_weight, params.kd_weight, params.pairs) == (1, 3000, None)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("student=resnet8", "teacher=resnet18"),
        ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
        ("method.ce_weight=0.5", "method.kd_weight=7", "method.pairs={layer1: layer2, layer3: layer3}"),
    ],
)
def test_total_is_the_weighted_sum_and_reaches_the_student(overrides):
    built = build_method("sp", *overrides, batch_size=8)
    terms = built.step().terms
    params = built.config.method.params
    assert all(bool(term.isfinite()) for term in terms.values())
    expected = params.ce_weight * terms["ce"] + params.kd_weight * terms["kd"]
    assert float(terms["total"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    terms["kd"].backward()
    assert sum(float(p.grad.abs().sum()) for p in built.student.parameters() if p.grad is not None) > 0


def test_maps_of_different_sizes_are_compared_without_pooling():
    built = build_method("sp", "method.pairs={layer2: layer3}")
    assert built.method.requires.whole_batch
    own, target = (
        built.student(built.batch.images).features["layer2"].detach(),
        built.teacher(built.batch).features["layer3"],
    )
    assert own.shape[2:] != target.shape[2:]
    assert float(built.step().terms["kd"].detach()) == pytest.approx(
        float(similarity_preserving([own], [target])), rel=1e-5
    )


def test_the_default_is_the_last_maps():
    built = build_method("sp", "teacher=resnet18")
    assert (built.method.requires.student_stages, built.method.requires.teacher_stages) == (("layer3",), ("layer4",))
