import shutil

import pytest
import torch

from kdbench.data import load
from kdbench.errors import ConfigError
from tests.conftest import composed


def config(root, *overrides):
    return composed(f"data.root={root}", *overrides).data


@pytest.mark.slow
def test_the_full_set_has_the_sizes_of_the_protocol(cifar_root):
    dataset = load(config(cifar_root), "cpu")
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (45_000, 5_000, 10_000)
    assert dataset.train.images.shape == (45_000, 32, 32, 3)
    together = torch.cat([dataset.train.indices, dataset.val.indices])
    assert torch.equal(together.sort().values, torch.arange(50_000))


@pytest.mark.slow
def test_images_and_labels_are_those_that_torchvision_reads(cifar_root):
    from torchvision.datasets import CIFAR10

    dataset = load(config(cifar_root), "cpu")
    reference = CIFAR10(cifar_root, train=True)
    for row in (0, 17, 44_999):
        index = int(dataset.train.indices[row])
        assert torch.equal(dataset.train.images[row], torch.from_numpy(reference.data[index]))
        assert int(dataset.train.labels[row]) == reference.targets[index]


@pytest.mark.slow
def test_subset_is_the_same_for_every_seed(cifar_root):
    first, second = (load(config(cifar_root, "data.num_train=512", f"seed={s}"), "cpu").train for s in (0, 1))
    assert torch.equal(first.indices, second.indices)
    assert torch.bincount(first.labels).max() - torch.bincount(first.labels).min() <= 1


def test_missing_folder_is_said_with_what_to_put_where(tmp_path):
    with pytest.raises(ConfigError, match=r"no folder .*cifar-10-batches-py; unpack cifar-10-python.tar.gz"):
        load(config(tmp_path), "cpu")


def test_damaged_and_missing_files_are_named(cifar_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(cifar_root / "cifar-10-batches-py", folder)
    with (folder / "data_batch_3").open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ConfigError, match=r"damaged files \(wrong md5\): data_batch_3;"):
        load(config(tmp_path), "cpu")
    (folder / "test_batch").unlink()
    with pytest.raises(ConfigError, match="lacks test_batch"):
        load(config(tmp_path), "cpu")


def test_download_that_fails_says_so(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def no_network(self):
        raise OSError("network is unreachable")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    with pytest.raises(ConfigError, match=r"data.download=true failed: network is unreachable; unpack"):
        load(config(tmp_path, "data.download=true"), "cpu")
