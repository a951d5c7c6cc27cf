"""Test images of finished runs, as a report shows them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from kdbench.config import compose
from kdbench.data import load
from kdbench.runner.images import read_test_images
from tests.report.conftest import write_run

SHAPES = {"dataset": "shapes", "num_train": 200, "num_val": 50, "num_test": 40}


@pytest.fixture(scope="module")
def split():
    config = compose(["data=shapes", "data.num_train=200", "data.num_val=50", "data.num_test=40"]).data
    return load(config, "cpu").test


def recorded(folder: Path, **changes) -> Path:
    """Write the config of a run on few images of shapes."""
    data = {"_target_": "kdbench.data.embedded.Shapes", "name": "shapes", "num_classes": 10, "augment": True}
    data |= {"num_train": 200, "num_val": 50, "num_test": 40, "mean": [0.5] * 3, "std": [0.2] * 3}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({"data": data | changes})))
    return folder


def test_images_are_those_of_the_recorded_config(tmp_path, split):
    folder = recorded(write_run(tmp_path, **SHAPES, data_sha256={"test": split.sha256}))
    images, labels = read_test_images(folder)
    assert np.array_equal(images, split.images.numpy())
    assert np.array_equal(labels, split.labels.numpy())


@pytest.mark.slow
def test_a_run_without_config_has_the_built_in_data_set_of_its_name(tmp_path, split):
    images, _ = read_test_images(write_run(tmp_path, **SHAPES, data_sha256={"test": split.sha256}))
    assert np.array_equal(images, split.images.numpy())


def test_other_images_than_those_of_the_run_are_not_shown(tmp_path):
    found = read_test_images(recorded(write_run(tmp_path, **SHAPES, data_sha256={"test": "0" * 64})))
    assert "are not those of the run" in found
    assert "--data-root" in found


def test_files_that_are_not_here_are_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "nowhere"))
    found = read_test_images(write_run(tmp_path / "runs"))
    assert found == (
        f"data=cifar10: the folder {tmp_path / 'nowhere' / 'cifar-10-batches-py'} was not found; "
        "--data-root DIR names the folder that holds the data"
    )


def test_the_given_folder_goes_before_that_of_the_config(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "environment"))
    found = read_test_images(write_run(tmp_path / "runs"), tmp_path / "given")
    assert f"{tmp_path / 'given'}" in found
    assert "environment" not in found


def test_code_that_a_config_names_is_not_imported(tmp_path):
    found = read_test_images(recorded(write_run(tmp_path), _target_="os.system"))
    assert "it was not imported" in found


@pytest.mark.parametrize("name", ["mine", "../cifar10", "image_folder"])
def test_a_data_set_that_only_a_config_could_describe_is_said(tmp_path, name):
    assert isinstance(read_test_images(write_run(tmp_path, dataset=name)), str)


def test_a_large_data_set_is_not_read_for_a_few_pictures(tmp_path):
    folder = recorded(write_run(tmp_path, **SHAPES | {"num_train": 10**6}, input_shape=[3, 64, 64]))
    assert "too much to read" in read_test_images(folder)


def test_importing_the_reader_imports_no_torch():
    code = "import sys\nfrom kdbench.runner.images import read_test_images\nsys.exit('torch' in sys.modules)\n"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
