"""Trained students as networks: `kdbench.load_student`."""

import numpy as np
import pytest
import torch

import kdbench
from kdbench.data import load
from kdbench.errors import ConfigError
from tests.conftest import complete


@pytest.fixture
def run(small):
    return complete(small("method=ce", "runtime.threads=1"))


def test_a_student_computes_the_test_logits_of_its_run_from_plain_images(small, run):
    student = kdbench.load_student(str(run.path))
    test = load(small("method=ce").data, "cpu").test
    images = test.images.permute(0, 3, 1, 2)
    logits = student(images).detach()
    assert not student.training
    assert not any(module.training for module in student.modules())
    np.testing.assert_allclose(logits.numpy(), kdbench.load_run(run.path).logits["test_logits"], atol=1e-4)
    torch.testing.assert_close(student(images.float() / 255).detach(), logits)


def test_images_of_any_floating_point_type_are_accepted(run):
    student, images = kdbench.load_student(run.path), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(student(images.double()), student(images))


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), TypeError),
        (np.zeros((1, 3, 32, 32), np.float32), TypeError),
        (torch.zeros(1, 32, 32, 3), ValueError),
        (torch.zeros(3, 32, 32), ValueError),
        (torch.full((1, 3, 32, 32), 255.0), ValueError),
        (torch.full((1, 3, 32, 32), torch.nan), ValueError),
        (torch.full((1, 3, 32, 32), -2.0), ValueError),
    ],
)
def test_images_that_would_give_wrong_logits_are_refused(run, images, error):
    with pytest.raises(error):
        kdbench.load_student(run.path)(images)


@pytest.mark.parametrize("name", ["best.safetensors", "config.yaml"])
def test_a_file_that_is_not_the_one_the_run_wrote_is_refused(run, name):
    file = run.path / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        kdbench.load_student(run.path)
    assert (error.value.code, error.value.key) == ("checksum", "path")
    assert name in str(error.value)
