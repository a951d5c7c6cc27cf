"""Loading of data sets of any class: what is checked, resolved, kept and hashed."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.config.sections import DataConfig
from kdbench.data import ImageData, Source, Split, load
from kdbench.data.dataset import resolve_data
from kdbench.data.embedded import Shapes
from kdbench.data.image_folder import ImageFolder
from kdbench.errors import ConfigError
from kdbench.verify.artifacts import load_data
from tests.conftest import SMALL, composed_once


def split_of(count, offset=0):
    images = torch.arange(count * 12, dtype=torch.int64).reshape(count, 2, 2, 3).add(offset).remainder(251)
    return Split.of(images.to(torch.uint8), torch.arange(count) % 3)


class Numbers(ImageData):
    """Three splits that a test may change."""

    splits = None

    def load(self):
        return Source(*self.splits, class_names=["a", "b", "c"])


def config_of(target, **keys):
    return DataConfig("numbers", target, target.Config(**{"augment": False, **keys}))


@pytest.fixture
def numbers():
    """Return a data set of its own class for each test, since the process keeps what it has loaded."""
    return type("OwnNumbers", (Numbers,), {"splits": (split_of(12), split_of(6, 7), split_of(9, 11))})


def test_null_becomes_numbers_and_the_images_become_a_hash(numbers):
    resolved = resolve_data(config_of(numbers), "cpu")
    params = resolved.params
    assert (params.num_train, params.num_val, params.num_test) == (12, 6, 9)
    values = split_of(12).images.double() / 255
    assert params.mean == pytest.approx(values.mean((0, 1, 2)).tolist(), abs=5e-5)
    assert params.std == pytest.approx(values.std((0, 1, 2), correction=0).tolist(), abs=5e-5)
    assert len(resolved.content) == 64
    assert resolve_data(resolved, "cpu") == resolved


def test_all_images_are_kept_as_they_are_and_fewer_are_a_balanced_subset(numbers):
    whole = load(config_of(numbers, num_train=12), "cpu")
    assert whole.train.images.data_ptr() == numbers.splits[0].images.data_ptr()
    some = load(config_of(numbers, num_train=6), "cpu")
    assert torch.bincount(some.train.labels).tolist() == [2, 2, 2]


def repeated_indices(split):
    return dataclasses.replace(split, indices=torch.zeros_like(split.indices))


def fewer_labels(split):
    return dataclasses.replace(split, labels=split.labels[:-1])


def float_labels(split):
    return dataclasses.replace(split, labels=split.labels.float())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (repeated_indices, "the same index for several images"), (fewer_labels, r"labels \[11\]"),
        (float_labels, "torch.float32"),
    ],
)  # fmt: skip
def test_a_split_without_a_label_and_an_index_of_its_own_per_image_is_refused(numbers, change, text):
    numbers.splits = (change(numbers.splits[0]), *numbers.splits[1:])
    with pytest.raises(ConfigError, match=text) as error:
        load(config_of(numbers), "cpu")
    assert (error.value.code, error.value.key) == ("invalid_data", "data")


def test_images_that_changed_since_they_were_hashed_are_not_trained_on(numbers):
    resolved = resolve_data(config_of(numbers), "cpu")
    load(composed_once(*SMALL).data, "cpu")  # the process keeps one data set
    numbers.splits = (split_of(12, 99), *numbers.splits[1:])
    with pytest.raises(ConfigError, match="others than those of the run") as error:
        load(resolved, "cpu")
    assert error.value.code == "data_changed"


def test_a_folder_that_changes_within_a_process_is_read_again(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            pixels = np.full((8, 8, 3), 20 * number + (name == "cat"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    keys = {"root": str(tmp_path), "size": 8, "val_fraction": 0.2, "test_fraction": 0.2}
    config = DataConfig("folder", ImageFolder, ImageFolder.Config(augment=False, **keys))
    before = resolve_data(config, "cpu").content
    assert resolve_data(config, "cpu").content == before
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "dog" / "4.png")
    assert resolve_data(config, "cpu").content != before


def test_a_class_that_extends_a_fixed_one_is_not_fixed():
    class Noisy(Shapes):
        """The same images with labels that the keys do not determine."""

    config = composed_once(*SMALL).data
    assert resolve_data(config, "cpu").content is None
    assert resolve_data(dataclasses.replace(config, target=Noisy), "cpu").content is not None


def test_numbers_of_mean_and_std_must_be_those_of_the_channels(numbers):
    with pytest.raises(ConfigError, match=r"have 1 numbers.* 3 channels") as error:
        load(config_of(numbers, mean=[0.5], std=[0.2]), "cpu")
    assert error.value.key == "data.mean"


def test_fewer_training_images_than_classes_are_refused(numbers):
    with pytest.raises(ConfigError, match=r"num_train is 2.* 3 classes") as error:
        load(config_of(numbers, num_train=2), "cpu")
    assert error.value.key == "data.num_train"


def test_padding_that_makes_crops_without_image_is_refused(numbers):
    with pytest.raises(ConfigError, match=r"padding is 2.* 2 x 2 pixels") as error:
        load(config_of(numbers, augment=True, padding=2), "cpu")
    assert error.value.key == "data.padding"
    load(config_of(numbers, augment=True, padding=1), "cpu")


def test_an_exception_of_ones_own_code_is_named_with_its_line(numbers):
    numbers.load = lambda self: {}["images"]
    with pytest.raises(ConfigError, match=r"KeyError: 'images' \(test_dataset\.py, line \d+\)"):
        load(config_of(numbers), "cpu")


def test_a_class_that_cannot_be_built_is_named(numbers):
    numbers.__init__ = lambda self: None
    with pytest.raises(ConfigError, match=r"OwnNumbers cannot be built .*must take \(config, name\)"):
        load(config_of(numbers), "cpu")


def test_files_that_are_no_images_are_counted_and_a_link_upwards_adds_no_images(tmp_path, caplog):
    caplog.set_level("INFO", "kdbench")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (8, 8), (number, 20 * number, 2 * number)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "dog" / "photo.heic").touch()
    (tmp_path / "dog" / "notes").touch()
    (tmp_path / "cat" / "loop").symlink_to("..")
    keys = {"root": str(tmp_path), "size": 8, "val_fraction": 0.2, "test_fraction": 0.2}
    dataset = load(DataConfig("folder", ImageFolder, ImageFolder.Config(augment=False, **keys)), "cpu")
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [6, 2, 2]
    assert "ignored files by extension: 1 without one, 1 .heic" in caplog.text


def test_verification_writes_no_cache_of_a_folder(tmp_path):
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 9 + number, 2 * number)).save(root / name / f"{number}.png")
    nulls = ("data.num_train=null", "data.num_val=null", "data.num_test=null")
    cache = tmp_path / "elsewhere" / "cache"
    run = composed_once(*SMALL, "data=image_folder", f"data.root={root}", "data.size=8", f"data.cache={cache}", *nulls)
    assert len(load_data(run, "cpu", None).train) == 4
    assert not (tmp_path / "elsewhere").exists()
    assert not (root / ".kdbench").exists()


# Without validation


def divided_set(count=12, num_val=3):
    """Return a class whose validation images are divided off its training images."""
    train, val = ImageData.divide(split_of(count), num_val)
    return type("Divided", (Numbers,), {"splits": (train, val, split_of(9, 11))})


def test_without_validation_all_training_images_are_trained_on_in_their_order():
    dataset = load(config_of(divided_set(), validation=False), "cpu")
    whole = split_of(12)
    assert torch.equal(dataset.train.images, whole.images)
    assert torch.equal(dataset.train.labels, whole.labels)
    assert torch.equal(dataset.train.indices, whole.indices)
    assert len(dataset.val) == 3
    assert not dataset.validation
    held_out = load(config_of(divided_set()), "cpu")
    assert (len(held_out.train), held_out.validation) == (9, True)
    assert torch.equal(dataset.val.images, held_out.val.images)


def test_without_validation_a_set_of_its_own_follows_with_indices_of_its_own(numbers):
    train = load(config_of(numbers, validation=False), "cpu").train
    assert torch.equal(train.images, torch.cat([split.images for split in numbers.splits[:2]]))
    assert train.indices.tolist() == list(range(18))


def test_without_validation_fewer_images_are_a_balanced_subset_and_a_line_says_so(caplog):
    caplog.set_level("INFO", "kdbench")
    some = load(config_of(divided_set(), validation=False, num_train=6, num_val=2), "cpu")
    assert torch.bincount(some.train.labels).tolist() == [2, 2, 2]
    assert some.train.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(some.val) == 2
    assert "6 of 12 training images are used" in caplog.text


def test_without_validation_null_sizes_resolve_to_the_images_that_are_trained_on_and_load_them_again(numbers):
    for cls in (divided_set(), numbers):
        config = config_of(cls, validation=False)
        resolved = resolve_data(config, "cpu")
        assert resolved.params.num_train == len(load(config, "cpu").train)
        assert resolved.params.mean != resolve_data(config_of(cls), "cpu").params.mean
        assert load(resolved, "cpu").train.sha256 == load(config, "cpu").train.sha256


@pytest.mark.parametrize("sizes", [{"num_train": 40, "num_val": 20}, {"num_train": 30, "num_val": 50}])
def test_generated_images_without_validation_are_the_first_ones_and_the_validation_images(sizes):
    def shapes(**keys):
        others = {"num_test": 20, "mean": [0.5] * 3, "std": [0.5] * 3, "augment": False}
        return load(DataConfig("shapes", Shapes, Shapes.Config(**others, **keys)), "cpu")

    dataset = shapes(validation=False, **sizes)
    assert len(dataset.train) == sizes["num_train"]
    if sizes["num_train"] > sizes["num_val"]:
        first = shapes(num_train=20, num_val=20)
        assert torch.equal(dataset.train.images, torch.cat([first.train.images, first.val.images]))
        assert torch.equal(dataset.val.images, first.val.images)
