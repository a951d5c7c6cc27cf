"""Are recorded and replayed steps those that are written? The CPU shows it: a tape stands for a GPU's graphs."""

import contextlib
import dataclasses
import random

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdbench.methods.ce import CrossEntropy
from kdbench.methods.method import START
from kdbench.run import execute
from kdbench.train import graphs
from kdbench.train.sums import EpochSums
from tests.conftest import killed_after
from tests.methods.test_training import METHODS

EPOCHS = ("recipe.epochs=4", "data.num_train=56", "recipe.batch_size=16", "recipe.clip_norm=1.0")
"""Steps of 16, 16, 16 and 8 images, at four learning rates."""


class Tape(TorchDispatchMode):
    """Every operation that reaches the processor, with its tensors, in order. What waits for a value is refused."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.begun = False

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("it waits for a value")
        returned = function(*arguments, **(keywords or {}))
        self.operations.append((function, arguments, keywords or {}, returned))
        return returned

    def replay(self):
        if not self.begun:  # recording has done it once already, which a GPU's would not
            self.begun = True
            return
        with torch.no_grad():
            for function, arguments, keywords, returned in self.operations:
                again = function(*arguments, **keywords)
                for there, new in zip(tree_leaves(returned), tree_leaves(again), strict=True):
                    if isinstance(there, torch.Tensor) and there.data_ptr() != new.data_ptr():
                        there.copy_(new)


class TapeRecorder:
    """Counts what it records and replays."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, function):
        tape = Tape()
        with tape:
            returned = function()
        self.recorded += 1

        def replay():
            self.replayed += 1
            tape.replay()

        return returned, replay

    def running(self):
        return contextlib.nullcontext()


@pytest.fixture
def recorder(monkeypatch):
    """Runs take their steps from tapes. As on a GPU, no step looks at its values."""
    recorder = TapeRecorder()

    def steps_on(runtime, batches, teachers):
        for learner in teachers:
            learner.sums.ends_at_once = False
        return graphs.GraphedSteps(batches, teachers, recorder)

    monkeypatch.setattr("kdbench.run.steps_on", steps_on)
    return recorder


def run_both(small, monkeypatch, *overrides):
    """A run with recorded steps, and the same as written."""
    taped = execute(small(*overrides, f"output_root={small().output_root}/taped"))
    monkeypatch.setattr("kdbench.run.steps_on", graphs.steps_on)
    return taped, execute(small(*overrides, f"output_root={small().output_root}/written"))


def same(taped, written):
    def numbers(run):
        rows = [line.split(",") for line in run.metrics.read_text().splitlines()]
        return [row[: rows[0].index("images_per_second")] for row in rows]

    assert numbers(taped) == numbers(written)
    assert taped.weights.read_bytes() == written.weights.read_bytes()
    assert taped.logits.read_bytes() == written.logits.read_bytes()


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch):
    monkeypatch.setattr(graphs, "WARM_UP", 1)


def train_otherwise(monkeypatch, change):
    """Cross-entropy's terms pass through a function of student, batch and progress."""
    forward = CrossEntropy.forward

    def changed(self, student, teacher, batch, peers=(), progress=START):
        terms = forward(self, student, teacher, batch, peers, progress)
        return {name: change(term, student, batch, progress) for name, term in terms.items()}

    monkeypatch.setattr(CrossEntropy, "forward", changed)


@pytest.mark.parametrize("method", METHODS)
def test_recorded_steps_compute_what_is_written(small, recorder, monkeypatch, method):
    same(*run_both(small, monkeypatch, f"method={method}", *EPOCHS, "recipe.nesterov=true"))
    if method == "ce":
        # Lesson and learner, for batches of 16 and of 8: all steps but the first of each size are replayed.
        assert (recorder.recorded, recorder.replayed) == (4, 2 * (16 - 2))
    assert recorder.recorded >= 4


def test_what_depends_on_the_epoch_is_recorded_anew_in_each(small, recorder, monkeypatch):
    train_otherwise(monkeypatch, lambda term, student, batch, progress: term * (1 + progress.epoch))
    same(*run_both(small, monkeypatch, "method=ce", *EPOCHS))
    assert recorder.recorded == 2 + 4 + 3  # both lessons; the learner's step of 16 in every epoch, that of 8 not in one


def test_steps_that_are_not_finite_are_skipped_in_a_recording_too(small, recorder, monkeypatch):
    def bad_with_some_labels(term, student, batch, progress):
        return term * torch.where((batch.labels[:3] == 3).any(), torch.nan, 1.0)

    train_otherwise(monkeypatch, bad_with_some_labels)
    runs = run_both(small, monkeypatch, "method=ce", *EPOCHS, "recipe.on_nonfinite=skip")
    same(*runs)
    skipped = [run.read_summary()["skipped_steps"] for run in runs]
    assert skipped[0] == skipped[1] > 0
    assert recorder.recorded == 4


def test_a_recording_draws_anew_each_time(small, recorder, monkeypatch):
    """A GPU's generators belong to the device: here the processor's stand for them."""
    monkeypatch.setattr(graphs, "drawn_on_host", lambda: b"")
    train_otherwise(monkeypatch, lambda term, student, batch, progress: term * torch.rand(()))
    same(*run_both(small, monkeypatch, "method=ce", *EPOCHS))
    assert recorder.recorded == 4


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_what_draws_on_the_host_is_not_recorded_and_one_line_says_so(small, recorder, monkeypatch, draw):
    draws = []

    def drawn(term, student, batch, progress):
        draws.append(draw())
        return term * draws[-1]

    train_otherwise(monkeypatch, drawn)
    run = execute(small("method=ce", *EPOCHS))
    line = "graphs: the part of CrossEntropy, launched step by step instead: it draws random numbers on the host"
    assert run.log.read_text().count(line) == 1
    assert recorder.recorded == 2  # the lessons
    assert len(set(draws)) == len(draws) == 2 * 16


class Counts(CrossEntropy):
    """Weighs its loss by how often it was called, as it should not."""

    def __init__(self, *given):
        super().__init__(*given)
        self.called = 0

    def forward(self, *given, **named):
        self.called += 1
        return {name: term * self.called for name, term in super().forward(*given, **named).items()}


class Rebinds(CrossEntropy):
    """The same with a buffer that becomes another tensor."""

    def __init__(self, *given):
        super().__init__(*given)
        self.register_buffer("called", torch.zeros(()))

    def forward(self, *given, **named):
        self.called = self.called + 1
        return {name: term * self.called for name, term in super().forward(*given, **named).items()}


class InPlace(Rebinds):
    """And with one that is written in place, as it should."""

    def forward(self, *given, **named):
        self.called.add_(1)
        return {name: term * self.called for name, term in CrossEntropy.forward(self, *given, **named).items()}


@pytest.mark.parametrize(("method", "recorded"), [(Counts, 2), (Rebinds, 2), (InPlace, 4)])
def test_a_method_whose_state_lies_on_the_host_is_not_recorded(small, recorder, monkeypatch, method, recorded):
    def config(where):
        given = small("method=ce", *EPOCHS, f"output_root={small().output_root}/{where}")
        return dataclasses.replace(given, method=dataclasses.replace(given.method, target=method))

    taped = execute(config("taped"))
    monkeypatch.setattr("kdbench.run.steps_on", graphs.steps_on)
    same(taped, execute(config("written")))
    assert recorder.recorded == recorded
    line = f"launched step by step instead: it changes {method.__name__}.called on the host"
    assert taped.log.read_text().count(line) == (recorded == 2)


def test_what_waits_for_the_device_is_not_recorded_and_one_line_says_so(small, recorder, monkeypatch):
    train_otherwise(monkeypatch, lambda term, student, batch, progress: term * (float(term.detach()) > 0))
    run = execute(small("method=ce", *EPOCHS))
    said = run.log.read_text()
    assert said.count("graphs: the part of CrossEntropy, launched step by step instead: it waits for a value") == 1
    assert said.count("graphs: ") == 1
    assert run.read_summary()["epochs"] == 4


def test_without_a_lesson_nothing_else_is_recorded(small, recorder, monkeypatch):
    def refused(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(TapeRecorder, "__call__", lambda self, function: refused(function))
    taped, written = run_both(small, monkeypatch, "method=logit", *EPOCHS)
    same(taped, written)
    assert taped.log.read_text().count("graphs: batches and what the teacher says of them, launched step by step") == 1


def test_without_memory_to_record_in_steps_are_carried_out_as_written(small, recorder, monkeypatch):
    def full(self, function):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(TapeRecorder, "__call__", full)
    taped, written = run_both(small, monkeypatch, "method=ce", *EPOCHS)
    same(taped, written)
    assert "instead: CUDA out of memory." in taped.log.read_text()


@pytest.mark.slow
def test_killed_run_goes_on_with_recorded_steps(small, recorder, monkeypatch):
    whole, written = run_both(small, monkeypatch, "method=ce", *EPOCHS, "checkpoint.every_minutes=0")
    monkeypatch.setattr("kdbench.run.steps_on", lambda *given: graphs.GraphedSteps(*given[1:], recorder))
    monkeypatch.setattr(EpochSums, "raise_if_failed", lambda self, epoch: None)
    config = small("method=ce", *EPOCHS, "checkpoint.every_minutes=0")
    with killed_after(epoch=2, step=2):
        execute(config)
    same(execute(config), written)
    same(whole, written)
