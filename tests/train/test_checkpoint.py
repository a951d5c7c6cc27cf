"""What becomes of a run whose checkpoints are missing, damaged, foreign or of something else."""

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from kdbench import checked, teachers
from kdbench.errors import RunError
from kdbench.run import execute, located
from kdbench.train.checkpoint import Checkpointer
from tests.conftest import NARROW, SMALL, composed, killed_after

STEPS = ("recipe.epochs=3", "checkpoint.every_minutes=0")


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory):
    """The folder of a run that was killed in the middle of its second epoch, and the run that nobody disturbed."""
    killed, whole = (
        composed(*SMALL, *NARROW, "method=ce", *STEPS, f"output_root={tmp_path_factory.mktemp(name)}")
        for name in ("killed", "whole")
    )
    with killed_after(epoch=1, step=1):
        execute(killed)
    return Path(killed.output_root), execute(whole)


@pytest.fixture
def begun(small, begun_once, tmp_path):
    """A run that was killed in the middle of its second epoch, and what it gives if nobody disturbs it."""
    folder, whole = begun_once
    shutil.copytree(folder / "runs", tmp_path / "out" / "runs")
    config = small("method=ce", *STEPS)
    return config, located(config)[1], whole


def test_damaged_newest_falls_back_to_the_one_before_and_says_so(begun):
    config, directory, whole = begun
    content = bytearray(directory.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    directory.checkpoint.write_bytes(content)
    run = execute(config)
    said = run.log.read_text()
    assert "last.ckpt is damaged or no checkpoint (its content is not what its checksum says)" in said
    assert "resuming from previous.ckpt after 1 of 3 epochs\n" in said
    assert run.weights.read_bytes() == whole.weights.read_bytes()


def test_previous_one_alone_is_enough(begun):
    """A process may die between the two renames that make last.ckpt the previous one and the new one the last."""
    config, directory, whole = begun
    directory.checkpoint.unlink()
    run = execute(config)
    assert "resuming from previous.ckpt" in run.log.read_text()
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    assert not list(run.path.glob("*.ckpt"))


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("how", ["torch", "pickle", "not even checked"])
def test_checkpoint_that_would_run_code_is_refused(begun, tmp_path, how):
    config, directory, whole = begun
    marker = tmp_path / "it ran"
    evil = io.BytesIO()
    if how == "torch":
        torch.save({"learner": Malicious(marker), "random": {}}, evil)
    else:
        pickle.dump({"learner": Malicious(marker)}, evil)
    for file in directory.checkpoints():
        if how == "not even checked":
            file.write_bytes(evil.getvalue())
        else:
            checked.write(file, checked.read_facts(file), evil.getvalue())
    run = execute(config)
    assert not marker.exists()
    assert "no checkpoint is readable; starting over" in run.log.read_text()
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()  # it would have


def test_when_checkpoints_are_written(small, monkeypatch):
    written = []
    monkeypatch.setattr(
        Checkpointer, "save", lambda self: written.append((self.learner.epoch, self.learner.step_of_epoch))
    )

    def told(*overrides):
        written.clear()
        execute(small("method=ce", "recipe.epochs=3", "overwrite=true", *overrides))
        return list(written)

    never = "checkpoint.every_minutes=null"
    assert told(never) == [(3, 0)]
    assert told(never, "checkpoint.every_epochs=1") == [(1, 0), (2, 0), (3, 0)]
    assert told(never, "checkpoint.every_epochs=2") == [(2, 0), (3, 0)]
    assert told("checkpoint.every_minutes=0")[:3] == [(0, 1), (0, 2), (1, 0)]


def test_facts_can_be_read_without_the_weights_and_decide_threads(begun):
    config, directory, _ = begun
    facts = checked.read_facts(directory.checkpoint)
    assert (facts["epoch"], facts["step"], facts["table"], facts["teacher"]) == (1, 1, None, None)
    assert facts["choices"] == {
        "threads": located(config)[0].runtime.threads,
        "channels_last": True,
        "profile": "fast",
        "compile": False,
    }


def test_teacher_that_was_replaced_meanwhile_is_noticed(small, trained_teachers):
    config = small("method=logit", *STEPS)
    with killed_after(epoch=1, step=1, epochs=3):
        execute(config)
    teacher, other = (
        teachers.directory_of(located(small("method=logit", *more))[0]) for more in ((), ("teacher.seed=1",))
    )
    execute(small("method=ce", "student=resnet20", "seed=1"))
    summary = json.loads((other.path / "summary.json").read_text())
    shutil.rmtree(teacher.path)
    shutil.copytree(other.path, teacher.path)
    teachers.forget_verified()
    assert summary["weights_sha256"]
    with pytest.raises(RunError, match=r"this run began with another teacher: [0-9a-f]{64} then, [0-9a-f]{64} now"):
        execute(config)


def test_signal_in_the_middle_writes_a_checkpoint_whatever_the_clock_says(small, monkeypatch):
    import signal

    from kdbench.stopping import Interrupted, listening
    from kdbench.train.learner import Learner

    whole = execute(small("method=ce", "recipe.epochs=3", f"output_root={small().output_root}/whole"))
    config, step = small("method=ce", "recipe.epochs=3", "checkpoint.every_minutes=null"), Learner.step

    def asked_to_stop(self, terms):
        step(self, terms)
        if self.position == (1, 0):  # while its first step is under way
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Learner, "step", asked_to_stop)
    with pytest.raises(Interrupted), listening():
        execute(config)
    monkeypatch.setattr(Learner, "step", step)
    directory = located(config)[1]
    assert "SIGTERM: stopped after 1 of 3 epochs and 1 steps" in directory.log.read_text()
    run = execute(config)
    assert "resuming from last.ckpt after 1 of 3 epochs and 1 steps" in run.log.read_text()
    assert run.weights.read_bytes() == whole.weights.read_bytes()


def test_signal_while_it_validates_costs_no_training(small, monkeypatch):
    import signal

    from kdbench.stopping import Interrupted, listening
    from kdbench.train import learner as module

    config, predict = small("method=ce", "recipe.epochs=2", "checkpoint.every_minutes=null"), module.predict

    def asked_to_stop(*arguments):
        signal.raise_signal(signal.SIGUSR1)
        return predict(*arguments)

    monkeypatch.setattr(module, "predict", asked_to_stop)
    with pytest.raises(Interrupted), listening():
        execute(config)
    monkeypatch.setattr(module, "predict", predict)
    assert "resuming from last.ckpt after 0 of 2 epochs and 2 steps" in execute(config).log.read_text()


def test_good_checkpoint_is_never_given_up_for_a_damaged_one(begun, monkeypatch):
    """The newest is damaged, the run goes on from the one before, and dies as it writes its next."""
    config, directory, whole = begun
    directory.checkpoint.write_bytes(b"damaged")
    good = directory.previous_checkpoint.read_bytes()
    replace = Path.replace

    def power_cut(self, target):
        if Path(target) == directory.checkpoint:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", power_cut)
    with pytest.raises(RunError, match=r"no room on the disk: make some, .* the last checkpoint stands"):
        execute(config)
    monkeypatch.undo()
    assert directory.previous_checkpoint.read_bytes() == good
    run = execute(config)
    assert "no checkpoint is readable" not in run.log.read_text()
    assert run.weights.read_bytes() == whole.weights.read_bytes()
