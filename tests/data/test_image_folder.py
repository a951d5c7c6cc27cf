import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data import decode
from tests.data.sets import data_set, error_of

REPOSITORY = Path(__file__).parents[2]


def fill(folder, count, name="image{}.png", size=(8, 8), seed=0):
    """Write images into a class's folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name.format(number))
    return folder


@pytest.fixture
def root(tmp_path):
    """Two classes of ten images, not divided."""
    for seed, name in enumerate(("cat", "dog")):
        fill(tmp_path / "images" / name, 10, seed=seed)
    return tmp_path / "images"


@pytest.fixture
def divided(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        for name in ("cat", "dog"):
            fill(tmp_path / "divided" / split / name, 4, seed=seed)
    return tmp_path / "divided"


def load(root, **keys):
    return data_set("image_folder", root, **{"size": 8, **keys}).load()


def error(root, **keys):
    return error_of("image_folder", root, **{"size": 8, **keys})


def lengths(source):
    return len(source.train), len(source.val), len(source.test)


def test_folders_of_splits_are_taken_as_they_are(divided):
    source = load(divided)
    assert lengths(source) == (8, 8, 8)
    assert source.class_names == ["cat", "dog"]
    assert source.val.labels.tolist() == [0] * 4 + [1] * 4
    for split, images in (("train", source.train.images), ("test", source.test.images)):
        assert np.array_equal(images[5], np.asarray(Image.open(divided / split / "dog" / "image1.png")))


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_split_are_known(divided, name):
    expected = load(divided).val.sha256
    (divided / "val").rename(divided / name)
    assert load(divided).val.sha256 == expected


def test_a_single_level_of_classes_is_divided_class_by_class(root):
    source = load(root, val_fraction=0.2, test_fraction=0.3)
    assert lengths(source) == (10, 4, 6)
    for split, count in ((source.train, 5), (source.val, 2), (source.test, 3)):
        assert torch.bincount(split.labels).tolist() == [count, count]
    rows = torch.cat([source.train.indices, source.val.indices, source.test.indices])
    assert torch.equal(rows.sort().values, torch.arange(20))
    assert source.train.indices.tolist() == sorted(source.train.indices.tolist())
    again = load(root, val_fraction=0.2, test_fraction=0.3)
    assert all(getattr(source, name).sha256 == getattr(again, name).sha256 for name in ("train", "val", "test"))


def test_test_images_do_not_depend_on_the_validation_images(root):
    assert load(root, val_fraction=0.1).test.sha256 == load(root, val_fraction=0.4).test.sha256


def test_what_is_missing_is_divided_off_the_training_images(divided):
    for name, folder in (("val", "val"), ("test", "test")):
        (divided / folder).rename(divided.parent / "away")
        source = load(divided, val_fraction=0.25, test_fraction=0.25)
        assert lengths(source) == {"val": (6, 2, 8), "test": (6, 8, 2)}[name]
        (divided.parent / "away").rename(divided / folder)


def test_a_class_of_one_image_is_trained_on(root):
    fill(root / "rare", 1)
    source = load(root)
    assert torch.bincount(source.train.labels).tolist() == [8, 8, 1]
    assert torch.bincount(source.val.labels).tolist() == [1, 1]


def test_images_are_in_the_order_of_their_paths_at_any_depth(tmp_path):
    for name in ("b", "a"):
        fill(tmp_path / "x" / name / "images", 2, "z{}.JPEG")
        fill(tmp_path / "x" / name, 2, "{}.png")
    source = data_set("image_folder", tmp_path / "x", size=8)
    paths = [file.path for files in source.find_files()["train"].values() for file in files]
    assert paths == [f"{c}/{p}" for c in "ab" for p in ("0.png", "1.png", "images/z0.JPEG", "images/z1.JPEG")]


def test_other_files_and_hidden_ones_are_ignored(root):
    expected = load(root).train.sha256
    (root / "cat" / "notes.txt").write_text("mine")
    (root / "cat" / ".hidden.png").write_bytes(b"")
    (root / "cat" / "._image0.png").write_bytes(b"resource fork")
    (root / "read me.md").write_text("mine")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    assert load(root).train.sha256 == expected


def test_links_to_folders_are_followed_but_not_in_a_circle(root):
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "lynx").symlink_to(root / "dog")
    assert load(root).class_names == ["cat", "dog", "lynx"]


def test_every_usual_format_is_read(tmp_path):
    for name in ("a", "b"):
        for number, extension in enumerate("png jpg jpeg bmp webp tif tiff gif ppm PNG".split()):
            fill(tmp_path / "x" / name, 1, f"{number}.{extension}")
    assert sum(lengths(load(tmp_path / "x"))) == 20


def test_conversions_are_one_line_in_the_log(root, caplog):
    caplog.set_level("INFO", "kdbench")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "cat" / "image0.png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(root / "cat" / "image1.png")
    load(root)
    text = "of 20 images, converted to 8-bit RGB: 1 alpha (drawn over black), 1 grey"
    assert text in caplog.text
    caplog.clear()
    load(root)  # from the cache
    assert text in caplog.text


def test_a_missing_root_is_an_error(tmp_path):
    found = error(tmp_path / "nowhere")
    assert (found.code, found.key) == ("not_found", "data.root")
    assert str(tmp_path / "nowhere") in str(found)


def test_folders_that_cannot_be_used_are_errors_that_name_them(tmp_path):
    root = tmp_path / "x"
    fill(root, 3)
    found = error(root)
    assert (found.code, found.key) == ("invalid_data", "data.root")
    assert f"{root} has no class folders" in str(found)
    fill(root / "cat", 3)
    assert "one class folder, 'cat'; at least two" in str(error(root))
    (root / "dog").mkdir()
    (root / "dog" / "notes.txt").write_text("no image")
    assert f"{root / 'dog'} has no images" in str(error(root))


def test_splits_without_class_folders_or_without_train_are_errors(tmp_path):
    root = tmp_path / "x"
    fill(root / "test", 3)
    assert "has test, but no folder train" in str(error(root))
    fill(root / "train", 3)
    assert f"{root / 'train'} has no class folders" in str(error(root))
    for name in ("cat", "dog"):
        fill(root / "train" / name, 3)
    assert f"{root / 'test'} has no class folders" in str(error(root))
    assert "divided off" in str(error(root))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        fill(tmp_path / "x" / name, 10)
    assert load(tmp_path / "x").class_names == ["bus", "train"]


def test_class_folders_that_differ_between_splits_are_an_error(divided):
    (divided / "val" / "dog").rename(divided / "val" / "dogs")
    found = error(divided)
    assert found.code == "invalid_data"
    assert f"{divided / 'val'} lacks dog, and {divided / 'train'} lacks dogs" in str(found)


def test_two_folders_for_one_split_are_an_error(divided):
    fill(divided / "valid" / "cat", 1)
    assert "several folders for val: keep one of val and valid" in str(error(divided))


def test_damaged_images_are_an_error_with_the_first_and_their_number(root):
    whole = (root / "cat" / "image3.png").read_bytes()
    (root / "cat" / "image3.png").write_bytes(whole[:-60])
    found = error(root)
    assert (found.code, found.key) == ("damaged", "data.root")
    assert "an image under" in str(found)
    assert "cat/image3.png" in str(found)
    (root / "cat" / "image2.png").write_bytes(b"")
    (root / "dog" / "image7.png").write_bytes(b"no image")
    found = error(root)
    assert f"3 of 20 images under {root} cannot be decoded, the first is cat/image2.png (the file is empty)" in str(
        found
    )
    assert not (root / ".kdbench").exists() or not list((root / ".kdbench").glob("*.bin"))


def test_a_link_to_nowhere_is_a_damaged_image(root):
    (root / "cat" / "a.png").symlink_to(root / "gone.png")
    assert "cat/a.png" in str(error(root))


def test_fractions_that_leave_nothing_are_errors(root):
    found = error(root, val_fraction=0.5, test_fraction=0.5)
    assert (found.code, found.key) == ("out_of_range", "data.val_fraction")
    for value in (0.0, 1.0, -0.1):
        assert error(root, test_fraction=value).key == "data.test_fraction"
    for name in ("cat", "dog"):
        for path in list((root / name).iterdir())[1:]:
            path.unlink()
    assert "too few to divide off a split" in str(error(root))


def test_a_size_out_of_range_is_an_error(root):
    for size in (0, 5000):
        assert error(root, size=size).code == "out_of_range"


def test_images_are_decoded_once(root, monkeypatch):
    first = load(root)
    files = list((root / ".kdbench").iterdir())
    assert [path.suffix for path in files] == [".bin"]
    monkeypatch.setattr(decode, "decode", None)
    second = load(root)
    assert all(getattr(first, name).sha256 == getattr(second, name).sha256 for name in ("train", "val", "test"))


def test_a_change_of_what_the_images_depend_on_is_noticed(root):
    def cached():
        load(root)
        return len(list((root / ".kdbench").glob("*.bin")))

    assert cached() == 1
    os.utime(root / "cat" / "image0.png", (1, 1))
    assert cached() == 2
    (root / "cat" / "image0.png").rename(root / "cat" / "other.png")
    assert cached() == 3
    load(root, size=6)
    assert cached() == 4
    load(root, val_fraction=0.3)
    assert cached() == 4


def test_the_cache_may_lie_elsewhere(root, tmp_path):
    load(root, cache=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert not (root / ".kdbench").exists()


def test_a_cache_that_cannot_be_written_is_not_needed(root, tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    expected = load(root).train.sha256
    assert load(root, cache=str(tmp_path / "file" / "cache")).train.sha256 == expected
    assert "the decoded images are not kept" in caplog.text


LOAD = """
import sys
from tests.data.sets import data_set
print(data_set("image_folder", sys.argv[1], size=8).load().train.sha256)
"""


@pytest.mark.slow
def test_two_processes_at_once_write_one_whole_cache_file(root):
    command = [sys.executable, "-c", LOAD, str(root)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert outputs == {load(root).train.sha256}
    assert [path.suffix for path in (root / ".kdbench").iterdir()] == [".bin"]


def test_paths_are_no_part_of_the_identity():
    fields = type(data_set("image_folder").config).__dataclass_fields__
    assert [fields[name].metadata["identity"] for name in ("root", "cache", "size")] == [False, False, True]
