"""Trained students as networks: `kdbench.load_student`."""

import importlib
import threading

import numpy as np
import pytest
import torch

import kdbench
from kdbench.data import load
from kdbench.errors import ConfigError
from tests.conftest import SMALL, complete, composed_once


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


def test_a_network_whose_code_was_edited_since_is_refused(small, tmp_path, monkeypatch):
    """The weights would fit; the outputs would be others."""
    file = tmp_path / "edited_network.py"
    file.write_text("from kdbench.models.cifar_resnet import CifarResNet\nSCALE = 1\nclass Net(CifarResNet): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ("student._target_=edited_network.Net", "student.name=own")
    path = complete(small("method=ce", *arguments)).path
    kdbench.load_student(path, trusted=["edited_network", "kdbench"])
    file.write_text(file.read_text().replace("SCALE = 1", "SCALE = 2"))
    importlib.reload(importlib.import_module("edited_network"))
    with pytest.raises(ConfigError) as error:
        kdbench.load_student(path, trusted=["edited_network", "kdbench"])
    assert (error.value.code, error.value.key) == ("mismatch", "student")


def test_threads_that_compose_wait_for_each_other():
    found = {}

    def compose(seed):
        found[seed] = kdbench.compose([*SMALL, "method=ce", f"seed={seed}"])

    threads = [threading.Thread(target=compose, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: composed_once(*SMALL, "method=ce", f"seed={seed}") for seed in (1, 2)}
