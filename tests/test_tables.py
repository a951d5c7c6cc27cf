"""Teacher tables: what is in them, when they are built and read, and what is never trained from."""

import dataclasses
import errno
import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdbench import run, tables, teachers
from kdbench.data.views import NUM_VIEWS
from kdbench.errors import RunError
from kdbench.methods.method import Needs
from kdbench.run import check, execute, located, prepare
from kdbench.runs import sealed, sha256
from kdbench.runtime import applied
from kdbench.teaching import LiveTeacher, TabulatedTeacher
from tests.conftest import killed_after

PLAIN = ("data.augment=false", "teacher.table=on")
"""One view an image, so that a table takes no time."""


@pytest.fixture(autouse=True)
def fresh_process(trained_teachers):
    """What a new process would know, and teachers in the folder that `small` writes to."""
    tables.forget_checked()


@pytest.fixture
def said(monkeypatch):
    """What kdbench logs, line by line."""
    lines = []

    class Listener(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    package, listener = logging.getLogger("kdbench"), Listener()
    monkeypatch.setattr(package, "level", logging.DEBUG)
    package.addHandler(listener)
    yield lines
    package.removeHandler(listener)


def opened(config):
    """A run's resolved config, its parts, its teacher, and the table as it is on disk or will be."""
    config, _ = located(config)
    with applied(config.runtime):
        parts = prepare(config)
        teacher = teachers.obtain(config, Needs(teacher_logits=True), parts.dataset, execute)
        return config, parts, teacher, tables.Table(config, teacher, parts.batches)


def table_of(run):
    """The table's file beside the teacher of a finished run."""
    return next(run.path.parent.glob(f"*_{run.read_summary()['teacher_key']}")) / "table-cpu.npy"


def weights_of(run):
    return load_file(run.weights)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# What is in it


@pytest.fixture(scope="module")
def whole_table(tmp_path_factory):
    from tests.conftest import NARROW, SMALL, composed

    root = tmp_path_factory.mktemp("out")
    settings = ("teacher=resnet8", "data.num_train=32", "recipe.batch_size=16", "teacher.table=on", "recipe.epochs=2")
    config = composed(*SMALL, *NARROW, *settings, f"output_root={root}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(tables.EVALUATION_BATCH, "cpu", 16)  # as many as a training batch has: the same kernels
        run = execute(config)
    return config, run, table_of(run)


@pytest.fixture
def whole(whole_table, monkeypatch):
    """A run's config, the run, and its teacher's table of all 162 views."""
    monkeypatch.setitem(tables.EVALUATION_BATCH, "cpu", 16)
    return whole_table


def test_table_holds_float32_logits_of_every_view_of_every_training_image(whole):
    values = np.load(whole[2], mmap_mode="r")
    assert (values.shape, values.dtype) == ((32, NUM_VIEWS, 10), np.float32)
    assert np.isfinite(values).all()
    assert len(np.unique(values[:, :, 0])) > 0.9 * 32 * NUM_VIEWS  # every view is another image


def test_table_answers_what_the_live_teacher_answers(whole):
    config, parts, teacher, table = opened(whole[0])
    live = LiveTeacher(teacher.network, Needs(teacher_logits=True), config.runtime)
    tabulated = TabulatedTeacher(table.read(), parts.dataset.train, tables.views_of(config))
    for epoch in (0, 7):
        for batch in parts.batches.epoch(epoch):
            assert torch.equal(tabulated(batch).logits, live(batch).logits)
    for size in (5, 30):  # other kernels may serve other sizes
        batch = parts.batches.batch(torch.arange(size), torch.arange(size))
        there, here = tabulated(batch).logits, live(batch).logits
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
        assert torch.equal(there.argmax(1), here.argmax(1))


def test_student_of_a_table_is_the_student_of_the_live_teacher_bit_for_bit(whole, tmp_path):
    config, run, _ = whole
    moved = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, table="off"), overwrite=True)
    from_table = weights_of(run)
    live = execute(moved)
    assert live == run
    assert live.read_summary()["teacher_table"] is False
    assert same(from_table, weights_of(live))


def test_record_says_what_the_values_depend_on_and_where_they_were_made(whole):
    record = json.loads(whole[2].with_suffix(".json").read_text())
    assert record["sha256"] == sha256(whole[2])
    assert set(record["fingerprint"]) == {
        "weights_sha256", "architecture", "data_sha256", "images", "views", "padding", "normalisation", "precision",
        "batch_norm", "batch_size", "device", "torch", "torchvision",
    }  # fmt: skip
    assert set(record["made"]) == {"device", "threads", "seconds", "views_per_second"}


def test_reading_cannot_change_the_file(whole):
    *_, table = opened(whole[0])
    before = sha256(whole[2])
    table.read()[:] = 0
    assert sha256(whole[2]) == before


# When it is built and read


def test_run_records_what_it_learned_from(small, said):
    run = execute(small(*PLAIN))
    assert run.read_summary()["teacher_table"] is True
    assert "table: 'on'" in run.config.read_text()
    assert f"teacher: table {table_of(run)}, to be built\n" in run.log.read_text()
    assert execute(small("method=ce")).read_summary()["teacher_table"] is None


def test_table_is_no_part_of_a_runs_key(small):
    assert execute(small(*PLAIN)) == execute(small("data.augment=false", "teacher.table=off"))


def test_auto_trains_live_where_a_table_is_not_repaid(small, said):
    run = execute(small())
    assert run.read_summary()["teacher_table"] is False
    assert not table_of(run).exists()
    assert any(
        line.startswith("teacher: live (a table is repaid by more than 162 epochs, here are 1; ") for line in said
    )


def test_auto_builds_what_its_own_epochs_repay(small):
    once, twice = (execute(small("data.augment=false", f"recipe.epochs={n}", f"seed={n}")) for n in (1, 2))
    assert once.read_summary()["teacher_table"] is False
    assert twice.read_summary()["teacher_table"] is True


def test_auto_reads_a_table_that_is_there(small, said):
    execute(small(*PLAIN))
    before = len([line for line in said if "table of 64 images" in line])
    assert execute(small("data.augment=false", "seed=1")).read_summary()["teacher_table"] is True
    assert len([line for line in said if "table of 64 images" in line]) == before == 1


@pytest.mark.slow
def test_a_sweep_counts_the_epochs_of_all_its_jobs(kdbench, tmp_path):
    from tests.conftest import NARROW, SMALL

    sweep = ("method=logit,feature,ce", "seed=0,1", f"output_root={tmp_path / 'out'}")
    ended = kdbench("-m", *SMALL, *NARROW, "data.augment=false", *sweep)
    assert ended.code == 0, ended.err
    assert "teacher resnet20: one table for 2 jobs, 2 epochs in all" in ended.out
    assert ended.out.count("table of 64 images x 1 views") == 1
    (record,) = (tmp_path / "out" / "sweeps").iterdir()
    jobs = json.loads(record.read_text())["jobs"]
    told = ["teacher.table=on" in job["overrides"] for job in jobs]
    assert told == ["method=logit" in job["overrides"] for job in jobs]


@pytest.mark.slow
def test_a_sweep_whose_epochs_do_not_repay_a_table_is_left_alone(kdbench, tmp_path):
    from tests.conftest import NARROW, SMALL

    ended = kdbench("-m", *SMALL, *NARROW, "method=logit", "seed=0,1", f"output_root={tmp_path / 'out'}")
    assert ended.code == 0, ended.err
    assert "one table" not in ended.out
    assert "teacher.table=on" not in ended.out.replace("teacher.table=on builds one", "")


def test_methods_that_read_maps_keep_the_live_teacher_and_say_so(small, said):
    run = execute(small(*PLAIN, "method=feature"))
    assert run.read_summary()["teacher_table"] is False
    assert "teacher: live (method=feature reads feature maps, which a table does not hold)" in said


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_a_bare_on_or_off_in_yaml_means_what_it_says(small, written, meant):
    from omegaconf import OmegaConf

    from kdbench.config import parse

    node = small().node()
    node["teacher"]["table"] = OmegaConf.create(f"table: {written}").table
    assert parse(node).teacher.table == meant


# A run continues as it began


def begin(config):
    """Have a run die after an epoch, with a checkpoint."""
    with killed_after(epoch=1, epochs=3):
        execute(config)


LONG = ("data.augment=false", "recipe.epochs=3", "checkpoint.every_minutes=0")


def test_run_that_began_live_goes_on_live_though_there_is_a_table_now(small, monkeypatch, said):
    config = small(*LONG, "teacher.table=off")
    begin(config)
    execute(small(*PLAIN, "seed=1"))
    resumed = execute(small(*LONG, "teacher.table=on"))
    assert resumed.read_summary()["teacher_table"] is False
    assert "teacher: live (as this run began)" in said


def test_run_that_began_with_a_table_goes_on_with_one(small, monkeypatch):
    begin(small(*LONG, "teacher.table=on"))
    (table,) = Path(small().output_root).glob("runs/*/table-cpu.npy")
    table.unlink()
    assert execute(small(*LONG, "teacher.table=off")).read_summary()["teacher_table"] is True


def test_run_that_began_with_a_table_stops_where_there_is_no_room_for_it(small, monkeypatch, full_disk):
    config = small(*LONG, "teacher.table=on")
    begin(config)
    directory = located(config)[1]
    teachers.directory_of(located(config)[0]).path.joinpath("table-cpu.npy").unlink()
    full_disk()
    before = directory.checkpoint.read_bytes()
    with pytest.raises(RunError, match=r"no room for a table.*this run began with its teacher's table"):
        execute(config)
    assert directory.checkpoint.read_bytes() == before


# What cannot be used


def rewritten(file, values):
    """Other values with a record that vouches for them."""
    np.save(file, values)
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(record | {"sha256": sha256(file)}))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-40])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def come_from_an_older_torch(file):
    record = json.loads(file.with_suffix(".json").read_text())
    record["fingerprint"]["torch"] = "1.0"
    file.with_suffix(".json").write_text(json.dumps(record))


def come_from_another_teacher(file):
    record = json.loads(file.with_suffix(".json").read_text())
    record["fingerprint"]["weights_sha256"] = "0" * 64
    file.with_suffix(".json").write_text(json.dumps(record))


def lose_its_record(file):
    file.with_suffix(".json").unlink()


def hold_other_images_with_a_record_that_says_they_are_right(file):
    rewritten(file, np.roll(np.load(file), 1, axis=0))


def hold_what_is_no_number(file):
    rewritten(file, np.full_like(np.load(file), np.nan))


def be_no_array(file):
    file.write_bytes(b"nonsense")
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(record | {"sha256": sha256(file)}))


DAMAGE = {
    truncate: "it was cut short or changed since it was written",
    flip_a_bit: "it was cut short or changed since it was written",
    come_from_an_older_torch: "its torch is 1.0 there and ",
    come_from_another_teacher: "its weights_sha256 is 000000000000... there and ",
    lose_its_record: "table-cpu.json is missing or damaged",
    hold_other_images_with_a_record_that_says_they_are_right: "from what the teacher answers here",
    hold_what_is_no_number: "from what the teacher answers here",
    be_no_array: "it is no table of 64 images",
}


@pytest.fixture(scope="module")
def tabulated_once(teachers_once, tmp_path_factory):
    from tests.conftest import NARROW, SMALL, composed

    root = tmp_path_factory.mktemp("tabulated")
    shutil.copytree(teachers_once / "runs", root / "runs")
    execute(composed(*SMALL, *NARROW, *PLAIN, f"output_root={root}"))
    return root


@pytest.fixture
def tabulated(small, tabulated_once, tmp_path):
    """A finished run whose teacher has a table."""
    shutil.copytree(tabulated_once / "runs", tmp_path / "out" / "runs", dirs_exist_ok=True)
    return execute(small(*PLAIN))  # finds it complete


EVERY_DAY = (
    truncate,
    come_from_an_older_torch,
    lose_its_record,
    hold_other_images_with_a_record_that_says_they_are_right,
)


@pytest.mark.parametrize(
    "damage",
    [pytest.param(kind, id=kind.__name__, marks=() if kind in EVERY_DAY else pytest.mark.slow) for kind in DAMAGE],
)
def test_table_that_cannot_be_used_is_built_anew_and_one_line_says_why(small, tabulated, said, damage):
    file = table_of(tabulated)
    right = file.read_bytes()
    damage(file)
    tables.forget_checked()
    run = execute(small(*PLAIN, "seed=1"))
    assert run.read_summary()["teacher_table"] is True
    (line,) = [line for line in said if "is built anew" in line]
    assert DAMAGE[damage] in line
    assert file.read_bytes() == right


def test_auto_trains_live_rather_than_from_a_table_that_cannot_be_used(small, tabulated, said):
    truncate(table_of(tabulated))
    tables.forget_checked()
    run = execute(small("data.augment=false", "seed=1"))
    assert run.read_summary()["teacher_table"] is False
    (line,) = {line for line in said if "is not used" in line}
    assert line.startswith("teacher: live (")
    assert "is not used: it was cut short or changed since it was written; teacher.table=on builds it anew" in line
    assert line in run.log.read_text()


def test_table_of_a_teacher_that_was_trained_anew_is_stale(small, tabulated, said):
    file = table_of(tabulated)
    summary = json.loads((file.parent / "summary.json").read_text())
    weights = load_file(file.parent / "best.safetensors")
    weights["fc.bias"] += 0.01
    from kdbench.models.weights import read_metadata, save

    save(weights, file.parent / "best.safetensors", read_metadata(file.parent / "best.safetensors"))
    summary["weights_sha256"] = sha256(file.parent / "best.safetensors")
    (file.parent / "summary.json").write_text(json.dumps(sealed(summary)))
    execute(small(*PLAIN, "seed=1"))
    assert any("is built anew: its weights_sha256 is " in line for line in said)


def test_table_that_is_wrong_straight_after_it_was_built_stops_the_run(small, monkeypatch):
    monkeypatch.setattr(tables, "compared", lambda there, expected: 1.0)
    with pytest.raises(RunError, match=r"was built and cannot be used: it differs by 100.0%.*teacher.table=off"):
        execute(small(*PLAIN))


def test_the_wrong_view_of_the_right_image_is_beyond_every_tolerance(whole):
    *_, table = opened(whole[0])
    values = table.read()
    flipped = values.reshape(32, 81, 2, 10).flip(2).reshape_as(values)
    shifted = values.roll(2, dims=1)
    rows, views = torch.arange(32), 5 * torch.arange(32)
    for wrong in (flipped, shifted, values.roll(1, dims=0)):
        assert tables.compared(values[rows, views], wrong[rows, views]) > max(tables.TOLERANCE.values())


def test_a_stale_table_is_no_reason_to_compute_without_room(small, tabulated, said, full_disk, monkeypatch):
    truncate(table_of(tabulated))
    tables.forget_checked()
    full_disk()
    monkeypatch.setattr(tables, "size_of", lambda config: 10**9)
    run = execute(small(*PLAIN, "seed=1"))
    assert run.read_summary()["teacher_table"] is False
    assert any("teacher: live (no room for a table: 1000.0 MB needed" in line for line in said)


def test_overwriting_a_run_chooses_anew(small):
    settings = ("data.augment=false", "checkpoint.keep_last=true", "overwrite=true")
    assert execute(small(*settings, "teacher.table=on")).read_summary()["teacher_table"] is True
    assert execute(small(*settings, "teacher.table=off")).read_summary()["teacher_table"] is False
    assert check(small(*settings)) is not None  # a sweep that overwrites counts its epochs


@pytest.fixture
def full_disk(monkeypatch):
    """Call it, and no byte is free for a table."""

    def fill() -> None:
        monkeypatch.setattr(tables.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        monkeypatch.setattr(run, "check_room", lambda *_: None)

    return fill


def test_no_room_is_said_before_anything_is_computed_and_the_run_goes_on_live(small, said, full_disk):
    full_disk()
    run = execute(small(*PLAIN))
    assert run.read_summary()["teacher_table"] is False
    first = said[0]
    assert first.startswith("teacher: live (no room for a table: 0.0 MB needed and 0.0 MB free in ")


def test_disk_that_fills_up_on_the_way_leaves_nothing_and_the_run_goes_on_live(small, said, monkeypatch):
    def full(self, rows, columns):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tables.Table, "answers", full)
    run = execute(small(*PLAIN))
    assert run.read_summary()["teacher_table"] is False
    assert any(line.startswith("teacher: live (no room for all of its table: ") for line in said)
    assert not list(table_of(run).parent.glob("*table*"))


# Interruption


def cut(partial):
    partial.write_bytes(partial.read_bytes()[:-3])


def lose_the_second_block(partial):
    """As a power cut can, after which a file is as long as it was, and empty in places."""
    content = bytearray(partial.read_bytes())
    content[128 + 128 * 40 : 128 + 2 * 128 * 40] = bytes(128 * 40)
    partial.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "left"), [(None, 3), (cut, 2), (lose_the_second_block, 1)])
def test_interrupted_table_is_completed_from_where_it_was_and_equals_an_uninterrupted_one(
    small, monkeypatch, said, damage, left, tmp_path
):
    settings = ("data.augment=false", "teacher.table=on", "data.num_train=400")
    answers, blocks = tables.Table.answers, []

    def count(self, rows, columns):
        blocks.append(len(rows))
        if len(blocks) == 4 and interrupt:
            raise KeyboardInterrupt
        return answers(self, rows, columns)

    monkeypatch.setattr(tables, "BATCHES_PER_BLOCK", 1)
    monkeypatch.setattr(tables.Table, "answers", count)
    interrupt = False
    other = execute(small(*settings, f"output_root={tmp_path / 'other'}"))
    assert blocks == [128, 128, 128, 16, tables.CHECKED]
    interrupt, blocks = True, []
    with pytest.raises(KeyboardInterrupt):
        execute(small(*settings))
    (partial,) = (tmp_path / "out" / "runs").glob("*/.table-cpu.*.partial")
    assert partial.stat().st_size == 128 + 3 * 128 * 40
    if damage:
        damage(partial)
    interrupt, blocks = False, []
    run = execute(small(*settings))
    assert blocks == [128] * (3 - left) + [16, tables.CHECKED]
    assert any("going on after" in line for line in said)
    assert table_of(run).read_bytes() == table_of(other).read_bytes()
    assert not list(partial.parent.glob(".table*"))


def test_beginning_of_another_table_is_removed(small):
    config = small(*PLAIN)
    teacher = execute(small("method=ce", "student=resnet20", "data.augment=false"))
    stranger = teacher.path / ".table-cpu.0000.partial"
    stranger.write_bytes(b"x" * 1000)
    execute(config)
    assert not stranger.exists()
