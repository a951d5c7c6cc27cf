import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

import kdbench
from kdbench.errors import ConfigError
from kdbench.methods import ContrastiveDistillation, noise_contrastive
from kdbench.methods.rows import rows_of_indices
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

NOT_SKIPPED, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


def nce(scores, normalizer, num_images):
    """Loss by the formula: one image after the other, one negative after the other."""
    noise = (scores.shape[1] - 1) / num_images
    total = 0.0
    for row in scores:
        x = [math.exp(score) / normalizer for score in row]
        total -= math.log(x[0] / (x[0] + noise))
        for value in x[1:]:
            total -= math.log(1 - value / (value + noise))
    return total / len(scores)


class TestNoiseContrastive(LossTests):
    method = ContrastiveDistillation
    settings = ({"log_normalizer": 2.0, "num_images": 50}, {"log_normalizer": -1.5, "num_images": 6})

    def inputs(self, draw):
        return [3 * draw(4, 7)], []

    def loss(self, student, teacher, **setting):
        return noise_contrastive(student[0], **setting)

    def reference(self, student, teacher, log_normalizer, num_images):
        return nce(student[0], math.exp(log_normalizer), num_images)


@pytest.fixture
def built():
    return build_method("crd", "method.negatives=40", batch_size=8)


def value(terms, name="kd"):
    return float(terms[name].detach())


def kd_and_negatives(built, seed=5):
    """Return the KD term of a step, and the negatives that it draws."""
    torch.manual_seed(seed)
    negatives = built.method.draw_negatives(built.batch.labels)
    torch.manual_seed(seed)
    return value(built.step().terms), negatives.numpy()


def embeddings_of(built):
    """Return the batch's embeddings of student and teacher in float64."""
    method = built.method
    with torch.no_grad():
        own = built.student(built.batch.images).features["pooled"]
        target = built.teacher(built.batch).features["pooled"]
    layers = ((own, method.student_embedding), (target, method.teacher_embedding))
    found = [(f.double() @ layer.weight.double().T + layer.bias.double()).detach().numpy() for f, layer in layers]
    return [f / np.sqrt((f**2).sum(1, keepdims=True)) for f in found]


def scores_of(built, negatives, temperature=0.07):
    """Return the scores [B, 1 + m] of both directions, in float64 loops: each side's anchors, the other side's bank."""
    method = built.method
    rows = [int(method.row_of[index]) for index in built.batch.indices]
    banks = [method.teacher_bank.double().numpy(), method.student_bank.double().numpy()]
    return [
        np.array(
            [
                [float(anchor @ bank[column]) / temperature for column in (row, *others)]
                for anchor, row, others in zip(anchors, rows, negatives, strict=True)
            ]
        )
        for anchors, bank in zip(embeddings_of(built), banks, strict=True)
    ]


# The loss


def test_case_by_hand():
    # m = 2, N = 4: noise 1/2. Z = 2: x = (1, 1/2, 1/6). D = 2/3, 1/2, 1/4: -ln(2/3 * 1/2 * 3/4) = ln 4.
    scores = torch.tensor([[2.0, 1.0, 1 / 3]]).log()
    assert float(noise_contrastive(scores, math.log(2.0), 4)) == pytest.approx(math.log(4), rel=1e-6)


def test_negatives_are_added_not_averaged():
    # One more negative of the same kind: with N adapted so that m / N stays, its term is added.
    one, two = (float(noise_contrastive(torch.zeros(1, 1 + m), 0.0, 2 * m)) for m in (1, 2))
    assert two - one == pytest.approx(math.log(3), rel=1e-5)  # D(1) = 1 / (1 + 1/2), so -ln(1 - D) = ln 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_scores_have_finite_values_and_gradients(dtype):
    scores = torch.tensor([[-1000.0, 1000.0, 0.0]], dtype=dtype, requires_grad=True)  # exp(1000) has no float32
    loss = noise_contrastive(scores, 0.0, 100)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2000, rel=0.01)
    assert bool(scores.grad.isfinite().all())


def test_both_directions_equal_the_float64_reference(built):
    kd, negatives = kd_and_negatives(built)
    expected = 0.0
    for scores in scores_of(built, negatives):
        expected += nce(scores, np.exp(scores).mean() * 200, 200)
    assert kd == pytest.approx(expected, rel=1e-4)


def gradient_of_student_embedding(built):
    built.method.zero_grad()
    torch.manual_seed(5)
    built.step().terms["kd"].backward()
    return built.method.student_embedding.weight.grad.clone()


def test_anchors_are_compared_with_the_bank_of_the_other_side(built):
    plain = gradient_of_student_embedding(built)
    built.method.student_bank.mul_(-1)
    assert torch.equal(gradient_of_student_embedding(built), plain)
    built.method.teacher_bank.mul_(-1)
    assert not torch.allclose(gradient_of_student_embedding(built), plain)


def test_the_normaliser_of_the_first_batch_has_no_gradient(built):
    estimated = gradient_of_student_embedding(built)
    built.method.log_normalizers.copy_(built.method.pending.log_normalizers)
    built.method.normalized.fill_(True)
    assert torch.equal(gradient_of_student_embedding(built), estimated)


# Negatives


def uneven_context(built):
    """Return a context with classes of 60, 25, 10, 4 and 1 images, in mixed order, and three empty classes."""
    sizes = {1: 60, 4: 25, 0: 10, 9: 4, 7: 1}
    generator = torch.Generator().manual_seed(3)
    labels = torch.cat([torch.full((n,), c) for c, n in sizes.items()])[torch.randperm(100, generator=generator)]
    indices = torch.randperm(1000, generator=generator)[:100]
    return dataclasses.replace(built.context, labels=labels, indices=indices)


def test_negatives_are_uniform_over_the_images_of_other_classes(built):
    context = uneven_context(built)
    method = ContrastiveDistillation(built.config.method.params, context)
    label_of_row = torch.empty(100, dtype=torch.int64)
    label_of_row[method.row_of[context.indices]] = context.labels
    torch.manual_seed(0)
    for anchor in (0, 1, 4, 7, 9):
        drawn = method.draw_negatives(torch.full((1000,), anchor))
        assert drawn.shape == (1000, 40)
        counts = drawn.flatten().bincount(minlength=100)
        allowed = label_of_row != anchor
        assert int(counts[~allowed].sum()) == 0
        expected = 40_000 / int(allowed.sum())
        assert float((counts[allowed] - expected).abs().max()) < 5 * math.sqrt(expected)


def test_negatives_of_each_image_are_of_other_classes_than_its_own(built):
    method, labels = built.method, built.batch.labels
    label_of_row = torch.empty(200, dtype=torch.int64)
    label_of_row[method.row_of[built.context.indices]] = built.context.labels
    assert len(labels.unique()) > 2
    assert not bool((label_of_row[method.draw_negatives(labels)] == labels[:, None]).any())


def test_negatives_are_reproducible_for_a_seed(built):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(built.method.draw_negatives(built.batch.labels))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_each_training_image_has_a_row_of_its_own(built):
    rows = built.method.row_of[built.context.indices]
    assert torch.equal(rows.sort().values, torch.arange(200))


def test_an_index_that_is_no_training_image_has_no_row():
    rows = rows_of_indices(torch.tensor([5, 2]))
    assert rows.tolist() == [2, 2, 1, 2, 2, 0]
    with pytest.raises(IndexError):
        torch.zeros(2, 3)[rows[torch.tensor([4])]]


@pytest.mark.parametrize(("negatives", "valid"), [(40, True), (41, False)])
def test_more_negatives_than_images_of_other_classes_are_an_error(built, negatives, valid):
    params = dataclasses.replace(built.config.method.params, negatives=negatives)
    if valid:
        ContrastiveDistillation(params, uneven_context(built))
        return
    with pytest.raises(ConfigError, match="only 40 of the 100 training images are not of class 1") as error:
        ContrastiveDistillation(params, uneven_context(built))
    assert (error.value.code, error.value.key) == ("too_few_images", "method.negatives")


# State


def test_banks_are_drawn_from_the_generator_of_the_run(built):
    method, same, other = (
        built.method,
        *(build_method("crd", "method.negatives=40", seed=seed).method for seed in (0, 1)),
    )
    bound = math.sqrt(3 / 128)
    for name in ("student_bank", "teacher_bank"):
        bank = getattr(method, name)
        assert bank.shape == (200, 128)
        assert bound * 0.99 < float(bank.max()) <= bound
        assert -bound <= float(bank.min()) < -bound * 0.99
        assert torch.equal(bank, getattr(same, name))
        assert not torch.equal(bank, getattr(other, name))
    assert not torch.equal(method.student_bank, method.teacher_bank)


def test_a_step_moves_the_rows_of_its_images_towards_their_embeddings(built):
    method = built.method
    before = [method.student_bank.double().numpy().copy(), method.teacher_bank.double().numpy().copy()]
    built.step()
    expected = embeddings_of(built)
    method.finish_step(NOT_SKIPPED)
    rows = method.row_of[built.batch.indices].tolist()
    for bank, old, embeddings in zip((method.student_bank, method.teacher_bank), before, expected, strict=True):
        for i, row in enumerate(rows):
            mixed = 0.5 * old[row] + 0.5 * embeddings[i]
            assert np.allclose(bank[row].numpy(), mixed / math.sqrt((mixed**2).sum()), atol=1e-5)
        others = [row for row in range(200) if row not in rows]
        assert np.array_equal(bank.double().numpy()[others], old[others])


def test_forward_changes_no_state_before_the_step_is_finished(built):
    before = copy.deepcopy(built.method.state_dict())
    built.step().terms["total"].backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.method.state_dict().items())


def test_the_normaliser_of_the_first_batch_stays(built):
    method = built.method
    _, negatives = kd_and_negatives(built)
    first = [math.log(np.exp(scores).mean() * 200) for scores in scores_of(built, negatives)]
    method.finish_step(NOT_SKIPPED)
    assert method.log_normalizers.tolist() == pytest.approx(first, rel=1e-4)
    kept = method.log_normalizers.clone()
    kd, negatives = kd_and_negatives(built, seed=6)
    expected = sum(
        nce(scores, math.exp(log_z), 200) for scores, log_z in zip(scores_of(built, negatives), first, strict=True)
    )
    assert kd == pytest.approx(expected, rel=1e-4)
    method.finish_step(NOT_SKIPPED)
    assert torch.equal(method.log_normalizers, kept)


@pytest.mark.parametrize("broken", [False, True])
def test_a_skipped_step_leaves_banks_and_normaliser(built, broken):
    before = copy.deepcopy(built.method.state_dict())
    if broken:
        images = built.batch.images
        built.batch = built.batch._replace(images=images * torch.nan)
    built.step()
    built.method.finish_step(SKIPPED)
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.method.state_dict().items())
    if broken:
        return
    built.step()
    built.method.finish_step(NOT_SKIPPED)
    assert bool(built.method.normalized)
    assert not torch.equal(built.method.student_bank, before["student_bank"])


def test_the_next_step_after_loading_the_state_is_the_same(built):
    other = build_method("crd", "method.negatives=40", batch_size=8)
    built.step()
    built.method.finish_step(NOT_SKIPPED)
    other.method.student_bank.zero_()
    other.method.load_state_dict(copy.deepcopy(built.method.state_dict()))
    other.student.load_state_dict(built.student.state_dict())
    values = []
    for one in (built, other):
        torch.manual_seed(9)
        values.append(value(one.step().terms))
        one.method.finish_step(NOT_SKIPPED)
    assert values[0] == values[1]
    state = built.method.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.method.state_dict().items())


def test_buffers_that_a_step_need_not_copy_are_declared(built):
    assert {"student_bank", "teacher_bank"} <= set(built.method.deferred)
    assert set(built.method.deferred) == {name for name, _ in built.method.named_buffers()}


# The class


def test_yaml_has_the_documented_defaults():
    params = kdbench.compose(["method=crd"]).method.params
    assert (params.ce_weight, params.kd_weight, params.pairs) == (1, 0.8, None)
    assert (params.width, params.negatives, params.temperature, params.momentum) == (128, 16384, 0.07, 0.5)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("student=resnet8", "teacher=resnet18"),
        ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}", "method.kd_weight=0.3"),
    ],
)
def test_total_is_the_weighted_sum_and_reaches_the_student_and_both_embeddings(overrides):
    built = build_method("crd", "method.negatives=40", *overrides, batch_size=4)
    terms = built.step().terms
    params = built.config.method.params
    assert all(bool(term.isfinite()) for term in terms.values())
    assert value(terms, "total") == pytest.approx(value(terms, "ce") + params.kd_weight * value(terms), rel=1e-6)
    terms["kd"].backward()
    assert sum(float(p.grad.abs().sum()) for p in built.student.parameters() if p.grad is not None) > 0
    parameters = list(built.method.parameters())
    assert len(parameters) == 4
    assert all(float(p.grad.abs().sum()) > 0 for p in parameters)


def test_no_gradient_reaches_the_features_of_the_teacher(built):
    output = built.teacher(built.batch)
    features = {stage: values.clone().requires_grad_() for stage, values in output.features.items()}
    student = built.student(built.batch.images)
    built.method(student, [output._replace(features=features)], built.batch, None).terms["total"].backward()
    assert all(values.grad is None for values in features.values())


def test_losses_and_state_are_float32_under_autocast(built):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = built.step().terms
    built.method.finish_step(NOT_SKIPPED)
    assert terms["kd"].dtype == torch.float32
    assert built.method.student_bank.dtype == torch.float32
    assert bool(built.method.student_bank.isfinite().all())
    assert built.method.log_normalizers.dtype == torch.float32


def test_it_needs_whole_batches_and_integer_labels(built):
    assert built.method.requires.whole_batch
    assert not built.method.soft_labels


def test_it_is_built_without_training_images(built):
    empty = torch.zeros(0, dtype=torch.int64)
    context = dataclasses.replace(built.context, labels=empty, indices=empty)
    method = ContrastiveDistillation(built.config.method.params, context)
    assert method.student_bank.shape == (0, 128)


def test_several_pairs_are_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("crd", "method.negatives=40", "method.pairs={layer2: layer2, layer3: layer3}")
    assert (error.value.code, error.value.key) == ("mismatch", "method.pairs")
