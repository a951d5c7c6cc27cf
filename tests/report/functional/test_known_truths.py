"""Truths of trained networks: equal seeds, copies, and a student of random labels."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import kdbench
from kdbench import metrics
from kdbench.data.embedded import Shapes
from kdbench.data.source import Source
from tests.conftest import SMALL

SIZES = ("data.num_train=400", "data.num_val=50", "data.num_test=400", "recipe.epochs=3", "method=ce")


class ShuffledShapes(Shapes):
    """Shapes whose training labels are shuffled, so that they say nothing about the images."""

    @dataclass
    class Config(Shapes.Config):
        """Keys of the data set's YAML file."""

    own_name: ClassVar[str] = ""
    fixed = False

    def load(self) -> Source:
        """Return the splits of the parent; training labels in a random order."""
        source = super().load()
        order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(0))
        source.train.labels.copy_(source.train.labels[order])
        return source


def train(root, *overrides):
    texts = [text for text in (*SMALL, *SIZES) if not text.startswith("teacher")]
    return kdbench.run(kdbench.compose([*texts, f"output_root={root}", *overrides]))


def test_equal_seeds_are_equal_functions(tmp_path):
    first, second = (train(tmp_path / name, "data.num_train=64", "recipe.epochs=1").logits for name in ("a", "b"))
    found = metrics.compare_logits(first["test_logits"], second["test_logits"], first["test_labels"])
    assert [getattr(found, name) for name in metrics.DISTANCES] == [0, 0, 0, 0]
    assert found.agreement == 1


@pytest.mark.wide
def test_a_student_of_random_labels_agrees_with_a_teacher_as_often_as_chance(tmp_path):
    more = ("data.num_train=2000", "recipe.epochs=8", "data.augment=false")
    teacher = train(tmp_path, *more, "seed=1").logits
    shuffled = "data._target_=tests.report.functional.test_known_truths.ShuffledShapes"
    student = train(tmp_path, *more, shuffled).logits
    labels = teacher["test_labels"]
    assert np.array_equal(labels, student["test_labels"])
    found = metrics.compare_logits(teacher["test_logits"], student["test_logits"], labels)
    assert found.a.accuracy > 0.25  # the teacher knows something
    error = math.sqrt(found.chance_agreement * (1 - found.chance_agreement) / len(labels))
    assert abs(found.agreement - found.chance_agreement) < 4 * error
