"""Metrics between two models: by hand, against scipy and independent float64 code, and by what holds for any models."""

import math

import numpy as np
import pytest
from scipy import spatial, special, stats

from kdbench import metrics

SIZES = [(500, 10, 1.0), (200, 100, 4.0), (300, 2, 0.1), (50, 7, 1e3)]
"""Images, classes, and scale of random logits."""


def random_logits(images, classes, scale=1.0, seed=0, dtype=np.float32):
    return (scale * np.random.default_rng(seed).normal(size=(images, classes))).astype(dtype)


def pairs():
    return [
        pytest.param(random_logits(n, c, s, seed=0), random_logits(n, c, s, seed=1), id=f"{n}x{c}, scale {s:g}")
        for n, c, s in SIZES
    ]


def softmax(logits):
    return special.softmax(logits.astype(np.float64), axis=1)


def logs(*probabilities):
    return np.log(np.array(probabilities, dtype=np.float64))


REFERENCES = {
    "activation_distance": lambda a, b: np.mean(
        [spatial.distance.euclidean(p, q) for p, q in zip(softmax(a), softmax(b), strict=True)]
    ),
    "rank_disagreement": lambda a, b: np.mean(
        [
            one != other
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
            for one, other in zip(
                sorted(range(len(x)), key=lambda c: (-x[c], c)),
                sorted(range(len(y)), key=lambda c: (-y[c], c)),
                strict=True,
            )
        ]
    ),
    "prediction_disagreement": lambda a, b: np.mean(
        [x.index(max(x)) != y.index(max(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    ),
    "js_divergence": lambda a, b: np.mean(
        [spatial.distance.jensenshannon(p, q) ** 2 for p, q in zip(softmax(a), softmax(b), strict=True)]
    ),
}
UPPER = {
    "activation_distance": math.sqrt(2),
    "rank_disagreement": 1.0,
    "prediction_disagreement": 1.0,
    "js_divergence": math.log(2),
}


def test_there_is_a_reference_for_every_distance():
    assert metrics.DISTANCES.keys() == REFERENCES.keys() == UPPER.keys()


@pytest.mark.parametrize("name", metrics.DISTANCES)
@pytest.mark.parametrize(("a", "b"), pairs())
def test_a_distance_equals_an_independent_implementation(name, a, b):
    assert metrics.DISTANCES[name](a, b) == pytest.approx(float(REFERENCES[name](a, b)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", metrics.DISTANCES)
@pytest.mark.parametrize(("a", "b"), pairs())
def test_a_distance_is_symmetric_bounded_and_zero_for_the_same_model(name, a, b):
    distance = metrics.DISTANCES[name]
    assert distance(a, b) == distance(b, a)
    assert 0 <= distance(a, b) <= UPPER[name] + 1e-12
    assert distance(a, a) == distance(b, b.copy()) == 0


@pytest.mark.parametrize("name", metrics.DISTANCES)
@pytest.mark.parametrize(("a", "b"), pairs())
def test_a_distance_depends_neither_on_the_order_of_the_images_nor_on_a_constant(name, a, b):
    distance, order = metrics.DISTANCES[name], np.random.default_rng(3).permutation(len(a))
    assert distance(a[order], b[order]) == pytest.approx(distance(a, b), rel=1e-12)
    shifted = a.astype(np.float64) + np.arange(len(a))[:, None]
    assert distance(shifted, b) == pytest.approx(distance(a, b), rel=1e-9)


@pytest.mark.parametrize("name", metrics.DISTANCES)
def test_the_largest_distance_is_that_of_models_that_are_certain_of_different_classes(name):
    a, b = np.array([[1e4, 0.0]], dtype=np.float32), np.array([[0.0, 1e4]], dtype=np.float32)
    assert metrics.DISTANCES[name](a, b) == pytest.approx(UPPER[name])


@pytest.mark.parametrize("name", metrics.DISTANCES)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4, 1e30, 3e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_logits_of_any_size_are_finite(name, size, dtype):
    a, b = (np.array([[1.0, -1.0, 0.5], [0.3, 0.2, -0.9]]) * size).astype(dtype), np.zeros((2, 3), dtype)
    assert 0 <= metrics.DISTANCES[name](a, b) <= UPPER[name] + 1e-12


@pytest.mark.parametrize("name", metrics.DISTANCES)
def test_half_precision_is_compared_as_it_is(name):
    a, b = random_logits(100, 10, 3, dtype=np.float16), random_logits(100, 10, 3, seed=1, dtype=np.float16)
    distance = metrics.DISTANCES[name]
    assert distance(a, b) == distance(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("name", metrics.DISTANCES)
def test_kept_distributions_give_the_same_distances(name):
    a, b = random_logits(100, 10), random_logits(100, 10, seed=1)
    kept = metrics.Distribution(a), metrics.Distribution(b)
    assert metrics.DISTANCES[name](*kept) == metrics.DISTANCES[name](a, b) == metrics.DISTANCES[name](kept[0], b)


def test_activation_distance_by_hand():
    a, b = logs([0.5, 0.5], [0.9, 0.1]), logs([0.8, 0.2], [0.9, 0.1])
    assert metrics.activation_distance(a, b) == pytest.approx((math.hypot(0.3, 0.3) + 0) / 2)


def test_rank_disagreement_by_hand():
    a = np.array([[3.0, 2, 1, 0], [0, 1, 2, 3]])
    b = np.array([[3.0, 1, 2, 0], [0, 1, 2, 3]])  # places 2 and 3 of the first image differ, of 8 places
    assert metrics.rank_disagreement(a, b) == 2 / 8


def test_of_equal_logits_the_smaller_class_stands_first():
    tied, first, second = np.array([[1.0, 1.0, 0.0]]), np.array([[3.0, 2, 1]]), np.array([[2.0, 3, 1]])
    assert metrics.rank_disagreement(tied, first) == 0
    assert metrics.rank_disagreement(tied, second) == pytest.approx(2 / 3)
    assert metrics.prediction_disagreement(tied, first) == 0
    assert metrics.prediction_disagreement(tied, second) == 1


def test_many_ties_are_ordered_as_by_a_stable_sort():
    a = np.random.default_rng(0).integers(0, 4, size=(400, 100)).astype(np.float32)
    assert np.array_equal(metrics.Distribution(a).order, np.argsort(-a, axis=1, kind="stable"))


def test_the_order_is_that_of_scipys_ranks():
    a = random_logits(200, 12)
    order = metrics.Distribution(a).order
    ranks = stats.rankdata(-a, method="ordinal", axis=1)
    assert np.array_equal(np.take_along_axis(ranks, order, axis=1), np.tile(np.arange(1, 13), (200, 1)))


def test_classes_whose_probabilities_round_to_zero_are_still_ordered():
    a, b = np.array([[0.0, -2000.0, -3000.0]]), np.array([[0.0, -3000.0, -2000.0]])
    assert metrics.rank_disagreement(a, b) == pytest.approx(2 / 3)


def test_js_divergence_by_hand():
    a, b = logs([0.5, 0.5]), np.array([[1e3, 0.0]])  # m = (0.75, 0.25)
    kl_a = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert metrics.js_divergence(a, b) == pytest.approx((kl_a + math.log(1 / 0.75)) / 2)


@pytest.mark.parametrize(("a", "b"), pairs())
def test_kl_equals_scipys_relative_entropy(a, b):
    # of log probabilities, since those of scipy's softmax are 0 for large logits
    log_p, log_q = (special.log_softmax(x.astype(np.float64), axis=1) for x in (a, b))
    expected = np.mean([np.sum(np.exp(p) * (p - q)) for p, q in zip(log_p, log_q, strict=True)])
    assert metrics.kl_divergence(a, b) == pytest.approx(float(expected))
    if np.abs(a).max() < 100:
        assert metrics.kl_divergence(a, b) == pytest.approx(special.rel_entr(softmax(a), softmax(b)).sum() / len(a))
    assert metrics.kl_divergence(a, a) == 0


def test_chance_agreement_by_hand():
    a = np.eye(3)[[0, 0, 1, 2]]  # shares 1/2, 1/4, 1/4
    b = np.eye(3)[[0, 1, 1, 1]]  # shares 1/4, 3/4, 0
    assert metrics.chance_agreement(a, b) == 1 / 8 + 3 / 16


def test_independent_models_agree_as_often_as_chance_agreement_says():
    random, images = np.random.default_rng(0), 200_000
    shares = np.array([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]])
    a, b = (np.eye(3)[random.choice(3, images, p=own)] for own in shares)
    expected = metrics.chance_agreement(a, b)
    assert expected == pytest.approx(float(shares[0] @ shares[1]), abs=0.01)
    assert metrics.agreement(a, b) == pytest.approx(expected, abs=4 * math.sqrt(expected / images))


def test_the_agreement_matrix_holds_every_pair():
    logits = [random_logits(300, 10, seed=seed) for seed in range(5)]
    matrix = metrics.agreement_matrix(np.array([own.argmax(axis=1) for own in logits]))
    expected = [[metrics.agreement(a, b) for b in logits] for a in logits]
    assert matrix.tolist() == expected


def test_a_copy_agrees_fully():
    a = random_logits(100, 10)
    found = metrics.compare_logits(a, a.copy(), np.arange(100) % 10)
    assert all(getattr(found, name) == 0 for name in metrics.DISTANCES)
    assert (found.agreement, found.kl_a_b, found.kl_b_a) == (1, 0, 0)
    assert found.logits_cka == pytest.approx(1)
    assert found.by_correctness.correct_rate == found.by_correctness.incorrect_rate == 1
    assert found.a == found.b


def test_comparison_holds_what_the_functions_return():
    a, b, labels = random_logits(200, 10), random_logits(200, 10, seed=1), np.arange(200) % 10
    found = metrics.compare_logits(a, b, labels)
    assert found.kl_a_b == metrics.kl_divergence(a, b) != metrics.kl_divergence(b, a) == found.kl_b_a
    assert found.agreement == pytest.approx(metrics.agreement(a, b))
    assert found.chance_agreement == metrics.chance_agreement(a, b)
    assert found.logits_cka == metrics.linear_cka(a, b)
    assert found.by_correctness == metrics.agreement_by_correctness(b, a, labels)
    for own, logits in ((found.a, a), (found.b, b)):
        assert own.accuracy == metrics.accuracy(logits, labels)
        assert own.nll == metrics.nll(logits, labels)
        assert own.ece == pytest.approx(metrics.expected_calibration_error(logits, labels))
        assert own.brier == metrics.brier(logits, labels)


def test_constant_logits_have_no_alignment():
    assert metrics.compare_logits(np.ones((4, 3)), random_logits(4, 3), np.zeros(4, int)).logits_cka is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_are_given_as_their_logits(dtype):
    p = softmax(random_logits(100, 10, 5)).astype(dtype)
    assert np.allclose(special.softmax(metrics.logits_of(p), axis=1), p, rtol=1e-6)
    one = metrics.logits_of(np.array([[1.0, 0.0], [0.0, 1.0]], dtype))
    assert metrics.activation_distance(one[:1], one[1:]) == pytest.approx(math.sqrt(2))


BAD = [
    (np.zeros(3), "floats [N, C]"),
    (np.zeros((2, 3), int), "floats [N, C]"),
    (np.zeros((0, 3)), "one image and two classes"),
    (np.zeros((3, 1)), "one image and two classes"),
    (np.array([[0.0, np.nan], [np.inf, 0.0]]), "2 of 4 logits are not finite"),
    (np.zeros((4, 2)), "same images"),
    (np.zeros((2, 5)), "same images"),
]


@pytest.mark.parametrize("name", [*metrics.DISTANCES, "chance_agreement"])
@pytest.mark.parametrize(("bad", "message"), BAD)
def test_logits_that_cannot_be_compared_are_refused(name, bad, message):
    good = np.zeros((2, 2))
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        getattr(metrics, name)(good, bad)


@pytest.mark.parametrize(
    "bad", [np.array([[0.5, 0.6]]), np.array([[1.5, -0.5]]), np.array([0.5, 0.5]), np.array([[np.nan, 1.0]])]
)
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match="probabilities"):
        metrics.logits_of(bad)


def test_predicted_classes_must_be_whole_numbers():
    with pytest.raises(ValueError, match=r"integers \[M, N\]"):
        metrics.agreement_matrix(np.zeros((2, 3)))
