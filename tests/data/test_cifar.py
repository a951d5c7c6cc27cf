import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from kdbench.data.cifar import CIFAR10, CIFAR100, file_set
from kdbench.data.splits import train_val_split
from tests.data.sets import data_set, error_of

NAMES = [Path(path).name for path in file_set(datasets.CIFAR10).files]


@pytest.fixture(scope="session")
def fine(cifar100_root):
    return data_set("cifar100", cifar100_root).load()


@pytest.fixture(scope="session")
def coarse(cifar100_root):
    return data_set("cifar100", cifar100_root, labels="coarse").load()


@pytest.mark.slow
def test_cifar10_has_the_images_and_the_split_of_torchvision(cifar_root):
    source = data_set("cifar10", cifar_root).load()
    assert (len(source.train), len(source.val), len(source.test)) == (45_000, 5_000, 10_000)
    reference = datasets.CIFAR10(cifar_root)
    for split, rows in zip((source.train, source.val), train_val_split(50_000, 5_000), strict=True):
        assert torch.equal(split.indices, rows)
        assert torch.equal(split.images, torch.from_numpy(reference.data)[rows])
        assert torch.equal(split.labels, torch.tensor(reference.targets)[rows])
    reference = datasets.CIFAR10(cifar_root, train=False)
    assert torch.equal(source.test.images, torch.from_numpy(reference.data))
    assert source.test.labels.tolist() == reference.targets
    assert list(source.class_names) == reference.classes


def test_cifar100_has_the_sizes_and_classes_of_the_protocol(fine):
    assert (len(fine.train), len(fine.val), len(fine.test)) == (45_000, 5_000, 10_000)
    assert fine.train.images.shape == (45_000, 32, 32, 3)
    assert torch.bincount(fine.test.labels).tolist() == [100] * 100
    assert len(fine.class_names) == 100
    assert fine.class_names[:3] == ["apple", "aquarium_fish", "baby"]
    assert fine.class_names[-1] == "worm"


def test_training_and_validation_images_of_cifar100_are_disjoint_and_complete(fine):
    together = torch.cat([fine.train.indices, fine.val.indices])
    assert torch.equal(together.sort().values, torch.arange(50_000))


def test_labels_of_cifar100_are_the_published_ones(fine, coarse):
    assert [fine.class_names[label] for label in fine.test.labels[:4]] == ["mountain", "forest", "seal", "mushroom"]
    assert fine.test.labels[:10].tolist() == [49, 33, 72, 51, 71, 92, 15, 14, 23, 0]
    assert coarse.test.labels[:10].tolist() == [10, 10, 0, 4, 10, 2, 11, 7, 10, 4]
    first = int((fine.train.indices == 0).nonzero()) if 0 in fine.train.indices else None
    assert first is None or fine.class_names[fine.train.labels[first]] == "cattle"


def test_coarse_labels_are_twenty_groups_of_five_fine_ones(fine, coarse):
    assert len(coarse.class_names) == 20
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(fine, split).images[:100], getattr(coarse, split).images[:100])
    pairs = set(zip(fine.test.labels.tolist(), coarse.test.labels.tolist(), strict=True))
    assert len(pairs) == 100
    groups = torch.bincount(torch.tensor([group for _, group in pairs]))
    assert groups.tolist() == [5] * 20
    members = sorted(fine.class_names[a] for a, b in pairs if coarse.class_names[b] == "trees")
    assert members == ["maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"]
    train = set(zip(fine.train.labels.tolist(), coarse.train.labels.tolist(), strict=True))
    assert train == pairs


def test_normalisation_of_cifar100_is_that_of_the_training_images(fine):
    keys = data_set("cifar100").config
    images = torch.cat([fine.train.images, fine.val.images])
    for channel in range(3):
        counts = torch.bincount(images[..., channel].flatten(), minlength=256).double()
        values = torch.arange(256).double() / 255
        mean = (counts @ values) / counts.sum()
        std = ((counts @ (values - mean).square()) / counts.sum()).sqrt()
        assert round(float(mean), 4) == keys.mean[channel]
        assert abs(float(std) - keys.std[channel]) <= 0.0001


def small_cifar(cls, monkeypatch, root):
    """Write files in the official format with few images, and let their md5s be the right ones."""
    official = cls.official
    rng = np.random.default_rng(0)
    folder = root / official.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(count):
        images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [int(label) for label in rng.integers(0, 10, count)]
        return {"data": images, "labels": labels, "fine_labels": labels, "coarse_labels": [n // 5 for n in labels]}

    sizes = {name: 6000 if official is datasets.CIFAR100 else 1200 for name, _ in official.train_list}
    monkeypatch.setattr(official, "train_list", [write(name, batch(size)) for name, size in sizes.items()])
    monkeypatch.setattr(official, "test_list", [write(name, batch(100)) for name, _ in official.test_list])
    names = [f"class {n}" for n in range(10)]
    meta = {"label_names": names, "fine_label_names": names, "coarse_label_names": ["low", "high"]}
    filename, md5 = write(official.meta["filename"], meta)
    monkeypatch.setattr(official, "meta", {**official.meta, "filename": filename, "md5": md5})
    return folder


@pytest.mark.parametrize(("option", "cls"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_the_official_format_is_read(tmp_path, monkeypatch, option, cls):
    folder = small_cifar(cls, monkeypatch, tmp_path)
    source = data_set(option, tmp_path).load()
    assert (len(source.train), len(source.val), len(source.test)) == (1000, 5000, 100)
    reference = pickle.loads((folder / cls.official.test_list[0][0]).read_bytes())
    assert torch.equal(
        source.test.images, torch.from_numpy(reference["data"].reshape(-1, 3, 32, 32)).permute(0, 2, 3, 1)
    )
    assert source.test.labels.tolist() == reference["labels"]
    assert source.class_names == [f"class {n}" for n in range(10)]


def test_coarse_labels_have_their_own_names(tmp_path, monkeypatch):
    small_cifar(CIFAR100, monkeypatch, tmp_path)
    fine, coarse = (data_set("cifar100", tmp_path, labels=labels).load() for labels in ("fine", "coarse"))
    assert torch.equal(fine.train.labels // 5, coarse.train.labels)
    assert coarse.class_names == ["low", "high"]


def test_an_archive_that_is_there_is_unpacked(tmp_path, monkeypatch):
    folder = small_cifar(CIFAR100, monkeypatch, tmp_path)
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    expected = data_set("cifar100", tmp_path).load()
    shutil.rmtree(folder)
    assert data_set("cifar100", tmp_path).load().train.sha256 == expected.train.sha256
    assert (tmp_path / "cifar-100-python" / "meta").is_file()


def test_a_missing_folder_is_an_error_with_the_file_to_unpack(tmp_path):
    for option, folder, archive in (
        ("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python", "cifar-100-python.tar.gz"),
    ):
        error = error_of(option, tmp_path)
        assert (error.code, error.key) == ("not_found", "data.root")
        assert str(tmp_path / folder) in str(error)
        assert archive in str(error)
        assert f"data={option}" in str(error)


def test_files_with_other_content_are_an_error_and_so_is_a_missing_one(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(b"something else")
    error = error_of("cifar10", tmp_path)
    assert (error.code, error.key) == ("damaged", "data.root")
    assert all(name in str(error) for name in NAMES)
    (folder / "test_batch").unlink()
    error = error_of("cifar10", tmp_path)
    assert (error.code, error.key) == ("not_found", "data.root")
    assert [name for name in NAMES if name in str(error)] == ["test_batch"]


def test_labels_are_fine_or_coarse():
    error = error_of("cifar100", labels="medium")
    assert (error.code, error.key) == ("out_of_range", "data.labels")
