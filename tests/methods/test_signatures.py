"""Public losses have fixed arguments, so that they can be compared with independent implementations."""

import importlib
import inspect
import pkgutil
from collections import Counter

import pytest

from kdbench import methods

SIGNATURES = {
    "logit_kd": "student_logits, teacher_logits, temperature, standardize=False",
    "decoupled_kd": "student_logits, teacher_logits, labels, temperature, alpha, beta",
    "dist_kd": "student_logits, teacher_logits, temperature, beta, gamma",
    "transformed_teacher_matching": "student_logits, teacher_logits, exponent, weighted=False",
    "feature_kd": "student_maps, teacher_maps, beta, normalize='none'",
    "attention_transfer": "student_maps, teacher_maps, power=2",
    "neuron_selectivity": "student_maps, teacher_maps",
    "variational_information": "mean, target, log_scale",
    "hierarchical_context": "student_maps, teacher_maps",
    "relational_kd": "student_embeddings, teacher_embeddings, distance_weight, angle_weight",
    "similarity_preserving": "student_maps, teacher_maps",
    "correlation_congruence": "student_embeddings, teacher_embeddings",
    "probabilistic_transfer": "student_embeddings, teacher_embeddings",
    "refined_logits_kd": "student_logits, teacher_logits, labels, temperature, alpha, beta, confidence_temperature",
    "alpha_beta_kd": "student_logits, teacher_logits, temperature, alpha, beta",
    "multi_level_kd": (
        "student_logits, teacher_logits, temperatures, instance_weight=1.0, batch_weight=1.0, class_weight=1.0"
    ),
    "wasserstein_logits_kd": (
        "student_logits, teacher_logits, labels, cost, temperature, weight, regularization, iterations"
    ),
    "category_cost": "class_features, sharpen",
    "target_enhanced_kd": "student_logits, teacher_logits, labels, temperature, exponent",
    "scale_decoupled_kd": "student_logits, teacher_logits, labels, temperature, complementary_weight",
    "scale_decoupled_dkd": "student_logits, teacher_logits, labels, temperature, alpha, beta, complementary_weight",
    "projected_log_sum": "student_embeddings, teacher_embeddings, exponent",
    "projected_log_correlation": "student_embeddings, teacher_embeddings",
    "wasserstein_features": "student_maps, teacher_maps, mean_weight, grid",
}


def test_every_public_name_of_the_package_is_defined_in_one_file():
    files = [importlib.import_module(f"kdbench.methods.{file.name}") for file in pkgutil.iter_modules(methods.__path__)]
    defined = Counter(
        name
        for file in files
        for name, value in vars(file).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == file.__name__
    )
    assert [name for name, count in defined.items() if count > 1] == []
    assert set(SIGNATURES) <= set(dir(methods))


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_of_a_public_loss(name):
    parameters = inspect.signature(getattr(methods, name)).parameters.values()
    shown = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    assert ", ".join(shown) == SIGNATURES[name]
