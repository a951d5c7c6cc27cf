import shutil

import pytest
import torch

from kdbench.data import load
from kdbench.data.cifar10 import FILES
from kdbench.errors import ConfigError
from tests.conftest import composed_once


def config(root, *overrides):
    return composed_once(f"data.root={root}", *overrides).data


@pytest.mark.slow
def test_the_full_set_has_the_sizes_of_the_protocol(cifar_root):
    dataset = load(config(cifar_root), "cpu")
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (45_000, 5_000, 10_000)
    assert dataset.train.images.shape == (45_000, 32, 32, 3)
    together = torch.cat([dataset.train.indices, dataset.val.indices])
    assert torch.equal(together.sort().values, torch.arange(50_000))


@pytest.mark.slow
def test_images_and_labels_equal_torchvisions(cifar_root):
    from torchvision.datasets import CIFAR10

    dataset = load(config(cifar_root), "cpu")
    reference = CIFAR10(cifar_root, train=True)
    for row in (0, 17, 44_999):
        index = int(dataset.train.indices[row])
        assert torch.equal(dataset.train.images[row], torch.from_numpy(reference.data[index]))
        assert int(dataset.train.labels[row]) == reference.targets[index]


@pytest.mark.slow
def test_a_subset_is_the_same_for_every_seed(cifar_root):
    first, second = (load(config(cifar_root, "data.num_train=512", f"seed={s}"), "cpu").train for s in (0, 1))
    assert torch.equal(first.indices, second.indices)
    assert torch.bincount(first.labels).max() - torch.bincount(first.labels).min() <= 1


def test_a_missing_folder_is_an_error_with_the_file_to_unpack(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(config(tmp_path), "cpu")
    assert (error.value.code, error.value.key) == ("not_found", "data.root")
    assert str(tmp_path / "cifar-10-batches-py") in str(error.value)
    assert "cifar-10-python.tar.gz" in str(error.value)


def test_files_with_other_content_are_an_error_and_so_is_a_missing_one(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [name for name, _ in FILES]
    for name in names:
        (folder / name).write_bytes(b"something else")
    assert error_of(tmp_path) == ("damaged", "data.root", names)
    (folder / "test_batch").unlink()
    assert error_of(tmp_path) == ("not_found", "data.root", ["test_batch"])


def test_errors_name_the_files_that_are_damaged_or_missing(cifar_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(cifar_root / "cifar-10-batches-py", folder)
    with (folder / "data_batch_3").open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    assert error_of(tmp_path) == ("damaged", "data.root", ["data_batch_3"])
    (folder / "test_batch").unlink()
    assert error_of(tmp_path) == ("not_found", "data.root", ["test_batch"])


def error_of(root):
    """Return code, key and named files of the error that loading raises."""
    with pytest.raises(ConfigError) as error:
        load(config(root), "cpu")
    return error.value.code, error.value.key, [name for name, _ in FILES if name in str(error.value)]


def test_a_failed_download_is_an_error_with_its_cause_and_leaves_no_folder(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def no_network(self):
        raise OSError("network is unreachable")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    root = tmp_path / "data"
    with pytest.raises(ConfigError) as error:
        load(config(root, "data.download=true"), "cpu")
    assert (error.value.code, error.value.key) == ("download_failed", "data.download")
    assert "network is unreachable" in str(error.value)
    assert not root.exists()
