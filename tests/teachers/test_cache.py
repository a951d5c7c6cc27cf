"""The logit cache: its contents, its construction, and what is never trained from."""

import dataclasses
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdbench.config import RunConfig
from kdbench.data.batches import BatchPlan
from kdbench.methods.base import Requires
from kdbench.models.weights import read_metadata, save
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.identity import teacher_directory
from kdbench.rundir.summary import read_summary, write_summary
from kdbench.runner.build import Parts, build_parts
from kdbench.runner.run import resolve_run
from kdbench.system.device import torch_settings
from kdbench.teachers import cache
from kdbench.teachers.cache import BATCHES_PER_BLOCK, LogitCache
from kdbench.teachers.live import CachedTeacher, LiveTeacher
from kdbench.teachers.store import Teacher, load_verified
from kdbench.train.evaluate import EVALUATION_BATCH
from tests.conftest import NARROW, SMALL, complete, composed_once, rest_wide
from tests.teachers.conftest import PLAIN, LogLines, cache_of

BATCH = EVALUATION_BATCH["cpu"]
TINY_TEACHER = ("teacher=resnet8", "teacher.widths=[8,8,8,8]")
"""Computes thousands of views in a second."""
Small = Callable[..., RunConfig]


@dataclasses.dataclass
class Opened:
    """What a run's logit cache is made of."""

    config: RunConfig
    parts: Parts
    teacher: Teacher
    cache: LogitCache


@contextmanager
def opened(config: RunConfig) -> Iterator[Opened]:
    """Open the logit cache of a run whose teacher is complete, as it is on the disk or will be."""
    config, _ = resolve_run(config)
    with torch_settings(config.runtime):
        parts = build_parts(config)
        directory, requires = teacher_directory(config), Requires(teacher_logits=True)
        teacher = load_verified(directory, config, requires, parts.dataset)
        yield Opened(config, parts, teacher, LogitCache(config, teacher, parts.batches))


# Contents


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunDirectory]:
    """A run whose teacher has a cache of all 162 views. A training batch has the size of the cache's batches.

    Other kernels may serve other sizes; with the same ones, live and cached logits are equal bit for bit.
    """
    root = tmp_path_factory.mktemp("out")
    sizes = (f"data.num_train={BATCH}", f"recipe.batch_size={BATCH}", f"teacher.recipe.batch_size={BATCH}")
    settings = (*TINY_TEACHER, *sizes, "teacher.cache=on", "recipe.epochs=2")
    config = composed_once(*SMALL, *NARROW, *settings, f"output_root={root}")
    return config, complete(config)


def test_cache_holds_float32_logits_of_every_view_of_every_training_image(whole: Any) -> None:
    values = np.load(cache_of(whole[1]), mmap_mode="r")
    assert (values.shape, values.dtype) == ((BATCH, 162, 10), np.float32)
    assert np.isfinite(values).all()
    assert len(np.unique(values[:, :, 0])) > 0.9 * BATCH * 162  # every view is another image


def test_cache_returns_what_the_live_teacher_computes(whole: Any) -> None:
    with opened(whole[0]) as o:
        live = LiveTeacher(o.teacher.network, Requires(teacher_logits=True), o.config.runtime)
        cached = CachedTeacher(o.cache.read(), o.parts.dataset.train)
        for epoch in (0, 7):
            for batch in o.parts.batches.epoch(epoch):
                assert torch.equal(logits_of(cached(batch)), logits_of(live(batch)))
        for size in (5, 30):  # other kernels may serve other sizes
            batch = o.parts.batches.batch(BatchPlan(torch.arange(size), torch.arange(size)))
            there, here = logits_of(cached(batch)), logits_of(live(batch))
            torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
            assert torch.equal(there.argmax(1), here.argmax(1))


def logits_of(output: Any) -> torch.Tensor:
    assert output.logits is not None
    return output.logits


def test_the_wrong_view_of_the_right_image_has_other_logits(whole: Any) -> None:
    values = torch.from_numpy(np.load(cache_of(whole[1])))
    flipped = values.reshape(BATCH, 81, 2, 10).flip(2).reshape_as(values)
    shifted = values.roll(2, dims=1)
    for wrong in (flipped, shifted, values.roll(1, dims=0)):
        assert not torch.isclose(values, wrong, rtol=1e-5, atol=1e-5).all(-1).any()


def test_student_of_the_cache_is_the_student_of_the_live_teacher_bit_for_bit(whole: Any) -> None:
    config, run = whole
    from_cache = run.weights.read_bytes()
    source = dataclasses.replace(config.teacher, cache="off")
    live = complete(dataclasses.replace(config, teacher=source, overwrite=True))
    assert live == run
    assert live.read_summary().logit_cache is False
    assert live.weights.read_bytes() == from_cache


def test_record_holds_what_the_values_depend_on_and_where_they_were_computed(whole: Any) -> None:
    file = cache_of(whole[1])
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["sha256"] == sha256(file)
    assert set(record["fingerprint"]) == {
        "weights_sha256", "architecture", "data_sha256", "images", "views", "padding", "flip", "normalisation",
        "precision", "batch_norm", "batch_size", "device", "torch", "torchvision",
    }  # fmt: skip
    assert set(record["made"]) == {"device", "threads", "seconds", "views_per_second"}


def test_reading_cannot_change_the_file(whole: Any) -> None:
    before = sha256(cache_of(whole[1]))
    with opened(whole[0]) as o:
        o.cache.read()[:] = 0
    assert sha256(cache_of(whole[1])) == before


# Caches that cannot be used


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def edit_fingerprint(file: Path, **values: str) -> None:
    record = json.loads(file.with_suffix(".json").read_text())
    record["fingerprint"] |= values
    file.with_suffix(".json").write_text(json.dumps(record))


def date_from_an_older_torch(file: Path) -> None:
    edit_fingerprint(file, torch="1.0")


def belong_to_another_teacher(file: Path) -> None:
    edit_fingerprint(file, weights_sha256="0" * 64)


def lose_the_record(file: Path) -> None:
    file.with_suffix(".json").unlink()


def damage_the_record(file: Path) -> None:
    file.with_suffix(".json").write_text("{}")


DAMAGES = (flip_a_bit, lose_the_record, cut, date_from_an_older_torch, belong_to_another_teacher, damage_the_record)


@pytest.fixture(scope="module")
def cached_once(teachers_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cached")
    shutil.copytree(teachers_once / "runs", root / "runs")
    complete(composed_once(*SMALL, *NARROW, *PLAIN, f"output_root={root}"))
    return root


@pytest.fixture
def cached(small: Small, cached_once: Path, tmp_path: Path) -> RunDirectory:
    """A complete run whose teacher has a logit cache, not verified yet by this process."""
    shutil.copytree(cached_once / "runs", tmp_path / "out" / "runs")
    run = complete(small(*PLAIN))
    cache.forget_verified()
    return run


@pytest.mark.parametrize("damage", rest_wide(DAMAGES, 2))
def test_a_cache_that_cannot_be_used_is_built_again(
    small: Small, cached: RunDirectory, log_lines: LogLines, damage: Callable[[Path], None]
) -> None:
    file = cache_of(cached)
    correct = file.read_bytes()
    damage(file)
    run = complete(small(*PLAIN, "seed=1"))
    assert run.read_summary().logit_cache is True
    assert file.read_bytes() == correct
    assert any(str(file) in line and line not in run.log.read_text() for line in log_lines())


def test_without_a_request_to_build_it_a_damaged_cache_makes_the_teacher_live(
    small: Small, cached: RunDirectory
) -> None:
    file = cache_of(cached)
    cut(file)
    damaged = file.read_bytes()
    run = complete(small("data.augment=false", "seed=1"))
    assert run.read_summary().logit_cache is False
    assert str(file) in run.log.read_text()
    assert file.read_bytes() == damaged


def test_the_problem_names_what_differs(small: Small, cached: RunDirectory) -> None:
    file = cache_of(cached)
    with opened(small(*PLAIN)) as o:
        assert o.cache.problem() is None
        cache.forget_verified()
        edit_fingerprint(file, torch="1.0")
        assert "torch is 1.0" in str(o.cache.problem())
        lose_the_record(file)
        assert "logits-cpu.json" in str(o.cache.problem())


def test_the_cache_of_a_teacher_that_was_trained_again_is_built_again(small: Small, cached: RunDirectory) -> None:
    file = cache_of(cached)
    teacher = file.parent
    weights = load_file(teacher / "best.safetensors")
    weights["fc.bias"] += 0.01
    save(weights, teacher / "best.safetensors", read_metadata(teacher / "best.safetensors"))
    digest = sha256(teacher / "best.safetensors")
    write_summary(teacher, dataclasses.replace(read_summary(teacher), weights_sha256=digest))
    before = np.load(file)
    complete(small(*PLAIN, "seed=1"))
    assert json.loads(file.with_suffix(".json").read_text())["fingerprint"]["weights_sha256"] == digest
    np.testing.assert_allclose(np.load(file) - before, 0.01, atol=1e-4)


def test_a_damaged_cache_is_not_built_again_without_space(
    small: Small, cached: RunDirectory, fill_disk: Callable[[], None]
) -> None:
    halve(cache_of(cached))
    fill_disk()
    assert complete(small(*PLAIN, "seed=1")).read_summary().logit_cache is False


# Construction


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing_of_the_cache_and_the_teacher_is_live(small: Small) -> None:
    config = small(*TINY_TEACHER, "teacher.cache=on")
    size, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (cache.size_of(config) - 1000, hard))
    try:
        run = complete(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    assert run.read_summary().logit_cache is False
    assert not list(cache_of(run).parent.glob("*logits-cpu*"))
    assert not list(cache_of(run).parent.glob(".logits-cpu*"))


BLOCK = BATCHES_PER_BLOCK * BATCH
TOTAL = 64 * 162
ENTRY = 40
"""Bytes of ten float32 logits."""


@pytest.fixture(scope="module")
def uninterrupted(teachers_once: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The cache of 64 images, built at once."""
    root = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(teachers_once / "runs", root / "runs")
    with opened(composed_once(*SMALL, *NARROW, f"output_root={root}")) as o:
        o.cache.build()
        return o.cache.file.read_bytes()


def cut_the_last_entry(partial: Path) -> None:
    partial.write_bytes(partial.read_bytes()[:-3])


def lose_the_second_block(partial: Path) -> None:
    """Empty a block, as a power cut can, after which a file has its length and holes."""
    content = bytearray(partial.read_bytes())
    content[128 + BLOCK * ENTRY : 128 + 2 * BLOCK * ENTRY] = bytes(BLOCK * ENTRY)
    partial.write_bytes(content)


@pytest.mark.slow
@pytest.mark.usefixtures("trained_teachers")
@pytest.mark.parametrize(
    ("blocks", "damage", "kept"), [(3, None, 2), (3, cut_the_last_entry, 1), (2, lose_the_second_block, 1)]
)
def test_an_interrupted_cache_is_completed_and_equals_an_uninterrupted_one(
    small: Small,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: bytes,
    blocks: int,
    damage: Callable[[Path], None] | None,
    kept: int,
) -> None:
    sizes: list[int] = []
    with opened(small()) as o:
        compute = o.cache.live_logits

        def interrupted(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            if len(sizes) == blocks:
                raise KeyboardInterrupt
            sizes.append(len(rows))
            return compute(rows, columns)

        def counted(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            sizes.append(len(rows))
            return compute(rows, columns)

        monkeypatch.setattr(o.cache, "live_logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            o.cache.build()
        partial = o.cache.partial
        assert partial.stat().st_size == 128 + blocks * BLOCK * ENTRY
        if damage:
            damage(partial)
        sizes.clear()
        monkeypatch.setattr(o.cache, "live_logits", counted)
        o.cache.build()
        assert sum(sizes) == TOTAL - kept * BLOCK
        assert o.cache.file.read_bytes() == uninterrupted
        assert not list(partial.parent.glob(".logits*"))


@pytest.mark.usefixtures("trained_teachers")
def test_the_beginning_of_another_cache_is_removed(small: Small) -> None:
    config = small(*PLAIN)
    stranger = teacher_directory(resolve_run(config)[0]).path / ".logits-cpu.0000.partial"
    stranger.write_bytes(b"x" * 1000)
    complete(config)
    assert not stranger.exists()
