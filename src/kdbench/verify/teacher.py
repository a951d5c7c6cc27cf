"""Checks of what was learned from: the teacher is still the one it was, and fidelity follows from both runs' logits."""

from safetensors.torch import load_file

from kdbench.metrics import accuracy
from kdbench.runs import RunDirectory, seal_fits, sha256, stored_summary
from kdbench.summary import fidelity
from kdbench.verify.findings import Findings, NotChecked, needed
from kdbench.verify.material import Run, check_shapes, teacher_folder, there


def check_teacher(run: Run, found: Findings) -> None:
    if run.summary.get("teacher") is None and (run.config is None or run.config.teacher is None):
        return
    with found.checking("teacher"):
        teacher = RunDirectory(teacher_folder(run), str(run.summary.get("teacher_key")))
        summary = stored_summary(teacher.path)
        if not seal_fits(summary):
            found.fails("teacher", f"the summary.json of {teacher.path.name} was changed since it was written")
        elif summary.get("run_key") != teacher.key:
            found.fails("teacher", f"the run_key of {teacher.path.name} is {summary.get('run_key')!r}")
        else:
            found.holds("teacher", teacher.path.name)
        check_weights(run, teacher, found)
        check_fidelity(run, teacher, found)


def check_weights(run: Run, teacher: RunDirectory, found: Findings) -> None:
    """The teacher was not replaced after this student was trained."""
    with found.checking("teacher_weights_sha256"):
        if run.config and run.config.teacher is None:
            raise NotChecked("config.yaml names no teacher")
        found.same("teacher_weights_sha256", sha256(there(teacher.weights)), "of the teacher that is there now")


def check_fidelity(run: Run, teacher: RunDirectory, found: Findings) -> None:
    with found.checking("fidelity"):
        own = needed(run.logits, "logits.safetensors")
        taught = load_file(there(teacher.logits))
        check_shapes(taught, stored_summary(teacher.path))
        of_teacher = accuracy(taught["test_logits"].numpy(), own["test_labels"].numpy())
        found.same("teacher_test_acc", of_teacher, "from the teacher's logits")
        for key, value in fidelity(own["test_logits"], taught["test_logits"]).items():
            found.same(key, value, "from both runs' logits", run.tolerance)
