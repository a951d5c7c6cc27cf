import os
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from kdbench.data import decode
from kdbench.data.decode import Decoded, Reader, as_rgb, resized
from kdbench.data.decode_cache import decode_cached, read_cache, write_cache
from kdbench.errors import ConfigError

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def reader_of(images, option="data=some"):
    """Return a reader of images that are given as functions that make them."""
    return Reader(len(images), lambda row: (images[row](), row), lambda row: f"image {row}", "ROOT", option)


def saved(tmp_path, image, name, **keys):
    image.save(tmp_path / name, **keys)
    return Image.open(tmp_path / name)


def test_eight_bit_rgb_keeps_its_values(tmp_path):
    values = pixels(5, 7, 3)
    image, kinds = as_rgb(saved(tmp_path, Image.fromarray(values), "a.png"))
    assert np.array_equal(np.asarray(image), values)
    assert kinds == []


def test_grey_becomes_three_equal_channels(tmp_path):
    values = pixels(5, 7)
    image, kinds = as_rgb(saved(tmp_path, Image.fromarray(values), "a.png"))
    assert np.array_equal(np.asarray(image), np.repeat(values[..., None], 3, axis=2))
    assert kinds == ["grey"]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_divided_by_256(tmp_path, name):
    values = RNG.integers(0, 2**16, (5, 7)).astype(np.uint16)
    values[0, :2] = 0, 65535
    image, kinds = as_rgb(saved(tmp_path, Image.fromarray(values), name))
    assert np.array_equal(np.asarray(image)[..., 1], values // 256)
    assert kinds == ["16-bit (divided by 256)"]


def test_alpha_is_drawn_over_black(tmp_path):
    values = pixels(5, 7, 4)
    image, kinds = as_rgb(saved(tmp_path, Image.fromarray(values), "a.png"))
    expected = values[..., :3].astype(float) * values[..., 3:] / 255
    assert np.abs(np.asarray(image) - expected).max() <= 1
    assert kinds == ["alpha (drawn over black)"]
    values[..., 3] = 255
    image, _ = as_rgb(saved(tmp_path, Image.fromarray(values), "b.png"))
    assert np.array_equal(np.asarray(image), values[..., :3])


def test_a_palette_is_resolved_with_and_without_a_transparent_colour(tmp_path):
    image = Image.fromarray((np.arange(35) % 4).astype(np.uint8).reshape(5, 7), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    converted, kinds = as_rgb(saved(tmp_path, image, "a.png"))
    assert np.asarray(converted)[0, :4].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    assert kinds == ["palette"]
    converted, kinds = as_rgb(saved(tmp_path, image, "b.png", transparency=1))
    assert np.asarray(converted)[0, :4].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 255], [9, 9, 9]]
    assert kinds == ["alpha (drawn over black)"]


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (7, 5), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as opened:
        image, kinds = as_rgb(opened)
    assert image.getpixel((3, 3)) == (255, 0, 0)
    assert "several frames (the first is used)" in kinds


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = pixels(5, 7, 3)
    opened = saved(tmp_path, Image.fromarray(values), "a.png", exif=exif)
    expected = {
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.transpose(1, 0, 2),
        6: np.rot90(values, -1), 7: values[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(values),
    }  # fmt: skip
    image, kinds = as_rgb(opened)
    assert np.array_equal(np.asarray(image), expected[orientation])
    assert len(kinds) == (orientation != 1)


def test_more_than_sixteen_bits_are_refused(tmp_path):
    for values in (np.full((5, 7), 70_000, np.int32), np.zeros((5, 7), np.float32)):
        with pytest.raises(ValueError, match="only 8 and 16 bits"):
            as_rgb(saved(tmp_path, Image.fromarray(values), "a.tif"))


def test_an_image_of_the_size_keeps_its_very_bytes():
    image = Image.fromarray(pixels(16, 16, 3))
    assert resized(image, 16) is image


@pytest.mark.parametrize("shape", [(20, 33), (40, 17), (8, 9), (16, 50)])
def test_others_are_resized_and_cropped_as_torchvision_does(shape):
    image = Image.fromarray(pixels(*shape, 3))
    expected = Compose([Resize(16), CenterCrop(16)])(image)
    assert np.array_equal(np.asarray(resized(image, 16)), np.asarray(expected))


def test_a_line_of_pixels_takes_little_memory():
    assert resized(Image.new("RGB", (1, 60_000)), 224).size == (224, 224)


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    values = [pixels(9, 11, 3) for _ in range(200)]
    reader = reader_of([lambda v=v: Image.fromarray(v) for v in values])
    results = []
    for threads in (1, 7):
        monkeypatch.setattr(decode, "available_cores", lambda n=threads: n)
        results.append(decode.decode(reader, 8))
    assert torch.equal(results[0].images, results[1].images)
    assert torch.equal(results[0].labels, torch.arange(200))
    assert torch.equal(results[1].labels, torch.arange(200))


def test_images_of_several_sizes_without_a_size_are_an_error():
    reader = reader_of([lambda: Image.new("RGB", (8, 8)), lambda: Image.new("RGB", (9, 8))])
    with pytest.raises(ConfigError) as error:
        decode.decode(reader, None)
    assert (error.value.code, error.value.key) == ("mismatch", "data.size")
    assert "image 1 has 9 x 8 pixels and image 0 has 8 x 8" in str(error.value)


def test_images_that_do_not_fit_into_memory_are_refused_with_a_size_that_fits(monkeypatch):
    reader = reader_of([lambda: pytest.fail("decoded")] * 1000)
    monkeypatch.setattr(decode, "free_memory", lambda device: 1000 * 3 * 32 * 32 / decode.SHARE)
    decode.check_fits(reader, (32, 32), copies=1)
    with pytest.raises(ConfigError) as error:
        decode.decode(reader, 33)
    assert (error.value.code, error.value.key) == ("no_memory", "data.size")
    assert "data.size=32 would fit" in str(error.value)
    with pytest.raises(ConfigError, match=r"data\.size=22 would fit"):
        decode.decode(reader, 32, copies=2)


def test_progress_of_long_decoding_is_logged_at_every_tenth(caplog, monkeypatch):
    monkeypatch.setattr(decode, "LONG", 0)
    caplog.set_level("INFO", "kdbench")
    decode.decode(reader_of([lambda: Image.new("RGB", (2, 2))] * 1000), 2)
    lines = [record.getMessage() for record in caplog.records]
    assert 8 <= sum("% of 1000 images" in line for line in lines) <= 10
    assert "data=some: decoded 1000 images in" in lines[-1]


def test_remarks_of_pillow_on_metadata_are_no_warnings():
    def remark():
        with warnings.catch_warnings():
            warnings.warn_explicit(
                "Corrupt EXIF data", UserWarning, "PIL/TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin"
            )
        return Image.new("RGB", (2, 2))

    decode.decode(reader_of([remark]), 2)


def test_the_interpreter_ends_soon_after_an_interruption():
    read = []

    def slow(row):
        read.append(row)
        if row == 40:
            raise KeyboardInterrupt
        return Image.new("RGB", (2, 2)), 0

    reader = Reader(100_000, slow, str, "ROOT", "data=some")
    with pytest.raises(KeyboardInterrupt):
        decode.decode(reader, 2)
    assert len(read) < 50_000


def some(count=3):
    return Decoded(torch.from_numpy(pixels(count, 4, 4, 3)), torch.arange(count), {"grey": 2})


def test_a_cache_file_returns_what_was_written(tmp_path):
    decoded, file = some(), tmp_path / "a.bin"
    write_cache(file, decoded)
    cached = read_cache(file)
    assert torch.equal(cached.images, decoded.images)
    assert torch.equal(cached.labels, decoded.labels)
    assert cached.conversions == decoded.conversions
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_cache_file_that_is_cut_changed_or_no_cache_file_is_written_anew(tmp_path, caplog):
    decoded, file = some(), tmp_path / "a.bin"
    write_cache(file, decoded)
    whole = file.read_bytes()
    reader = reader_of([lambda: Image.new("RGB", (4, 4))])
    changed = bytearray(whole)
    changed[-5] ^= 1
    header = bytearray(whole)
    header[20] ^= 1
    for content in (
        b"",
        b"{}",
        whole[:-1],
        whole + b"x",
        whole[:30],
        bytes(changed),
        bytes(header),
        struct.pack("9d", *range(9)),
    ):
        file.write_bytes(content)
        caplog.clear()
        assert read_cache(file) is None
        assert "is damaged and is written anew" in caplog.text
        assert len(decode_cached(file, reader, 4).labels) == 1
        assert len(read_cache(file).labels) == 1


def test_a_cache_that_cannot_be_written_is_a_line_in_the_log(tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    reader = reader_of([lambda: Image.new("RGB", (4, 4))])
    assert len(decode_cached(tmp_path / "file" / "a.bin", reader, 4).labels) == 1
    assert "the decoded images are not kept, since data.cache" in caplog.text


def test_a_full_disk_is_a_line_in_the_log(tmp_path, caplog, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    reader = reader_of([lambda: Image.new("RGB", (4, 4))])
    assert len(decode_cached(tmp_path / "a.bin", reader, 4).labels) == 1
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []
