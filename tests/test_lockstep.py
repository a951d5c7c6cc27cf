"""Is a run in a group what it is alone, bit for bit, whatever becomes of the others?"""

import copy
import dataclasses
import functools
import itertools
import json
import logging
import re
import signal
import threading
import weakref
from pathlib import Path

import pandas as pd
import pytest
import torch

from kdbench import checked, lockstep
from kdbench.errors import BusyError, RunError
from kdbench.job import Job
from kdbench.methods.ce import CrossEntropy
from kdbench.run import execute, execute_together, located
from kdbench.stopping import Interrupted, listening
from kdbench.teaching import LiveTeacher
from kdbench.train.learner import Learner
from kdbench.train.steps import Steps
from tests.conftest import SMALL, Killed, composed_once, killed_after
from tests.methods.test_training import METHODS

SIZE = (
    "data.num_train=56", "recipe.batch_size=16", "recipe.epochs=2", "teacher.recipe.batch_size=16",
    "data.num_val=20", "data.num_test=20", "student.widths=[8,8,16,16]", "teacher=resnet8",
    "teacher.widths=[8,8,16,16]", "teacher.seed=9", "runtime.threads=1", "checkpoint.every_minutes=0",
)  # fmt: skip
"""Steps of 16, 16, 16 and 8 images; a checkpoint after each."""
STUDENTS = ("resnet8", "resnet14")
ALL = [(student, method) for student in STUDENTS for method in METHODS]
SOME = [("resnet8", "ce"), ("resnet8", "logit"), ("resnet14", "feature")]
SUBJECT = SOME[1]
"""The one that something happens to."""
RESUMED = "resuming from last.ckpt after 1 of 2 epochs and 1 steps"


def subject_of(config):
    return config.student.name, config.method.name


@pytest.fixture
def jobs(small):
    """One per student and method, the same ones each time."""

    def make(*more, subjects=SOME):
        return [small(*SIZE, f"student={student}", f"method={method}", *more) for student, method in subjects]

    return make


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What each computes when it is carried out alone."""
    root = tmp_path_factory.mktemp("alone")
    found = {}
    for student, method in ALL:
        settings = (*SMALL, *SIZE, f"student={student}", f"method={method}", f"output_root={root}")
        found[student, method] = numbers(execute(composed_once(*settings)))
    return found


def numbers(directory):
    """All that a run has computed."""
    table = pd.read_csv(directory.metrics, dtype=str).drop(columns=["images_per_second", "seconds"])
    return table.to_csv(), directory.weights.read_bytes(), directory.logits.read_bytes()


def same(configs, outcomes, alone):
    for config, outcome in zip(configs, outcomes, strict=True):
        assert outcome.error is None, outcome.error
        assert numbers(outcome.directory) == alone[subject_of(config)]


def together(configs):
    return execute_together(configs, [f"job {n}" for n, _ in enumerate(configs)])


def at(position, monkeypatch, act):
    """Do something after a step of the subject's, before it can write a checkpoint."""
    between_steps = Job.between_steps

    def acting(self):
        if subject_of(self.config) == SUBJECT and self.learner.position == position:
            act()
        between_steps(self)

    monkeypatch.setattr(Job, "between_steps", acting)


def raises(error):
    def act():
        raise error

    return act


def test_every_method_computes_in_a_group_what_it_does_alone(jobs, alone):
    configs = jobs(subjects=ALL)
    outcomes = together(configs)
    same(configs, outcomes, alone)
    for config, outcome in zip(configs, outcomes, strict=True):
        assert outcome.directory.read_summary()["lockstep"] == len(configs)
        log = outcome.directory.log.read_text()
        assert log.count("epoch 2/2") == 1  # its own, and nobody else's
        assert " ".join(subject_of(config)) in log
        assert "job " not in log


@pytest.mark.slow
def test_what_models_draw_does_not_depend_on_the_others(jobs, monkeypatch):
    forward = CrossEntropy.forward

    def drawn(self, *given, **named):
        return {name: term * torch.rand(()) for name, term in forward(self, *given, **named).items()}

    monkeypatch.setattr(CrossEntropy, "forward", drawn)
    subjects = [(student, "ce") for student in STUDENTS]
    roots = [(f"output_root={jobs()[0].output_root}/{where}",) for where in ("alone", "group")]
    alone = [numbers(execute(config)) for config in jobs(*roots[0], subjects=subjects)]
    assert [numbers(outcome.directory) for outcome in together(jobs(*roots[1], subjects=subjects))] == alone


def test_the_teacher_is_asked_once_a_batch(jobs, monkeypatch):
    asked, answer = [], LiveTeacher.__call__

    def counted(self, batch):
        asked.append(len(batch.labels))
        return answer(self, batch)

    monkeypatch.setattr(LiveTeacher, "__call__", counted)
    together(jobs("recipe.epochs=1"))
    assert asked == [16, 16, 16, 8]


def test_seconds_are_shared_by_what_each_one_computes(jobs):
    outcomes = together(jobs(subjects=[(student, "ce") for student in STUDENTS]))
    speeds = [pd.read_csv(outcome.directory.metrics).images_per_second.to_numpy() for outcome in outcomes]
    macs = [outcome.directory.read_summary()["macs"] for outcome in outcomes]
    assert speeds[0] / speeds[1] == pytest.approx(macs[1] / macs[0])


@pytest.mark.parametrize(
    "error", [pytest.param(RuntimeError("a bug"), marks=pytest.mark.slow), OSError(28, "No space left on device")]
)
def test_an_error_ends_its_own_run_alone_which_goes_on_when_it_is_asked_for_again(jobs, alone, monkeypatch, error):
    with monkeypatch.context() as patched:
        at((1, 2), patched, raises(error))
        configs = jobs()
        outcomes = together(configs)
    failed = [subject_of(config) for config, outcome in zip(configs, outcomes, strict=True) if outcome.error]
    assert failed == [SUBJECT]
    told = outcomes[1].error
    assert "no room on the disk" in str(told) if isinstance(error, OSError) else told is error
    again = together(configs)
    assert "resuming from last.ckpt after 1 of 2 epochs and 1 steps" in again[1].directory.log.read_text()
    same(configs, again, alone)


def test_a_loss_that_is_not_finite_ends_its_own_run_alone(jobs, alone):
    configs = jobs()
    bad = jobs("recipe.lr=1e9", "recipe.clip_norm=null", subjects=[SUBJECT])
    outcomes = together([*bad, *configs])
    assert "stopped before the optimiser's step" in str(outcomes[0].error)
    seen = json.loads(located(bad[0])[1].bad_numbers.read_text())
    assert seen["learning_rate"] == 1e9
    same(configs, outcomes[1:], alone)


def test_who_failed_says_so_at_once_and_lets_its_run_go(jobs, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "kdbench")
    configs = jobs("recipe.epochs=1")
    lock = configs[1].output_root + f"/.locks/{located(configs[1])[1].key}.lock"
    seen = []
    at((0, 2), monkeypatch, raises(RunError("no more")))
    steps = Steps.take

    def watched(self, learner, batch, known):
        steps(self, learner, batch, known)
        if len(self.teachers) == 3:  # not the teacher's own training
            seen.append((learner.position, Path(lock).exists(), "ended: no more" in caplog.text))

    monkeypatch.setattr(Steps, "take", watched)
    together(configs)
    assert [(held, said) for position, held, said in seen if position == (0, 1)] == [(True, False)] * 3
    assert [(held, said) for position, held, said in seen if position == (0, 3)] == [(False, True)] * 2
    assert located(configs[1])[1].log.read_text().count("ended: no more") == 1


@pytest.mark.slow
def test_who_cannot_begin_does_not_move_the_others(jobs, alone, monkeypatch):
    configs = jobs()
    for config, step in zip(configs, (1, 3, 3), strict=True):
        with killed_after(epoch=1, step=step):
            execute(config)
    begin_epoch = Learner.begin_epoch

    def unable(self):
        if self.position == (1, 1):
            raise RunError("cannot begin")
        begin_epoch(self)

    monkeypatch.setattr(Learner, "begin_epoch", unable)
    outcomes = together(configs)
    assert str(outcomes[0].error) == "cannot begin"
    same(configs[1:], outcomes[1:], alone)
    assert str(together(configs[:1])[0].error) == "cannot begin"


@pytest.mark.slow
def test_a_run_that_was_begun_with_other_threads_keeps_to_them(jobs, monkeypatch):
    configs = jobs()
    other = dataclasses.replace(configs[1], runtime=dataclasses.replace(configs[1].runtime, threads=2))
    with killed_after(epoch=1, step=1):
        execute(other)
    used, take = {}, Steps.take

    def watched(self, learner, batch, known):
        used.setdefault(learner.runtime.threads, set()).add(torch.get_num_threads())
        take(self, learner, batch, known)

    monkeypatch.setattr(Steps, "take", watched)
    outcomes = together(configs)
    assert used == {1: {1}, 2: {2}}
    assert [outcome.directory.read_summary()["lockstep"] for outcome in outcomes] == [2, 1, 2]


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(jobs):
    (config,) = jobs(subjects=[SUBJECT])
    with killed_after(epoch=1, step=1):
        execute(config)
    for file in located(config)[1].checkpoints():
        facts, content = checked.read(file)
        del facts["choices"]["profile"], facts["choices"]["compile"]
        checked.write(file, facts, content)
    with pytest.raises(RunError, match=r"this run began with another choices: .* delete .* to begin anew"):
        execute(config)


def test_a_signal_stops_all_between_two_steps_and_each_goes_on_alone_or_in_a_group(jobs, alone, monkeypatch):
    configs = jobs("checkpoint.every_minutes=null")
    with monkeypatch.context() as patched:
        at((1, 2), patched, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted), listening():
            together(configs)
    for config in configs:
        assert "SIGTERM: stopped after 1 of 2 epochs and 2 steps" in located(config)[1].log.read_text()
    outcomes = [*together(configs[:1]), *together(configs[1:])]
    same(configs, outcomes, alone)
    assert all("after 1 of 2 epochs and 2 steps\n" in outcome.directory.log.read_text() for outcome in outcomes)


@pytest.mark.parametrize("groups", [pytest.param([3], marks=pytest.mark.slow), [1, 2]])
def test_runs_that_a_kill_left_at_different_places_go_on_together(jobs, alone, monkeypatch, groups):
    configs = jobs()
    with monkeypatch.context() as patched:
        at((1, 2), patched, raises(Killed()))
        with pytest.raises(Killed):
            together(configs)
    places = [located(config)[1].checkpoint_facts() for config in configs]
    assert {(facts["epoch"], facts["step"]) for facts in places} == {(1, 1), (1, 2)}
    for file in located(configs[-1])[1].checkpoints():
        file.unlink()  # this one begins anew
    outcomes, rest = [], list(configs)
    for size in groups:
        outcomes += together(rest[:size])
        rest = rest[size:]
    same(configs, outcomes, alone)


@pytest.mark.slow
def test_a_run_that_is_complete_is_skipped_and_one_that_is_asked_for_twice_carried_out_once(jobs, alone):
    configs = jobs()
    before = execute(configs[0])
    outcomes = together([*configs, configs[1]])
    assert before.log.read_text().count("epoch 2/2") == 1
    assert outcomes[1].directory.log.read_text().count("epoch 2/2") == 1
    same([*configs, configs[1]], outcomes, alone)


def test_a_job_may_be_the_teacher_of_the_others(jobs):
    outcomes = together(jobs("teacher.seed=0", "teacher.recipe.epochs=2"))
    keys = [outcome.directory.read_summary()["teacher_key"] for outcome in outcomes]
    assert keys == [None, outcomes[0].directory.key, outcomes[0].directory.key]
    assert [outcome.directory.read_summary()["lockstep"] for outcome in outcomes] == [1, 2, 2]


def scarce_memory(monkeypatch, learners):
    """More learners than so many do not fit, which shows in the second epoch."""
    lesson = Steps.lesson

    def greedy(self, rows, views, present):
        if len(present) > learners and present[0].position == (1, 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return lesson(self, rows, views, present)

    monkeypatch.setattr(Steps, "lesson", greedy)


def test_where_memory_does_not_suffice_halves_go_on_from_their_checkpoints(jobs, alone, monkeypatch, caplog):
    scarce_memory(monkeypatch, learners=1)
    caplog.set_level(logging.INFO, "kdbench")
    configs = jobs()
    outcomes = together(configs)
    same(configs, outcomes, alone)
    halvings = [record.message for record in caplog.records if "out of memory" in record.message]
    assert [line.split()[4] for line in halvings] == ["3", "2"]
    assert {outcome.directory.read_summary()["lockstep"] for outcome in outcomes} == {1}
    assert all(RESUMED in outcome.directory.log.read_text() for outcome in outcomes)


def test_halves_find_the_memory_of_the_whole_free_and_who_failed_is_not_tried_again(jobs, monkeypatch):
    students, failures, alive = [], [], []
    begin, lesson, failed = Job.begin, Steps.lesson, Job.failed

    def begun(self):
        if not alive:
            students.append(weakref.ref(self.learner.student))
        begin(self)
        if subject_of(self.config) == SOME[0] and self.prefix != "teacher: ":
            raise RunError("cannot begin")

    def counted(self, error):
        failures.append(subject_of(self.config))
        failed(self, error)

    def greedy(self, rows, views, learners):
        if not alive and learners[0].position == (1, 1):
            alive.append(None)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if len(alive) == 1:
            alive.append(sum(student() is not None for student in students))
        return lesson(self, rows, views, learners)

    monkeypatch.setattr(Job, "begin", begun)
    monkeypatch.setattr(Job, "failed", counted)
    monkeypatch.setattr(Steps, "lesson", greedy)
    outcomes = together([*jobs("recipe.lr=1e9", "recipe.clip_norm=null", subjects=[("resnet14", "logit")]), *jobs()])
    assert alive == [None, 0]
    assert failures == [("resnet14", "logit")]
    assert [outcome.error is None for outcome in outcomes] == [False, False, True, True]


def test_a_group_of_one_without_memory_says_what_lowers_the_need(jobs, monkeypatch):
    scarce_memory(monkeypatch, learners=0)
    with pytest.raises(RunError, match=r"out of memory on cpu; 2.00 GiB more .* Lower recipe.batch_size \(16\)"):
        execute(jobs(subjects=[SUBJECT])[0])


@pytest.mark.parametrize("on_busy", ["skip", pytest.param("wait", marks=pytest.mark.slow)])
def test_nobody_waits_for_a_run_that_another_process_has(jobs, alone, on_busy):
    configs = jobs(f"on_busy={on_busy}")
    _, directory = located(configs[1])
    lock = directory.locked("this run", "wait")
    lock.__enter__()

    def released():
        lock.__exit__(None, None, None)

    timer = threading.Timer(20, released)  # much later than the others are done
    timer.start()
    try:
        if on_busy == "skip":
            outcomes = together(configs)
            assert isinstance(outcomes[1].error, BusyError)
            released()
        else:
            done = located(configs[-1])[1]
            threading.Thread(target=when_complete, args=(done, released)).start()
            outcomes = together(configs)
            assert outcomes[1].directory.summary.stat().st_mtime_ns > done.summary.stat().st_mtime_ns
    finally:
        timer.cancel()
    same([c for c in configs if c is not configs[1]], [o for n, o in enumerate(outcomes) if n != 1], alone)
    same(configs, together(configs), alone)


def when_complete(directory, act):
    pause = threading.Event()
    while not directory.is_complete():
        pause.wait(0.05)
    act()


# Who trains together


def grouped(configs, most=8):
    return lockstep.groups(configs, most)


def otherwise(config, key, value):
    """The same run but for one key."""
    config = copy.deepcopy(config)
    *sections, name = key.split(".")
    setattr(functools.reduce(getattr, sections, config), name, value)
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_seed", 1), ("recipe.batch_size", 16), ("recipe.epochs", 2), ("data.augment", False),
        ("data.num_train", 40), ("runtime.threads", 3), ("runtime.precision", "bf16"), ("runtime.profile", "repro"),
        ("runtime.compile", True), ("teacher.seed", 1), ("teacher.recipe.lr", 0.2), ("output_root", "elsewhere"),
        ("teacher.model.stages", {"layer1": "layer1.0.conv1"}),
    ],
)  # fmt: skip
def test_jobs_that_cannot_share_are_grouped_apart(small, key, value):
    first = small("method=logit")
    assert grouped([first, otherwise(first, key, value)]) == [[0], [1]]


@pytest.mark.parametrize(
    ("key", "value"),
    [("init_seed", 1), ("recipe.lr", 0.01), ("student.arguments", {"depth": 14}), ("method.params.temperature", 2.0),
     ("recipe.on_nonfinite", "skip"), ("recipe.clip_norm", None)],
)  # fmt: skip
def test_jobs_that_differ_in_what_is_their_own_share(small, key, value):
    first = small("method=logit")
    assert grouped([first, otherwise(first, key, value)]) == [[0, 1]]


def test_jobs_without_a_teacher_join_those_who_have_one(small):
    configs = [
        small("method=ce"),
        small("method=logit"),
        small("method=logit", "teacher=resnet32"),
        small("method=ce", "recipe.lr=0.01"),
    ]
    assert grouped(configs) == [[0, 1, 3], [2]]
    assert grouped(configs, most=2) == [[0, 1], [2, 3]]
    assert grouped(configs, most=1) == [[1], [2], [0], [3]]


def test_groups_are_few_and_of_about_the_same_size(small):
    first = small("method=logit")
    configs = [otherwise(first, "recipe.lr", 0.01 * n) for n in range(1, 10)]
    assert [len(group) for group in grouped(configs, most=4)] == [3, 3, 3]
    assert sorted(itertools.chain(*grouped(configs, most=4))) == list(range(9))


def test_runs_that_are_complete_take_no_place_and_the_same_run_is_in_no_group_twice(small):
    configs = [small("method=ce"), small("method=ce", "recipe.lr=0.01"), small("method=ce")]
    assert grouped(configs) == [[0, 1], [2]]
    execute(configs[1])
    assert grouped(configs) == [[1], [0], [2]]


@pytest.mark.parametrize(
    ("overrides", "asks"),
    [
        (("method=ce",), False), (("method=logit",), True), (("method=logit", "teacher.table=on"), False),
        (("method=feature", "data.augment=false"), True), (("method=logit", "data.augment=false"), False),
        (("method=logit", "data.augment=false", "teacher.table=off"), True),
    ],
)  # fmt: skip
def test_what_is_saved_is_the_asking_of_live_teachers(small, overrides, asks):
    config = small(*overrides, "recipe.epochs=2")  # without augmentation a table is repaid by that many
    assert lockstep.asks_live(config) == asks
    assert (lockstep.saving([config, config]) > 0) == asks


# The launcher

TINY = (*SMALL, *SIZE, "recipe.epochs=1", "output_root=out")


def test_launcher_groups_a_sweep_and_every_job_has_its_own_of_everything(kdbench, tmp_path):
    result = kdbench("-m", "hydra/launcher=lockstep", *TINY, "method=ce,logit", "recipe.lr=0.1,0.2", "seed=0,1")
    assert result.code == 0, result.err
    assert result.out.count("4 jobs in lockstep, teacher: resnet8") == 2
    assert len(re.findall(r"job \d: done: test accuracy", result.out)) == 8
    assert "job 1: epoch 1/1: loss" in result.out
    runs = list((tmp_path / "home" / "out" / "runs").glob("*/summary.json"))
    assert len(runs) == 9  # the teacher's too
    (record,) = (tmp_path / "home" / "out" / "sweeps").iterdir()
    jobs = json.loads(record.read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["complete"] * 8
    assert [job["overrides"][-1] for job in jobs] == ["seed=0", "seed=1"] * 4
    again = kdbench("-m", "hydra/launcher=lockstep", *TINY, "method=ce,logit", "recipe.lr=0.1", "seed=0")
    assert again.out.count("complete already, skipped") == 2


def test_launcher_says_what_failed_and_the_others_end_well(kdbench, tmp_path):
    result = kdbench(
        "-m", "hydra/launcher=lockstep", "hydra.launcher.max_learners=2", *TINY, "method=ce", "recipe.lr=0.1,1e9,-1"
    )
    assert result.code == 1
    lines = result.err.splitlines()
    assert len(lines) == 3
    assert "recipe.lr is -1.0" in lines[0]
    assert lines[1].startswith("kdbench: error: job 2: epoch 1, step")
    assert lines[2] == "kdbench: error: 2 of 3 jobs failed (each said why above)"
    (record,) = (tmp_path / "home" / "out" / "sweeps").iterdir()
    assert [job["status"] for job in json.loads(record.read_text())["jobs"]] == ["complete", "failed", "refused"]


@pytest.mark.parametrize("given", ["0", "two", "1.5", "null"])
def test_bound_of_a_group_is_checked(kdbench, given):
    result = kdbench(
        "-m", "hydra/launcher=lockstep", f"hydra.launcher.max_learners={given}", *TINY, "method=ce", "seed=0,1"
    )
    assert result.code == 2
    assert result.err.startswith("kdbench: error: hydra.launcher.max_learners is ")
    assert "it may be a whole number of at least 1" in result.err
    assert result.err.count("\n") == 1


def test_launcher_works_for_hydras_own_sweeper(kdbench, tmp_path):
    result = kdbench("-m", "hydra/launcher=lockstep", "hydra/sweeper=basic", *TINY, "method=ce", "recipe.lr=0.1,0.2")
    assert result.code == 0, result.err
    assert "2 jobs in lockstep" in result.out
