import hashlib
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from kdbench.data import decode, torchvision_data
from kdbench.data.torchvision_classes import GENERAL, OTHER_CLASSES, OTHER_TASKS
from tests.data.sets import data_set, error_of

REFUSED = {"unsupported_dataset", "not_found", "missing_value", "not_importable"}
FAKE = {"dataset": "FakeData", "arguments": {"size": 60, "image_size": [3, 12, 16], "num_classes": 3}}


def load(root, dataset, **keys):
    return data_set("torchvision", root, dataset=dataset, **keys).load()


def error(root, dataset, **keys):
    return error_of("torchvision", root, dataset=dataset, **keys)


def lengths(source):
    return len(source.train), len(source.val), len(source.test)


def idx(values):
    """Return an array in the format of MNIST's files."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(root, prefixes, first_label=0, folder="MNIST"):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in prefixes.items():
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)))
        labels = (np.arange(count) % 10 + first_label).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return root


@pytest.fixture
def mnist(tmp_path):
    return write_mnist(tmp_path / "data", {"train": 100, "t10k": 30})


def test_a_class_with_train_true_and_false_has_a_test_split_and_is_divided_for_validation(mnist, caplog):
    caplog.set_level("INFO", "kdbench")
    source = load(mnist, "MNIST", val_fraction=0.2)
    assert lengths(source) == (80, 20, 30)
    reference = datasets.MNIST(mnist, train=False)
    assert torch.equal(source.test.images, reference.data[..., None].expand(-1, -1, -1, 3))
    assert torch.equal(source.test.labels, reference.targets)
    assert source.class_names == reference.classes
    assert "of 130 images, converted to 8-bit RGB: 130 grey" in caplog.text
    assert not (mnist / ".kdbench").exists()  # torchvision has read them all


def test_images_are_resized_to_a_size(mnist):
    assert load(mnist, "MNIST", size=32).train.images.shape[1:] == (32, 32, 3)


def test_arguments_are_handed_on_and_classes_without_images_are_left_out(tmp_path, caplog):
    caplog.set_level("INFO", "kdbench")
    names = {"emnist-letters-train": 100, "emnist-letters-test": 30}
    root = write_mnist(tmp_path, names, first_label=1, folder="EMNIST")
    source = load(root, "EMNIST", arguments={"split": "letters"})
    assert source.class_names == list("abcdefghij")
    assert sorted(set(source.train.labels.tolist())) == list(range(10))
    assert "classes without images are left out: N/A, k" in caplog.text


def test_a_class_without_splits_is_divided(tmp_path):
    source = load(tmp_path, **FAKE, val_fraction=0.2, test_fraction=0.2)
    assert sum(lengths(source)) == 60
    assert source.train.images.shape[1:] == (12, 16, 3)
    assert source.class_names == ["0", "1", "2"]


def test_the_result_does_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    hashes = set()
    for threads in (1, 5):
        monkeypatch.setattr(decode, "available_cores", lambda n=threads: n)
        hashes.add(load(tmp_path, **FAKE).train.sha256)
    assert len(hashes) == 1


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """Files in the format of STL10 with few images, whose md5s are taken for the right ones."""
    folder = tmp_path / "stl10" / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    lists = {}
    for split, count in (("train", 40), ("test", 20)):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)
        lists[split] = [
            write(f"{split}_X.bin", rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tobytes()),
            write(f"{split}_y.bin", labels.tobytes()),
        ]
    monkeypatch.setattr(datasets.STL10, "train_list", lists["train"])
    monkeypatch.setattr(datasets.STL10, "test_list", lists["test"])
    (folder / "class_names.txt").write_text("\n".join(f"class {n}" for n in range(10)))
    return tmp_path / "stl10"


def test_a_class_with_an_argument_split_has_the_splits_that_it_knows(stl10):
    source = load(stl10, "STL10", size=24)
    assert lengths(source) == (30, 10, 20)
    assert source.class_names == [f"class {n}" for n in range(10)]
    image = Image.fromarray(datasets.STL10(stl10, "test").data[3].transpose(1, 2, 0))
    assert np.array_equal(source.test.images[3], np.asarray(decode.resized(image, 24)))


def test_a_split_that_is_given_is_divided_alone(stl10):
    assert lengths(load(stl10, "STL10", arguments={"split": "train"}, val_fraction=0.25)) == (20, 10, 10)


@pytest.fixture
def textures(tmp_path):
    """Files in the format of DTD: three splits of images of several sizes, opened one by one."""
    base = tmp_path / "textures" / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        lines = []
        for number in range(count):
            name = f"{('dotted', 'woven')[number % 2]}/{split}{number}.png"
            (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            shape = (20 + number, 24) if number else (20, 24, 4)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(base / "images" / name)
            lines.append(name)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "textures"


def test_three_splits_are_taken_as_they_are_and_their_images_are_cached(textures, caplog, monkeypatch):
    caplog.set_level("INFO", "kdbench")
    source = load(textures, "DTD", size=16)
    assert lengths(source) == (6, 4, 4)
    assert source.class_names == ["dotted", "woven"]
    assert source.val.labels.tolist() == [0, 1, 0, 1]
    assert "of 14 images, converted to 8-bit RGB: 3 alpha (drawn over black), 11 grey" in caplog.text
    assert len(list((textures / ".kdbench").iterdir())) == 1
    monkeypatch.setattr(decode, "decode", None)
    again = load(textures, "DTD", size=16)
    assert all(getattr(source, name).sha256 == getattr(again, name).sha256 for name in ("train", "val", "test"))


def test_images_of_several_sizes_need_a_size(textures):
    found = error(textures, "DTD")
    assert (found.code, found.key) == ("mismatch", "data.size")


def test_a_damaged_image_is_an_error(textures):
    (textures / "dtd" / "dtd" / "images" / "woven" / "val1.png").write_bytes(b"no image")
    found = error(textures, "DTD", size=16)
    assert (found.code, found.key) == ("damaged", "data.root")
    assert "val1.png" in str(found)


def test_a_name_that_torchvision_does_not_have_is_an_error_with_the_nearest(tmp_path):
    found = error(tmp_path, "FashionMnist")
    assert (found.code, found.key) == ("unknown_option", "data.dataset")
    assert "did you mean FashionMNIST" in str(found)
    assert "did you mean MNIST" in str(error(tmp_path, "mnst"))
    assert "valid: CIFAR10, CIFAR100, CLEVRClassification" in str(error(tmp_path, "?"))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("VOCSegmentation", "segmentation"),
        ("CocoDetection", "detection"),
        ("UCF101", "video"),
        ("Sintel", "optical flow"),
        ("Flickr8k", "captions"),
        ("LFWPairs", "comparison"),
        ("ImageFolder", "use data=image_folder"),
    ],
)
def test_what_is_no_image_classification_is_refused(tmp_path, name, task):
    found = error(tmp_path, name)
    assert (found.code, found.key) == ("unsupported_dataset", "data.dataset")
    assert task in str(found)


def test_every_class_of_torchvision_is_refused_unknown_or_not_there(tmp_path):
    """None of them fails in another way than by a missing file, argument or package."""
    for name in datasets.__all__:
        if name in {"FakeData", "wrap_dataset_for_transforms_v2"}:
            continue
        found = error(tmp_path / name, name)
        assert found.code in REFUSED, str(found)
        assert name in str(found)


def test_lists_of_exceptions_name_modules_and_classes_of_torchvision():
    modules = {getattr(datasets, name).__module__.rpartition(".")[2] for name in datasets.__all__}
    assert set(OTHER_TASKS) <= modules
    assert {*GENERAL, *OTHER_CLASSES} <= set(datasets.__all__)


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, monkeypatch):
    class Odd(datasets.FakeData):
        def __getitem__(self, index):
            image, _ = super().__getitem__(index)
            return image, {"boxes": []}

    monkeypatch.setattr(torchvision_data.datasets, "FakeData", Odd)
    found = error(tmp_path, **FAKE)
    assert (found.code, found.key) == ("unsupported_dataset", "data.dataset")


def test_arguments_are_checked(tmp_path, mnist):
    found = error(mnist, "MNIST", arguments={"trian": True})
    assert (found.code, found.key) == ("unknown_key", "data.arguments.trian")
    found = error(mnist, "MNIST", arguments={"root": "x"})
    assert (found.code, found.key) == ("unknown_key", "data.arguments.root")
    found = error(tmp_path, "EMNIST")
    assert (found.code, found.key) == ("missing_value", "data.arguments.split")
    found = error(tmp_path, "EMNIST", arguments={"split": "words"})
    assert (found.code, found.key) == ("out_of_range", "data.arguments")


def test_missing_files_are_an_error_that_leaves_no_folder(tmp_path):
    found = error(tmp_path / "data", "MNIST")
    assert (found.code, found.key) == ("not_found", "data.root")
    assert "data.download=true" in str(found)
    assert not (tmp_path / "data").exists()
    for name in ("FER2013", "StanfordCars"):  # which torchvision cannot download
        found = error(tmp_path / "data", name, download=True)
        assert (found.code, found.key) == ("download_failed", "data.download")


def serve_mnist(monkeypatch, fail=False):
    def download(self):
        if self._check_exists():
            return
        assert self.root.rpartition("/")[2].startswith(".MNIST.")
        if fail:
            (torchvision_data.Path(self.root) / "MNIST" / "raw").mkdir(parents=True)
            (torchvision_data.Path(self.root) / "MNIST" / "raw" / "half").write_bytes(b"half")
            raise OSError("network is unreachable")
        write_mnist(torchvision_data.Path(self.root), {"train": 100, "t10k": 30})

    monkeypatch.setattr(datasets.MNIST, "download", download)


def test_missing_files_are_downloaded_beside_what_is_there(tmp_path, monkeypatch):
    serve_mnist(monkeypatch)
    root = tmp_path / "data"
    (root / "MNIST").mkdir(parents=True)
    (root / "MNIST" / "notes.txt").write_text("mine")
    assert sum(lengths(load(root, "MNIST", download=True))) == 130
    assert (root / "MNIST" / "notes.txt").read_text() == "mine"
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    serve_mnist(monkeypatch, fail=True)
    assert sum(lengths(load(root, "MNIST", download=True))) == 130


def test_a_failed_download_leaves_what_was_there(tmp_path, monkeypatch):
    serve_mnist(monkeypatch, fail=True)
    for root in (tmp_path / "new", tmp_path / "old"):
        if root.name == "old":
            root.mkdir()
            (root / "notes.txt").write_text("mine")
        found = error(root, "MNIST", download=True)
        assert (found.code, found.key) == ("download_failed", "data.download")
        assert "network is unreachable" in str(found)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["notes.txt"]
