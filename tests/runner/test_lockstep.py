"""A run in a lockstep group computes what it computes alone, bit for bit, whatever happens to the others."""

import dataclasses
import itertools
import json
import logging
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from kdbench.config import RunConfig
from kdbench.errors import BusyError, RunError
from kdbench.models import Network, Output
from kdbench.rundir import checksummed
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import teacher_config
from kdbench.rundir.summary import RunSummary
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import RunResult, resolve_run
from kdbench.runner.run_all import Train
from kdbench.system.signals import Interrupted, handled
from kdbench.train.learner import Learner
from kdbench.train.loop import fit
from tests.conftest import SMALL, Killed, complete, composed_once, killed_after, rest_wide
from tests.every_method import EVERYDAY, METHODS, for_few_images
from tests.runner.trainers import (
    Subject,
    after_steps,
    at,
    counting_teacher_passes,
    raising,
    subject_of,
    with_learners,
    with_memory_for,
)

SIZE = (
    "data.num_train=56", "recipe.batch_size=16", "recipe.epochs=2", "teacher.recipe.batch_size=16",
    "data.num_val=20", "data.num_test=20", "student.widths=[8,8,16,16]", "teacher=resnet8",
    "teacher.widths=[8,8,16,16]", "teacher.seed=9", "runtime.threads=1", "checkpoint.every_minutes=0",
)  # fmt: skip
"""Steps of 16, 16, 16 and 8 images; a checkpoint after each."""
STUDENTS = ("resnet8", "resnet14")
GROUP = (("resnet8", "ce"), ("resnet8", "logit"), ("resnet14", "feature"))
SUBJECT = GROUP[1]
"""The run that something happens to."""

Runs = Callable[..., list[RunConfig]]
Alone = Callable[[RunConfig], tuple[object, ...]]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The teacher of the runs, trained."""
    root = tmp_path_factory.mktemp("alone")
    config = composed_once(*SMALL, *SIZE, "student=resnet8", "method=logit", f"output_root={root}")
    return complete(teacher_config(config))


@pytest.fixture
def runs(small: Callable[..., RunConfig], teacher: RunDirectory, tmp_path: Path) -> Runs:
    """Compose a run per student and method, the same ones each time, beside their trained teacher."""
    shutil.copytree(teacher.path, tmp_path / "out" / "runs" / teacher.path.name)

    def make(*more: str, subjects: Sequence[Subject] = GROUP) -> list[RunConfig]:
        return [
            small(*SIZE, f"student={student}", f"method={method}", *for_few_images(method), *more)
            for student, method in subjects
        ]

    return make


@pytest.fixture(scope="module")
def alone(teacher: RunDirectory) -> Alone:
    """Return what a run of `runs` computes alone; each is trained once."""
    root = teacher.path.parent.parent
    known: dict[Subject, tuple[object, ...]] = {}

    def computed(config: RunConfig) -> tuple[object, ...]:
        student, method = config.student.name, config.method.name
        if (student, method) not in known:
            keys = (f"student={student}", f"method={method}", *for_few_images(method))
            settings = (*SMALL, *SIZE, *keys, f"output_root={root}")
            known[student, method] = numbers(complete(composed_once(*settings)))
        return known[student, method]

    return computed


def numbers(directory: RunDirectory) -> tuple[object, ...]:
    """Return all that a run has computed."""
    table = pd.read_csv(directory.metrics, dtype=str).drop(columns=["images_per_second", "seconds"])
    return table.to_csv(), directory.weights.read_bytes(), directory.logits.read_bytes()


def assert_same(configs: Sequence[RunConfig], results: Sequence[RunResult], alone: Alone) -> None:
    """Assert that runs are complete, with the numbers that they have alone."""
    for config, result in zip(configs, results, strict=True):
        assert result.error is None, result.error
        assert numbers(directory_of(result)) == alone(config)


def together(configs: Sequence[RunConfig], train: Train = fit) -> list[RunResult]:
    """Complete runs as a lockstep group."""
    return run_with_retries(configs, [f"job {n}" for n, _ in enumerate(configs)], train)


def directory_of(result: RunResult) -> RunDirectory:
    assert result.directory is not None
    return result.directory


def located(config: RunConfig) -> RunDirectory:
    """Return where a run is, or will be."""
    return resolve_run(config)[1]


def lockstep_of(results: Sequence[RunResult]) -> list[int | None]:
    """Return how many runs each run trained with, itself included."""
    return [directory_of(result).read_summary().lockstep for result in results]


def kept_position(config: RunConfig) -> tuple[int, int]:
    """Return epochs and steps of a run's newest checkpoint."""
    metadata = located(config).checkpoint_metadata()
    return metadata["epoch"], metadata["step"]


def starting_positions(found: dict[Subject, tuple[int, int]]) -> Train:
    """Return a trainer that records where each learner starts."""
    return with_learners(lambda learners: found.update({subject_of(learner): learner.position for learner in learners}))


# The same numbers


@pytest.mark.parametrize("methods", [EVERYDAY, pytest.param(METHODS, marks=pytest.mark.wide)], ids=["three", "every"])
def test_methods_compute_in_a_group_what_they_compute_alone(runs: Runs, alone: Alone, methods: Sequence[str]) -> None:
    students = itertools.cycle(STUDENTS if methods is METHODS else STUDENTS[:1])
    configs = runs(subjects=list(zip(students, methods, strict=False)))
    results = together(configs)
    assert_same(configs, results, alone)
    assert lockstep_of(results) == [len(configs)] * len(configs)
    for config, result in zip(configs, results, strict=True):
        log = directory_of(result).log.read_text()
        assert log.count("epoch 2/2") == 1  # its own lines, and no other run's
        assert config.title in log
        assert "job " not in log


@pytest.mark.slow
def test_random_numbers_of_a_student_do_not_depend_on_the_others(runs: Runs) -> None:
    def randomize(learners: Sequence[Learner]) -> None:
        for learner in learners:
            learner.student.register_forward_hook(random_scale)

    def random_scale(student: Network, _: object, output: Output) -> Output:
        scale = torch.rand(()) if student.training else 1.0
        return output._replace(logits=output.logits * scale)

    train, subjects = with_learners(randomize), [(student, "ce") for student in STUDENTS]
    root = runs()[0].output_root
    alone = [together([config], train) for config in runs(f"output_root={root}/alone", subjects=subjects)]
    group = together(runs(f"output_root={root}/group", subjects=subjects), train)
    assert [numbers(directory_of(result)) for result in group] == [numbers(directory_of(result)) for (result,) in alone]


@pytest.mark.slow
def test_the_teacher_computes_each_batch_once(runs: Runs) -> None:
    sizes: list[int] = []
    together(runs("recipe.epochs=1"), counting_teacher_passes(sizes))
    assert sizes == [16, 16, 16, 8]


@pytest.mark.slow
def test_seconds_are_shared_by_the_work_of_each_run(runs: Runs) -> None:
    results = together(runs(subjects=[(student, "ce") for student in STUDENTS]))
    speeds = [pd.read_csv(directory_of(result).metrics).images_per_second.to_numpy() for result in results]
    macs = [directory_of(result).read_summary().macs for result in results]
    assert macs[0]
    assert macs[1]
    assert speeds[0] / speeds[1] == pytest.approx(macs[1] / macs[0])


# One run fails


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(RuntimeError("a bug"), None, marks=pytest.mark.wide),
        (OSError(28, "No space left on device"), "no_space"),
    ],
)
def test_an_error_ends_its_own_run_alone_and_the_next_call_continues_it(
    runs: Runs, alone: Alone, error: Exception, code: str | None
) -> None:
    configs = runs()
    results = together(configs, at(SUBJECT, (1, 2), raising(error)))
    assert [result.status for result in results] == ["complete", "failed", "complete"]
    ended = results[1].error
    assert ended is error if code is None else isinstance(ended, RunError) and ended.code == code
    starts: dict[Subject, tuple[int, int]] = {}
    again = together(configs, starting_positions(starts))
    assert starts == {SUBJECT: (1, 1)}
    assert_same(configs, again, alone)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_its_own_run_alone(runs: Runs, alone: Alone) -> None:
    configs = runs()
    (bad,) = runs("recipe.lr=1e9", "recipe.clip_norm=null", subjects=[SUBJECT])
    results = together([bad, *configs])
    assert isinstance(results[0].error, RunError)
    assert results[0].error.code == "not_finite"
    assert json.loads(located(bad).nonfinite.read_text())["learning_rate"] == 1e9
    assert_same(configs, results[1:], alone)


def test_a_failed_run_logs_once_and_releases_its_lock_at_once(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kdbench")
    configs = runs("recipe.epochs=1")
    lock, seen = located(configs[1]).lock().file, []

    def watch(learner: Learner) -> None:
        seen.append((learner.position, lock.exists(), "no more" in caplog.text))
        if subject_of(learner) == SUBJECT and learner.position == (0, 2):
            raise RunError("no more", code="mismatch")

    together(configs, after_steps(watch))
    assert [(held, logged) for position, held, logged in seen if position == (0, 1)] == [(True, False)] * 3
    assert [(held, logged) for position, held, logged in seen if position == (0, 3)] == [(False, True)] * 2
    assert located(configs[1]).log.read_text().count("no more") == 1


def test_a_finished_run_releases_its_lock_before_the_next_one_is_evaluated(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = runs("recipe.epochs=1")
    held: list[list[bool]] = []
    write_summary = RunDirectory.write_summary

    def watch(self: RunDirectory, summary: RunSummary) -> None:
        held.append([located(config).lock().file.exists() for config in configs])
        write_summary(self, summary)

    monkeypatch.setattr(RunDirectory, "write_summary", watch)
    together(configs)
    assert held[-3:] == [[True, True, True], [False, True, True], [False, False, True]]


@pytest.mark.slow
def test_a_run_that_cannot_begin_an_epoch_does_not_move_the_others(
    runs: Runs, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = runs()
    for config, step in zip(configs, (1, 3, 3), strict=True):
        with killed_after(epoch=1, step=step):
            complete(config)

    def hinder(learners: Sequence[Learner]) -> None:
        for learner in learners:
            if learner.position == (1, 1):
                monkeypatch.setattr(learner.method, "train", raising(RunError("", code="mismatch")))

    results = together(configs, with_learners(hinder))
    assert [result.status for result in results] == ["failed", "complete", "complete"]
    assert_same(configs[1:], results[1:], alone)
    assert kept_position(configs[0]) == (1, 1)


@pytest.mark.slow
def test_a_run_that_started_with_other_threads_keeps_them_and_runs_alone(runs: Runs) -> None:
    configs = runs()
    other = dataclasses.replace(configs[1], runtime=dataclasses.replace(configs[1].runtime, threads=2))
    with killed_after(epoch=1, step=1):
        complete(other)
    used: dict[int, set[int]] = {}

    def record(learner: Learner) -> None:
        used.setdefault(learner.runtime.threads, set()).add(torch.get_num_threads())

    results = together(configs, after_steps(record))
    assert used == {1: {1}, 2: {2}}
    assert lockstep_of(results) == [2, 1, 2]


def edit_metadata(config: RunConfig, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the metadata of a run's checkpoints."""
    for file in located(config).checkpoints():
        metadata, content = checksummed.read(file)
        edit(metadata)
        checksummed.write(file, metadata, content)


def forget_two_settings(metadata: dict[str, Any]) -> None:
    del metadata["settings"]["profile"], metadata["settings"]["compile"]


def forget_all_settings(metadata: dict[str, Any]) -> None:
    del metadata["settings"]


@pytest.mark.parametrize("forget", rest_wide([forget_two_settings, forget_all_settings]))
def test_a_checkpoint_of_an_earlier_version_is_refused(runs: Runs, forget: Callable[[dict[str, Any]], None]) -> None:
    (config,) = runs(subjects=[SUBJECT])
    with killed_after(epoch=1, step=1):
        complete(config)
    edit_metadata(config, forget)
    with pytest.raises(RunError) as refused:
        complete(config)
    assert (refused.value.code, refused.value.key) == ("damaged", "last.ckpt")
    assert kept_position(config) == (1, 1)


# Stopped and continued


@pytest.mark.slow
def test_a_signal_stops_all_runs_between_two_steps_and_each_continues_alone_or_in_a_group(
    runs: Runs, alone: Alone
) -> None:
    configs = runs("checkpoint.every_minutes=null")
    stop = at(SUBJECT, (1, 2), lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted) as stopped, handled():
        together(configs, stop)
    assert stopped.value.requested == signal.SIGTERM
    assert [kept_position(config) for config in configs] == [(1, 2)] * 3
    starts: dict[Subject, tuple[int, int]] = {}
    train = starting_positions(starts)
    results = [*together(configs[:1], train), *together(configs[1:], train)]
    assert starts == dict.fromkeys(GROUP, (1, 2))
    assert_same(configs, results, alone)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1, 2], [3]])
def test_runs_that_a_kill_left_at_different_steps_continue_together(
    runs: Runs, alone: Alone, sizes: Sequence[int]
) -> None:
    configs = runs()
    with pytest.raises(Killed):
        together(configs, at(SUBJECT, (1, 2), raising(Killed())))
    assert [kept_position(config) for config in configs] == [(1, 2), (1, 1), (1, 1)]
    for file in located(configs[-1]).checkpoints():
        file.unlink()  # this one starts over
    results, rest = [], list(configs)
    for size in sizes:
        results += together(rest[:size])
        rest = rest[size:]
    assert_same(configs, results, alone)


@pytest.mark.slow
def test_a_complete_run_is_skipped_and_a_run_given_twice_is_trained_once(runs: Runs, alone: Alone) -> None:
    configs = runs()
    before = complete(configs[0])
    results = together([*configs, configs[1]])
    assert before.log.read_text().count("epoch 2/2") == 1
    assert directory_of(results[1]).log.read_text().count("epoch 2/2") == 1
    assert_same([*configs, configs[1]], results, alone)


@pytest.mark.slow
def test_a_run_may_be_the_teacher_of_the_others(runs: Runs) -> None:
    results = together(runs("teacher.seed=0", "teacher.recipe.epochs=2"))
    key = directory_of(results[0]).key
    assert [directory_of(result).read_summary().teacher_key for result in results] == [None, key, key]
    assert lockstep_of(results) == [1, 2, 2]


# Out of memory


@pytest.mark.slow
def test_out_of_memory_the_halves_of_a_group_continue_from_their_checkpoints(runs: Runs, alone: Alone) -> None:
    tried: list[list[Subject]] = []
    starts: list[tuple[int, int]] = []

    def train(learners: Sequence[Learner], *rest: Any) -> None:
        tried.append([subject_of(learner) for learner in learners])
        starts.extend(learner.position for learner in learners)
        with_memory_for(1)(learners, *rest)

    configs = runs()
    results = together(configs, train)
    assert_same(configs, results, alone)
    first, second, third = GROUP
    assert tried == [[first, second, third], [first], [second, third], [second], [third]]
    assert starts == [(0, 0)] * 3 + [(1, 1)] * 5
    assert lockstep_of(results) == [1, 1, 1]


@pytest.mark.slow
def test_out_of_memory_in_a_step_of_one_run_concerns_the_whole_group(runs: Runs, alone: Alone) -> None:
    tried: list[int] = []

    def train(learners: Sequence[Learner], *rest: Any) -> None:
        tried.append(len(learners))
        full = MemoryError() if len(learners) > 1 else None
        at(SUBJECT, (1, 2), raising(full) if full else lambda: None)(learners, *rest)

    configs = runs()
    assert_same(configs, together(configs, train), alone)
    assert tried == [3, 1, 2, 1, 1]


@pytest.mark.slow
def test_halves_find_the_memory_of_the_group_free_and_failed_runs_are_not_tried_again(
    runs: Runs, tmp_path: Path
) -> None:
    (diverging,) = runs("recipe.lr=1e9", "recipe.clip_norm=null", subjects=[("resnet14", "logit")])
    configs = [diverging, *runs()]
    blocked = located(configs[1]).path
    blocked.symlink_to(tmp_path)  # this run cannot be opened: results do not go through links
    students: list[Callable[[], object]] = []
    alive: list[int] = []
    tried: list[list[Subject]] = []

    def train(learners: Sequence[Learner], *rest: Any) -> None:
        tried.append([subject_of(learner) for learner in learners])
        if not students:
            students.extend(weakref.ref(learner.student) for learner in learners)
            with_memory_for(0)(learners, *rest)
        alive.append(sum(student() is not None for student in students))
        fit(learners, *rest)

    results = together(configs, train)
    assert [result.status for result in results] == ["failed", "failed", "complete", "complete"]
    assert tried == [[("resnet14", "logit"), *GROUP[1:]], [GROUP[1]], [GROUP[2]]]
    assert alive == [0, 0]


def test_a_single_run_without_memory_names_the_setting_to_lower(runs: Runs) -> None:
    (result,) = run_with_retries(runs(subjects=[SUBJECT]), train=with_memory_for(0))
    assert isinstance(result.error, RunError)
    assert (result.error.code, result.error.key) == ("out_of_memory", "recipe.batch_size")
    assert "2.00 GiB" in str(result.error)


# Runs of other processes


@pytest.mark.slow
@pytest.mark.parametrize("on_busy", ["skip", "wait"])
def test_a_group_does_not_wait_for_a_run_that_another_process_holds(runs: Runs, alone: Alone, on_busy: str) -> None:
    configs = runs(f"on_busy={on_busy}")
    lock, last = located(configs[1]).lock(), located(configs[-1])
    lock.acquire(wait=False)
    timer = threading.Timer(20, lock.release)  # much later than the others are complete
    timer.daemon = True
    try:
        if on_busy == "skip":
            results = together(configs)
            assert [result.status for result in results] == ["complete", "skipped", "complete"]
            assert isinstance(results[1].error, BusyError)
            lock.release()
        else:
            timer.start()
            threading.Thread(target=when_complete, args=(last, lock.release), daemon=True).start()
            results = together(configs)
            assert directory_of(results[1]).summary.stat().st_mtime_ns > last.summary.stat().st_mtime_ns
    finally:
        timer.cancel()
    assert_same([configs[0], configs[-1]], [results[0], results[-1]], alone)
    assert_same(configs, together(configs), alone)


def when_complete(directory: RunDirectory, act: Callable[[], None]) -> None:
    """Act as soon as a run is complete."""
    pause = threading.Event()
    while not directory.is_complete():
        pause.wait(0.05)
    act()
