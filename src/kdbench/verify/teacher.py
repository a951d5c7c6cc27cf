"""Checks of the teacher: it is still the recorded one, and fidelity follows from the logits of both runs."""

from pathlib import Path

from safetensors.torch import load_file

from kdbench.metrics import accuracy
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.summary import RunSummary, read_unverified
from kdbench.runner.results import fidelity
from kdbench.verify.artifacts import Artifacts, check_shapes, existing, find_teacher
from kdbench.verify.checks import Checks, NotChecked, needed

TEACHER = "run of the teacher"


def check_teacher(run: Artifacts, checks: Checks) -> None:
    """Check the teacher's run and what was computed from it; nothing for a run without a teacher."""
    if run.summary.teacher is None and (run.config is None or run.config.teacher is None):
        return
    with checks.checking(TEACHER):
        folder = find_teacher(run)
        summary, matches = read_unverified(folder)
        teacher = RunDirectory(folder, str(run.summary.teacher_key))
        if not matches:
            checks.failed(TEACHER, f"{name_of(folder)} was changed since it was written")
        elif summary.run_key != teacher.key:
            checks.failed(TEACHER, f"{name_of(folder)} has the run key {summary.run_key!r}")
        else:
            checks.passed(TEACHER, folder.name)
        check_weights(run, teacher, checks)
        check_fidelity(run, teacher, summary, checks)


def name_of(folder: Path) -> str:
    """Return the name of a run's summary, for people."""
    return f"{folder.name}/summary.json"


def check_weights(run: Artifacts, teacher: RunDirectory, checks: Checks) -> None:
    """Check that the teacher was not replaced after this student was trained."""
    with checks.checking("weights of the teacher"):
        if run.config and run.config.teacher is None:
            raise NotChecked("config.yaml names no teacher")
        checks.same("of the present teacher", teacher_weights_sha256=sha256(existing(teacher.weights)))


def check_fidelity(run: Artifacts, teacher: RunDirectory, teacher_summary: RunSummary, checks: Checks) -> None:
    """Check that fidelity and the teacher's accuracy follow from the logits of both runs."""
    with checks.checking("fidelity"):
        logits = needed(run.logits, "logits.safetensors")
        teacher_logits = load_file(existing(teacher.logits))
        check_shapes(teacher_logits, teacher_summary)
        teacher_test_acc = accuracy(teacher_logits["test_logits"].numpy(), logits["test_labels"].numpy())
        checks.same("from the teacher's logits", teacher_test_acc=teacher_test_acc)
        values = fidelity(logits["test_logits"], teacher_logits["test_logits"])
        checks.same("from the logits of both runs", run.tolerance, **values)
