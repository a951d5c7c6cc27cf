import dataclasses
import math

import numpy as np
import pytest
import torch

import kdbench
from kdbench.errors import ConfigError
from kdbench.methods import category_cost, wasserstein_logits_kd
from kdbench.methods.wasserstein_logits import WassersteinLogitDistillation, group_by_class
from kdbench.models import fuse_batch_norm
from kdbench.runner.build import build_parts
from kdbench.teachers.cache import can_answer
from tests.conftest import NARROW, SMALL, rest_wide
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def softmax(row, temperature=1.0):
    e = np.exp((row - row.max()) / temperature)
    return e / e.sum()


def sinkhorn(p, q, M, regularization, iterations):
    """Return the plan between p and q, with rows and columns of one image's classes, in float64."""
    K = np.exp(-M / regularization)
    u = np.full(len(p), 1 / len(p))
    for _ in range(iterations):
        v = np.array([q[j] / (sum(K[i, j] * u[i] for i in range(len(p))) + 1e-8) for j in range(len(q))])
        u = np.array([p[i] / (sum(K[i, j] * v[j] for j in range(len(q))) + 1e-8) for i in range(len(p))])
    return u[:, None] * K * v[None, :]


def expected_loss(z_s, z_t, labels, cost, temperature, weight, regularization, iterations):
    total = 0.0
    for s, t, label in zip(z_s, z_t, labels, strict=True):
        kept = [c for c in range(len(s)) if c != label]
        M = np.maximum(cost[np.ix_(kept, kept)], 0) + 1e-8
        plan = sinkhorn(softmax(s[kept], temperature), softmax(t[kept], temperature), M, regularization, iterations)
        total += -softmax(t)[label] * math.log(softmax(s)[label]) + weight * (plan * M).sum()
    return total / len(z_s)


def make_cost(classes=5):
    """Return a cost that is not symmetric, with an entry below 0 as rounding may leave one."""
    cost = torch.rand(classes, classes, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.6
    cost.fill_diagonal_(-1e-7)
    return cost


class TestWassersteinLogits(LossTests):
    """The teacher's second tensor gives the labels: its largest column."""

    method = WassersteinLogitDistillation
    settings = (
        {"temperature": 8.0, "weight": 600.0, "regularization": 0.05, "iterations": 10},
        {"temperature": 1.0, "weight": 1.0, "regularization": 0.3, "iterations": 1},
        {"temperature": 2.0, "weight": 0.5, "regularization": 0.05, "iterations": 3},
    )

    def inputs(self, draw):
        return [3 * draw(4, 5)], [3 * draw(4, 5), draw(4, 5)]

    def loss(self, student, teacher, **setting):
        return wasserstein_logits_kd(student[0], teacher[0], teacher[1].detach().argmax(1), make_cost(), **setting)

    def reference(self, student, teacher, **setting):
        return expected_loss(student[0], teacher[0], teacher[1].argmax(1), make_cost().numpy(), **setting)


KEYS = {"temperature": 1.0, "weight": 1.0, "regularization": 0.05, "iterations": 10}


def loss(student, teacher, labels, cost, **changes):
    return wasserstein_logits_kd(student, teacher, labels, cost, **(KEYS | changes))


def test_case_by_hand():
    # Two classes: the only other class holds all of p and q, so the plan is 1 and costs M = 0.25 (up to 1e-8 and one
    # division by K + 1e-8). Label 0 with p_t = 3/4 and p_s = 1/2: 3/4 ln 2 + 2 * 0.25.
    student, teacher = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[math.log(3.0), 0.0]]).double()
    cost = torch.tensor([[0.0, 0.7], [0.7, 0.25]], dtype=torch.float64)
    measured = loss(student, teacher, torch.tensor([0]), cost, weight=2.0)
    assert float(measured) == pytest.approx(0.75 * math.log(2) + 0.5, rel=1e-5)


def test_three_classes_by_hand():
    # Label 2; the others have p = (1/2, 1/2) and q = (3/4, 1/4), costs 0 and 1, regularisation 1, one iteration.
    # K = [[1, k], [k, 1]], k = 1/e; u = 1/2: v = q / ((1 + k) / 2), u_i = (1/2) / (K v)_i with
    # K v = 2 / (1 + k) * (3/4 + k/4, 3k/4 + 1/4). The moved mass is u_0 k v_1 + u_1 k v_0:
    # k/2 * (1/4 / (3/4 + k/4) + 3/4 / (3k/4 + 1/4)) = k/2 * (1 / (3 + k) + 3 / (3k + 1)).
    k = math.exp(-1)
    student, teacher = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[math.log(3.0), 0.0, 0.0]]).double()
    cost = 1 - torch.eye(3, dtype=torch.float64)
    label = torch.tensor([2])
    both = [float(loss(student, teacher, label, cost, regularization=1.0, iterations=1, weight=w)) for w in (0.0, 1.0)]
    assert both[0] == pytest.approx(math.log(3) / 5)
    assert both[1] - both[0] == pytest.approx(k / 2 * (1 / (3 + k) + 3 / (3 * k + 1)), rel=1e-6)


def test_identical_logits_do_not_give_zero():
    logits = torch.randn(4, 5, dtype=torch.float64)
    labels = logits.argmax(1)
    transport = loss(logits, logits, labels, make_cost()) - loss(logits, logits, labels, make_cost(), weight=0.0)
    assert float(transport) > 1e-3


def test_the_weight_multiplies_the_transport_alone():
    student, teacher, labels = torch.randn(4, 5).double(), torch.randn(4, 5).double(), torch.tensor([0, 1, 2, 3])
    nothing, once, thrice = (float(loss(student, teacher, labels, make_cost(), weight=w)) for w in (0.0, 1.0, 3.0))
    assert nothing > 0
    assert thrice - nothing == pytest.approx(3 * (once - nothing))


def test_the_target_part_is_at_temperature_1_and_there_is_no_factor_of_the_squared_temperature():
    student, teacher, labels = torch.randn(4, 5).double(), torch.randn(4, 5).double(), torch.tensor([0, 1, 2, 3])

    def transport(factor, temperature):
        own, other = factor * student, factor * teacher
        whole, target = (
            float(loss(own, other, labels, make_cost(), weight=w, temperature=temperature)) for w in (1, 0)
        )
        return whole - target

    assert float(loss(student, teacher, labels, make_cost(), weight=0.0, temperature=8.0)) == pytest.approx(
        float(loss(student, teacher, labels, make_cost(), weight=0.0, temperature=1.0))
    )
    assert transport(4.0, 4.0) == pytest.approx(transport(1.0, 1.0))


def test_the_number_of_iterations_is_part_of_the_value():
    student, teacher, labels = (
        3 * torch.randn(4, 5).double(),
        3 * torch.randn(4, 5).double(),
        torch.tensor([0, 1, 2, 3]),
    )
    ten, hundred = (float(loss(student, teacher, labels, make_cost(), iterations=n)) for n in (2, 100))
    assert ten != pytest.approx(hundred, rel=1e-6)


def test_the_label_takes_no_part_in_the_transport():
    student, teacher, labels = torch.randn(4, 5).double(), torch.randn(4, 5).double(), torch.tensor([2, 2, 2, 2])
    other = make_cost()
    other[2], other[:, 2] = 0.9, 0.1
    before, after = (float(loss(student, teacher, labels, cost)) for cost in (make_cost(), other))
    assert before == pytest.approx(after, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_confident_predictions_and_narrow_costs_stay_finite(dtype):
    # Probabilities that float32 rounds to 0, and costs of which exp(-cost / 0.05) is subnormal in float16.
    student = torch.tensor([[200.0, -200.0, 0.0, 50.0]], dtype=dtype, requires_grad=True)
    cost = 0.6 * (1 - torch.eye(4)).to(dtype)
    value = loss(student, -student.detach(), torch.tensor([2]), cost, weight=600.0)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    # All mass moves from class 0 to class 1.
    assert float(value.detach()) == pytest.approx(600 * 0.6, rel=1e-2)


def test_the_weight_may_be_a_scalar_on_the_device():
    student, teacher, labels = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    expected = loss(student, teacher, labels, make_cost(), weight=3.0)
    torch.testing.assert_close(loss(student, teacher, labels, make_cost(), weight=torch.tensor(3.0)), expected)


def test_the_cost_gets_no_gradient():
    cost = make_cost().requires_grad_()
    loss(torch.randn(4, 5, requires_grad=True), torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), cost).backward()
    assert cost.grad is None


def test_wrong_arguments_are_errors():
    logits, labels = torch.zeros(1, 3), torch.tensor([0])
    with pytest.raises(ValueError, match=r"cost is \[2, 2\] and there are 3 classes"):
        loss(logits, logits, labels, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="iterations is 0"):
        loss(logits, logits, labels, torch.zeros(3, 3), iterations=0)


# The cost between classes


def expected_cost(features, sharpen):
    centred = [np.asarray(x, float) - np.asarray(x, float).mean(0) for x in features]
    cost = np.empty((len(centred), len(centred)))
    for i, X in enumerate(centred):
        for j, Y in enumerate(centred):
            cka = np.linalg.norm(Y.T @ X) ** 2 / (np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y))
            cost[i, j] = 1 - math.exp(-sharpen * (1 - cka))
    return cost


@pytest.mark.parametrize("shape", [(4, 9, 3), (3, 4, 6)])
@pytest.mark.parametrize("sharpen", [1.0, 2.0])
def test_the_cost_equals_the_float64_reference(shape, sharpen):
    features = torch.randn(shape, dtype=torch.float64) + 2
    measured = category_cost(features, sharpen)
    assert measured.dtype == torch.float64
    np.testing.assert_allclose(measured.numpy(), expected_cost(features.numpy(), sharpen), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(category_cost(list(features.float()), sharpen).numpy(), measured.numpy(), atol=1e-5)


def test_the_cost_by_hand():
    # One feature: the CKA is the squared correlation. (1, -1, 0) and (1, 0, -1): (1 / 2)^2 = 1/4; cost 1 - e^(-3/4).
    cost = category_cost(torch.tensor([[[1.0], [-1.0], [0.0]], [[6.0], [5.0], [4.0]]]), 1.0)
    expected = torch.tensor([[0.0, 1 - math.exp(-0.75)], [1 - math.exp(-0.75), 0.0]])
    torch.testing.assert_close(cost, expected)


def test_the_cost_depends_on_the_order_of_samples_within_a_class():
    features = torch.randn(3, 8, 4)
    changed = features.clone()
    changed[0] = changed[0].flip(0)
    assert not torch.allclose(category_cost(features, 1.0)[0, 1:], category_cost(changed, 1.0)[0, 1:])
    torch.testing.assert_close(category_cost(features, 1.0), category_cost(features.flip(1), 1.0))


def test_scale_and_mean_of_a_classes_features_do_not_matter():
    features = torch.randn(3, 8, 4, dtype=torch.float64)
    scales = torch.tensor([1.0, 5.0, 0.2])[:, None, None]
    torch.testing.assert_close(category_cost(features, 1.0), category_cost(scales * features + 3, 1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_and_constant_features_give_finite_costs(dtype):
    features = 100 * torch.randn(3, 8, 4)
    features[2] = 1
    cost = category_cost(features.to(dtype), 1.0)
    assert cost.dtype == torch.float32
    assert torch.isfinite(cost).all()


def test_features_of_different_shapes_are_an_error():
    with pytest.raises(ValueError, match="the same for all classes"):
        category_cost([torch.zeros(3, 2), torch.zeros(4, 2)], 1.0)
    with pytest.raises(ValueError, match=r"each must be \[n, d\]"):
        category_cost(torch.zeros(3, 2), 1.0)


# Grouping


def test_features_are_grouped_in_their_order_up_to_the_smallest_class():
    features = torch.arange(7.0)[:, None]
    for size in (7, 3, 1):
        grouped = group_by_class(features.split(size), torch.tensor([1, 0, 1, 0, 1, 2, 2]), 3)
        assert grouped[..., 0].tolist() == [[1, 3], [0, 2], [5, 6]]


def test_each_position_of_a_map_is_a_sample():
    maps = torch.arange(16.0).reshape(2, 2, 2, 2)  # image, channel, height, width
    grouped = group_by_class([maps], torch.tensor([1, 0]), 2)
    assert grouped[1].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert grouped[0].tolist() == [[8, 12], [9, 13], [10, 14], [11, 15]]


def test_a_class_without_images_is_an_error():
    with pytest.raises(ValueError, match="class 1 has no images"):
        group_by_class([torch.zeros(2, 3)], torch.tensor([0, 2]), 3)


# The method


def test_the_defaults_are_those_of_the_source():
    keys = build_method("wkd_l", images=60, batch_size=2).method.config
    assert (keys.ce_weight, keys.kd_weight, keys.weight, keys.temperature) == (1, 1, 600, 8)
    assert (keys.regularization, keys.iterations, keys.sharpen, keys.decay_from) == (0.05, 10, 1, 150)


def test_a_step_requires_logits_alone_so_that_the_logit_cache_answers():
    built = build_method("wkd_l", images=60, batch_size=2)
    requires = built.method.requires
    assert (requires.teacher_logits, requires.teacher_stages, requires.student_stages) == (True, (), ())
    assert requires.teacher_network_stages == ("layer3",)
    assert can_answer(requires, built.config.recipe)
    assert not built.method.soft_labels
    assert not built.teacher(built.batch).features


COST_OF = ((), ("teacher=resnet18",), ("teacher=vit", "method.pairs={layer3: layer2}"), ("student=vit",))


@pytest.mark.parametrize("overrides", rest_wide((overrides,) for overrides in COST_OF))
def test_the_cost_is_that_of_the_teachers_features_of_all_training_images(overrides):
    built = build_method("wkd_l", *overrides, images=60, batch_size=4)
    network, stage = built.teacher.network, built.method.stage
    with torch.no_grad():
        features = network(torch.cat(list(built.context.images()))).features[stage]
    if features.ndim == 3:  # tokens after a class token
        samples = [rows[1:] for rows in features]
    else:
        samples = [rows.flatten(1).T for rows in features]
    labels = built.context.labels.tolist()
    n = min(labels.count(c) for c in range(10))
    classes = [np.concatenate([s for s, y in zip(samples, labels, strict=True) if y == c][:n]) for c in range(10)]
    np.testing.assert_allclose(built.method.cost.numpy(), expected_cost(classes, 1.0), atol=2e-4)
    off_diagonal = built.method.cost[~torch.eye(10, dtype=torch.bool)]
    assert float(off_diagonal.min()) > 0.001


def test_an_embedding_gives_one_sample_per_image():
    built = build_method("wkd_l", "method.pairs={pooled: pooled}", images=60, batch_size=4)
    with torch.no_grad():
        embeddings = built.teacher.network(torch.cat(list(built.context.images()))).features["pooled"]
    expected = category_cost(group_by_class([embeddings], built.context.labels, 10), 1.0)
    torch.testing.assert_close(built.method.cost, expected, atol=1e-3, rtol=0)


def test_binding_leaves_the_teacher_and_random_numbers_as_they_are():
    built = build_method("wkd_l", images=60, batch_size=4)
    network, cost = built.teacher.network, built.method.cost.clone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    built.method.bind_teachers([network])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training
    assert torch.equal(built.method.cost, cost)
    assert torch.is_grad_enabled()


def test_a_teacher_with_narrow_weights_gives_about_the_same_cost():
    built = build_method("wkd_l", *NARROW, images=60, batch_size=4)
    cost = built.method.cost.clone()
    built.method.bind_teachers([fuse_batch_norm(built.teacher.network, torch.bfloat16)])
    assert built.method.cost.dtype == torch.float32
    assert not torch.equal(built.method.cost, cost)
    torch.testing.assert_close(built.method.cost, cost, atol=0.02, rtol=0)


def test_the_total_is_the_weighted_sum_and_the_gradient_reaches_the_student():
    built = build_method("wkd_l", "method.ce_weight=0.5", "method.kd_weight=2", images=60, batch_size=4)
    result = built.step()
    terms = {name: value.item() for name, value in result.terms.items()}
    assert all(math.isfinite(value) for value in terms.values())
    assert terms["total"] == pytest.approx(0.5 * terms["ce"] + 2 * terms["kd"], rel=1e-6)
    result.terms["total"].backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in built.student.parameters())
    assert not list(built.method.parameters())
    assert built.method.inference_state() == {}


def test_only_the_transport_decays():
    built = build_method("wkd_l", "method.decay_from=2", "recipe.epochs=6", images=60, batch_size=4)
    built.student.eval()
    kd = [built.step(epoch).terms["kd"].item() for epoch in (0, 1, 3, 5)]
    built.method.config = dataclasses.replace(built.method.config, weight=0.0)
    target = built.step().terms["kd"].item()
    assert kd[1] == pytest.approx(kd[0])
    assert kd[2] - target == pytest.approx((kd[0] - target) / 2, rel=1e-4)
    assert kd[3] == pytest.approx(target, rel=1e-4)


def test_the_images_are_those_of_the_training_in_order_and_without_augmentation(small):
    parts = build_parts(small("method=wkd_l"))
    images = torch.cat(list(parts.method.images()))
    train = parts.dataset.train
    expected = parts.dataset.normalise(train.images.permute(0, 3, 1, 2))
    assert torch.equal(images, expected)
    assert torch.equal(parts.method.labels, train.labels)
    assert torch.equal(torch.cat(list(parts.method.images())), images)  # again


def test_a_class_without_images_is_an_error_of_the_run():
    built = build_method("wkd_l", images=60, batch_size=2)
    context = dataclasses.replace(built.context, labels=built.context.labels.clamp(max=8))
    with pytest.raises(ConfigError, match="class 9 has no training images") as error:
        WassersteinLogitDistillation(built.config.method.params, context)
    assert (error.value.code, error.value.key) == ("invalid_data", "data")


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        (["method.regularization=0"], "out_of_range", "method.regularization"),
        (["method.iterations=0"], "out_of_range", "method.iterations"),
        (["method.weight=-1"], "out_of_range", "method.weight"),
        (["method.sharpen=-1"], "out_of_range", "method.sharpen"),
        (["method.pairs={layer3: layer9}"], "unknown_stage", "method.pairs"),
        (["method.pairs={layer2: layer2, layer3: layer3}"], "mismatch", "method.pairs"),
    ],
)
def test_keys_out_of_range_are_errors(overrides, code, key):
    with pytest.raises(ConfigError) as error:
        build_method("wkd_l", *overrides)
    assert (error.value.code, error.value.key) == (code, key)


def test_a_run_trains_with_the_logit_cache(tmp_path):
    keys = ("method=wkd_l", "teacher.cache=on", "data.augment=false", f"output_root={tmp_path}")
    result = kdbench.run(kdbench.compose([*SMALL, *NARROW, *keys]))
    assert result.summary.logit_cache is True
    assert (result.metrics["kd"] > 0).all()
