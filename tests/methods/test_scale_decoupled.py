import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import kdbench
from kdbench.errors import ConfigError
from kdbench.methods import logit_kd, scale_decoupled_dkd, scale_decoupled_kd
from kdbench.methods.scale_decoupled import ScaleDecoupledDistillation, ScaleDecoupledDkd, pool_regions
from kdbench.runner.build import bind, build_learner, build_parts
from tests.conftest import NARROW, SMALL
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def softmax(row, temperature=1.0):
    e = np.exp((row - row.max()) / temperature)
    return e / e.sum()


def divergence(p_t, p_s):
    return sum(t * math.log(t / s) for t, s in zip(p_t, p_s, strict=True))


def plain(z_s, z_t, label, temperature):
    return divergence(softmax(z_t, temperature), softmax(z_s, temperature))


def decoupled(z_s, z_t, label, temperature, alpha, beta):
    p_s, p_t = softmax(z_s, temperature), softmax(z_t, temperature)
    binary = divergence((p_t[label], 1 - p_t[label]), (p_s[label], 1 - p_s[label]))
    s, t = (softmax(np.delete(z, label), temperature) for z in (z_s, z_t))
    return alpha * binary + beta * divergence(t, s)


class RegionTests(LossTests):
    """The teacher's second tensor gives the labels, its largest column: of most images the class that the teacher
    predicts for the whole map."""

    def inputs(self, draw):
        teacher = 3 * draw(6, 5, 4)
        return [3 * draw(6, 5, 4)], [teacher, teacher.mean(1) + draw(6, 4)]

    def loss(self, student, teacher, **setting):
        return self.function(student[0], teacher[0], teacher[1].detach().argmax(1), **setting)

    def weighted_mean(self, student, teacher, of_region, temperature, complementary_weight, **setting):
        values = []
        for z_s, z_t, scores in zip(student[0], teacher[0], teacher[1], strict=True):
            label = scores.argmax()
            for s, t in zip(z_s, z_t, strict=True):
                complementary = (t.argmax() == label) ^ (z_t[0].argmax() == label)
                weight = complementary_weight if complementary else 1.0
                values.append(weight * temperature**2 * of_region(s, t, label, temperature, **setting))
        return sum(values) / len(values)


class TestScaleDecoupledKd(RegionTests):
    method = ScaleDecoupledDistillation
    function = staticmethod(scale_decoupled_kd)
    settings = (
        {"temperature": 4.0, "complementary_weight": 2.0},
        {"temperature": 1.0, "complementary_weight": 0.5},
    )

    def reference(self, student, teacher, **setting):
        return self.weighted_mean(student, teacher, plain, **setting)


class TestScaleDecoupledDkd(RegionTests):
    method = ScaleDecoupledDkd
    function = staticmethod(scale_decoupled_dkd)
    settings = (
        {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "complementary_weight": 2.0},
        {"temperature": 1.0, "alpha": 0.5, "beta": 2.0, "complementary_weight": 3.0},
    )

    def reference(self, student, teacher, **setting):
        return self.weighted_mean(student, teacher, decoupled, **setting)


ONE = math.log(3.0)
"""Logits (ONE, 0) are probabilities (3/4, 1/4)."""


def test_case_by_hand():
    # Label 0. Teacher: right on the whole map, right in region 1, wrong in region 2, with probability 3/4 each time;
    # student: (1/2, 1/2) everywhere. KL = k = 3/4 ln(3/2) + 1/4 ln(1/2) in each. Mean of k, k and 2 k: 4/3 k.
    teacher = torch.tensor([[[ONE, 0.0], [ONE, 0.0], [0.0, ONE]]])
    student, k = torch.zeros(1, 3, 2), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(scale_decoupled_kd(student, teacher, torch.tensor([0]), 1.0, 2.0)) == pytest.approx(4 / 3 * k)
    # Label 1: the whole map and region 1 are wrong, region 2 is right.
    assert float(scale_decoupled_kd(student, teacher, torch.tensor([1]), 1.0, 2.0)) == pytest.approx(4 / 3 * k)
    # Two classes: the binary part is the whole divergence, and one other class has nothing to compare.
    dkd = scale_decoupled_dkd(student, teacher, torch.tensor([0]), 1.0, 0.5, 8.0, 2.0)
    assert float(dkd) == pytest.approx(0.5 * 4 / 3 * k)


def test_two_different_wrong_classes_are_not_complementary():
    teacher = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]]])
    student, label = torch.zeros(1, 2, 3), torch.tensor([2])
    weighted, unweighted = (float(scale_decoupled_kd(student, teacher, label, 1.0, w)) for w in (2.0, 1.0))
    assert weighted == unweighted


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_region_is_logit_kd(temperature):
    student, teacher = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64)
    labels = torch.randint(10, (8,))
    measured = scale_decoupled_kd(student[:, None], teacher[:, None], labels, temperature, 2.0)
    assert float(measured) == pytest.approx(float(logit_kd(student, teacher, temperature)), rel=1e-12)


def test_regions_are_averaged_not_summed():
    student, teacher = torch.randn(8, 5, 10, dtype=torch.float64), torch.randn(8, 5, 10, dtype=torch.float64)
    labels = teacher[:, 0].argmax(1)
    for function, weights in ((scale_decoupled_kd, (1.0,)), (scale_decoupled_dkd, (1.0, 8.0, 1.0))):
        regions = [
            float(function(student[:, r : r + 1], teacher[:, r : r + 1], labels, 2.0, *weights)) for r in range(5)
        ]
        assert float(function(student, teacher, labels, 2.0, *weights)) == pytest.approx(np.mean(regions))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_confident_predictions_stay_finite(dtype):
    student = torch.tensor([[[60.0, -60.0, 0.0]]], dtype=dtype, requires_grad=True)
    teacher, label = torch.tensor([[[-60.0, 60.0, 0.0]]], dtype=dtype), torch.tensor([0])
    loss = scale_decoupled_kd(student, teacher, label, 1.0, 2.0) + scale_decoupled_dkd(
        student, teacher, label, 1.0, 1.0, 8.0, 2.0
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_logits_without_regions_are_an_error():
    with pytest.raises(ValueError, match=r"student_logits are \[2, 3\]"):
        scale_decoupled_kd(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 1.0, 2.0)


# Regions


def test_regions_are_the_whole_map_and_then_cells_row_by_row():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Quadrants: (0 + 1 + 4 + 5) / 4 = 2.5, then 4.5, 10.5, 12.5.
    expected = [7.5, 2.5, 4.5, 10.5, 12.5, *range(16)]
    assert pool_regions(maps, [1, 2, 4]).flatten().tolist() == expected


def test_the_classifier_of_region_0_gives_the_networks_own_logits():
    maps, classifier = torch.randn(2, 8, 6, 6), torch.nn.Linear(8, 10)
    regions = classifier(pool_regions(maps, [1, 2]))
    assert regions.shape == (2, 5, 10)
    torch.testing.assert_close(regions[:, 0], classifier(maps.mean((2, 3))))


@pytest.mark.parametrize("side", [6, 3, 1])
def test_each_scale_is_pooled_from_the_map_itself(side):
    maps = torch.randn(2, 3, side, side)
    direct = F.adaptive_avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool_regions(maps, [1, 2, 4])[:, 1:5], direct)
    assert pool_regions(maps, [1, 2, 4]).shape == (2, 21, 3)


@pytest.mark.parametrize("scales", [[], [2], [1, 4, 2], [1, 1]])
def test_scales_that_do_not_ascend_from_1_are_an_error(scales):
    with pytest.raises(ValueError, match="they must ascend from 1"):
        pool_regions(torch.zeros(1, 1, 4, 4), scales)


def test_the_gradient_of_pooling_is_that_of_adaptive_pooling():
    for side in (8, 7, 3):
        maps = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(2, 21, 3, dtype=torch.float64)
        (own,) = torch.autograd.grad((pool_regions(maps, [1, 2, 4]) * weights).sum(), maps)
        pooled = torch.cat([F.adaptive_avg_pool2d(maps, n).flatten(2) for n in (1, 2, 4)], dim=2).transpose(1, 2)
        (expected,) = torch.autograd.grad((pooled * weights).sum(), maps)
        torch.testing.assert_close(own, expected)


# The methods


def values(terms):
    return {name: float(term.detach()) for name, term in terms.items()}


def test_the_defaults_are_those_of_the_source():
    sdd, dkd = (build_method(name, batch_size=2).method.config for name in ("sdd", "sdd_dkd"))
    assert (sdd.ce_weight, sdd.kd_weight, sdd.temperature, sdd.complementary_weight) == (0.1, 0.9, 4, 2)
    assert (dkd.ce_weight, dkd.kd_weight, dkd.temperature, dkd.complementary_weight) == (1, 1, 4, 2)
    assert (dkd.alpha, dkd.beta, dkd.ramp_epochs) == (1, 8, 20)
    assert sdd.scales == dkd.scales == [1, 2]


@pytest.mark.parametrize("method", ["sdd", "sdd_dkd"])
def test_what_it_requires(method):
    built = build_method(method, "teacher=resnet18", batch_size=2)
    requires = built.method.requires
    assert (requires.student_stages, requires.teacher_stages) == (("layer3",), ("layer4",))
    assert not requires.whole_batch
    assert not built.method.soft_labels
    assert built.method.inference_state() == {}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("teacher=resnet18", "method.scales=[1,2,4]"),
    ],
)
def test_the_total_is_the_weighted_sum(overrides):
    built = build_method("sdd", *overrides, batch_size=4)
    result = built.step()
    terms = values(result.terms)
    assert all(math.isfinite(value) for value in terms.values())
    assert terms["kd"] > 0
    assert terms["total"] == pytest.approx(0.1 * terms["ce"] + 0.9 * terms["kd"], rel=1e-6)
    result.terms["total"].backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in built.student.parameters())
    assert all(p.grad is None for p in built.teacher.network.parameters())


def test_the_kd_weight_of_sdd_dkd_ramps():
    built = build_method("sdd_dkd", "recipe.epochs=30", batch_size=4)
    for epoch, factor in ((0, 1 / 20), (9, 0.5), (19, 1.0), (25, 1.0)):
        terms = values(built.step(epoch).terms)
        assert terms["total"] == pytest.approx(terms["ce"] + factor * terms["kd"], rel=1e-5)


def test_the_logits_of_regions_are_the_classifiers_of_the_cells():
    built = build_method("sdd", "method.scales=[1,2]", batch_size=4)
    student, teacher = built.student(built.batch.images), built.teacher(built.batch)
    own, other = built.method.region_logits(student, teacher)
    assert own.shape == other.shape == (4, 5, 10)
    torch.testing.assert_close(own[:, 0], student.logits)
    for logits, maps, classifier in (
        (own, student.features["layer3"], built.student.body.fc),
        (other, teacher.features["layer3"], built.teacher.network.body.fc),
    ):
        torch.testing.assert_close(logits[:, 2], classifier(maps[:, :, :4, 4:].mean((2, 3))))


def test_one_scale_is_logit_distillation_and_so_is_its_gradient():
    sdd = build_method("sdd", "method.scales=[1]", batch_size=8)
    keys = ("method.alpha=null", "method.ce_weight=0.1", "method.kd_weight=0.9", "method.temperature=4")
    logit = build_method("logit", *keys, batch_size=8)
    logit.student.load_state_dict(sdd.student.state_dict())
    logit.teacher.network.load_state_dict(sdd.teacher.network.state_dict())
    logit.batch = sdd.batch
    for built in (sdd, logit):
        built.student.double().eval(), built.teacher.network.double(), built.method.double()
        built.batch = built.batch._replace(images=built.batch.images.double())
    totals = [built.step().terms["total"] for built in (sdd, logit)]
    torch.testing.assert_close(totals[0], totals[1])
    gradients = [
        torch.autograd.grad(total, list(built.student.parameters()))
        for total, built in zip(totals, (sdd, logit), strict=True)
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_gradient_reaches_the_students_classifier_through_the_regions():
    built = build_method("sdd", "method.ce_weight=0", "method.kd_weight=1", batch_size=4)
    classifier = built.student.body.fc
    built.step().terms["kd"].backward()
    assert bool(classifier.weight.grad.any())
    assert built.method.student_classifier[0] is classifier


def test_the_teachers_classifier_is_a_frozen_copy():
    built = build_method("sdd", batch_size=4)
    own, teachers = built.method.teacher_classifier, built.teacher.network.body.fc
    assert torch.equal(own.weight, teachers.weight)
    assert own.weight.data_ptr() != teachers.weight.data_ptr()
    assert not any(p.requires_grad for p in built.method.parameters())


def test_the_students_classifier_is_optimised_and_stored_once(small):
    config = small("method=sdd", "recipe.ema=0.9")
    parts = build_parts(config)
    teacher = build_method("sdd", *NARROW, batch_size=2).teacher.network
    bind(parts, [teacher])
    learner = build_learner(config, parts)
    optimised = [id(p) for group in learner.optimizer.param_groups for p in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in parts.student.parameters())
    assert set(learner.state_dict()["method"]) == {"teacher_classifier.weight", "teacher_classifier.bias"}


@pytest.mark.parametrize(("scale", "refused"), [(8, None), (9, "student"), (5, "teacher")])
def test_a_scale_finer_than_a_map_is_an_error(scale, refused):
    networks = ("teacher=resnet18",) if refused == "teacher" else ()  # its last map has 4 x 4 positions
    if refused is None:
        assert build_method("sdd", f"method.scales=[1,{scale}]", batch_size=2).step().terms["total"].isfinite()
        return
    with pytest.raises(ConfigError, match=f"the map of the {refused} has") as error:
        build_method("sdd", f"method.scales=[1,{scale}]", *networks)
    assert (error.value.code, error.value.key) == ("out_of_range", "method.scales")


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_network_whose_logits_are_no_linear_layer_of_a_pooled_stage_is_an_error(side):
    with pytest.raises(ConfigError, match=f"the {side}'s logits are not") as error:
        build_method("sdd", f"{side}=vit")  # its classifier reads the class token, not the mean of the tokens
    assert (error.value.code, error.value.key) == ("no_classifier", "method.pairs")


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        (["method.scales=[2]"], "out_of_range", "method.scales"),
        (["method.scales=[1,4,2]"], "out_of_range", "method.scales"),
        (["method.scales=[]"], "out_of_range", "method.scales"),
        (["method.temperature=0"], "out_of_range", "method.temperature"),
        (["method.complementary_weight=-1"], "out_of_range", "method.complementary_weight"),
        (["method.pairs={layer2: layer3}"], "no_classifier", "method.pairs"),
        (["method.pairs={layer3: layer2}"], "no_classifier", "method.pairs"),
        (["method.pairs={layer2: layer2, layer3: layer3}"], "mismatch", "method.pairs"),
    ],
)
def test_keys_out_of_range_are_errors(overrides, code, key):
    with pytest.raises(ConfigError) as error:
        build_method("sdd", *overrides)
    assert (error.value.code, error.value.key) == (code, key)


def test_a_run_trains_and_its_student_is_the_plain_network(tmp_path):
    result = kdbench.run(kdbench.compose([*SMALL, *NARROW, "method=sdd", f"output_root={tmp_path}"]))
    assert (result.metrics["kd"] > 0).all()
    assert kdbench.load_student(result.path).method is None
