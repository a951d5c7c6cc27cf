"""The configurations that are measured, and the named sets of them. Imports no torch."""

from dataclasses import dataclass

DATA = ("data=shapes", "data.num_train=3840", "data.num_val=10", "data.num_test=10")
"""Speed does not depend on what the images show; these need no download."""


@dataclass(frozen=True)
class Case:
    """One configuration, and the arms to measure of it: the named ones, or all that differ there."""

    overrides: tuple[str, ...]
    arms: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The overrides in one line, for people."""
        return " ".join(self.overrides) or "defaults"


SETS = {
    "cpu": (
        Case(("pair=r50_r18", "method=ce", "runtime.device=cpu")),
        Case(("pair=r50_r18", "method=logit", "runtime.device=cpu")),
        Case(("pair=r50_r18", "method=feature", "runtime.device=cpu"), ("reference", "fused", "kdbench")),
    ),
    "lockstep": tuple(
        Case((f"student={student}", f"method={method}", "teacher=resnet56", "runtime.device=cpu"))
        for student in ("resnet8", "resnet14")
        for method in ("logit", "feature", "ce")
    ),
    "gpu-lockstep": tuple(
        Case((f"student={student}", f"method={method}", "teacher=resnet50", "runtime.device=cuda"))
        for student in ("resnet18", "resnet34")
        for method in ("logit", "feature", "ce")
    ),
    "gpu": (
        Case(("pair=r50_r18", "method=ce", "runtime.device=cuda")),
        Case(("pair=r50_r18", "method=logit", "runtime.device=cuda")),
        Case(("pair=r50_r18", "method=feature", "runtime.device=cuda")),
        Case(("pair=r101_r34", "method=logit", "runtime.device=cuda"), ("reference", "kdbench", "kdbench-cache")),
        Case(("student=resnet50", "method=ce", "runtime.device=cuda"), ("reference", "kdbench")),
    ),
}
LOCKSTEP_SETS = ("lockstep", "gpu-lockstep")
"""Sets whose cases are learners of one group."""
