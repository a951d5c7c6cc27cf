import hashlib

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets

from tests.data.sets import data_set, error_of


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Files in the official format with few images, whose md5s are taken for the right ones."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(datasets.SVHN, "split_list", dict(datasets.SVHN.split_list))
    (tmp_path / "server").mkdir()
    for split, count in (("train", 5300), ("test", 200)):
        path = tmp_path / "server" / f"{split}_32x32.mat"
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": images, "y": labels})
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(datasets.SVHN.split_list, split, [path.as_uri(), path.name, md5])
    return tmp_path / "server"


def test_training_images_are_divided_and_ten_stands_for_zero(root):
    source = data_set("svhn", root).load()
    assert (len(source.train), len(source.val), len(source.test)) == (300, 5000, 200)
    together = torch.cat([source.train.indices, source.val.indices])
    assert torch.equal(together.sort().values, torch.arange(5300))
    raw = scipy.io.loadmat(root / "test_32x32.mat")
    assert torch.equal(source.test.images[7], torch.from_numpy(raw["X"][..., 7]))
    assert source.test.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert list(source.class_names) == [str(digit) for digit in range(10)]


def test_digits_are_not_mirrored():
    assert data_set("svhn").config.flip is False


def test_missing_and_damaged_files_are_errors_that_name_them(root):
    (root / "test_32x32.mat").write_bytes(b"half")
    error = error_of("svhn", root)
    assert (error.code, error.key) == ("damaged", "data.root")
    assert "test_32x32.mat" in str(error)
    (root / "test_32x32.mat").unlink()
    error = error_of("svhn", root)
    assert (error.code, error.key) == ("not_found", "data.root")
    assert "lacks test_32x32.mat;" in str(error)


def test_missing_files_are_downloaded(root, tmp_path):
    data_set("svhn", tmp_path / "data", download=True).load()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test_32x32.mat", "train_32x32.mat"]
