"""Forms of networks: runs that are equal in training, compression and session, and differ in their seeds alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from kdbench.report.deployment.lineage import Row, before_last_step, fine_tunings, lineage_of, start_of, steps_of
from kdbench.report.deployment.measurement import Session, measured, number_of, session_of
from kdbench.report.gains import are_replicates, group_by
from kdbench.report.groups import BASELINE, CONTROL, DISTILLED
from kdbench.rundir.summary import KEY

Seeds = tuple[int | None, int | None]
FINE_TUNED = "fine-tuned"


@dataclass(frozen=True)
class Identity:
    """Properties that the runs of a form share. Method, teacher and role are those of the training at its start."""

    network: str
    """Student before any compression."""
    method: str
    teacher: str | None
    role: str | None
    setting: str
    steps: tuple[str, ...]
    """Compression and fine-tuning in words, in order."""
    step_names: tuple[str, ...]
    dataset: str | None
    student: str
    """Name that the runs record."""
    session: Session | None


@dataclass(frozen=True, eq=False)
class DeployedRun:
    """Run that compressed or measured a network, with the runs that the network comes from, where these are known."""

    row: Row
    start: Row | None
    """Trained run that the lineage begins with."""
    before: Row | None
    """Run with the network before its last compression."""
    identity: Identity

    @property
    def seeds(self) -> Seeds:
        seeds: Seeds = self.row["seeds"]
        return seeds

    @property
    def accuracy(self) -> float:
        """Test accuracy, per cent."""
        return 100 * float(self.row[KEY.test_acc_best])


@dataclass(frozen=True, eq=False)
class Form:
    """Runs of one form of a network."""

    name: str
    """Network, training and compression in words."""
    identity: Identity
    runs: Sequence[DeployedRun]
    """In the order of their seeds."""

    @property
    def session(self) -> Session | None:
        return self.identity.session

    @property
    def is_compressed(self) -> bool:
        return bool(self.identity.step_names)

    @cached_property
    def rows(self) -> list[Row]:
        return [run.row for run in self.runs]

    @cached_property
    def accuracies(self) -> list[float]:
        """Test accuracy of each run, per cent."""
        return [run.accuracy for run in self.runs]

    @cached_property
    def are_replicates(self) -> bool:
        """True if the runs are independent samples."""
        return are_replicates([run.seeds for run in self.runs])

    def mean(self, key: str, of_measurement: bool = False) -> float | None:
        """Return the mean of a number over the runs that have it; None without any.

        Args:
            key: key of the summary, or of its measurement.
            of_measurement: which of both.
        """
        values = [number_of(measured(row, key) if of_measurement else row.get(key)) for row in self.rows]
        return mean_of(values)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known numbers; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def find_forms(deployed: Sequence[Row], by_key: Mapping[str, Row], settings: Mapping[str, str]) -> list[Form]:
    """Return the forms of networks: small ones first, and each network before what was made of it.

    Args:
        deployed: runs that compressed or measured.
        by_key: all runs by their keys.
        settings: setting of the group of each trained run, by its key.
    """
    varying = varying_settings(deployed)
    teachers = {row[KEY.teacher] for row in by_key.values() if row.get(KEY.teacher)}
    lineages = [lineage_of(row, by_key) for row in by_key.values()]
    # A pruned teacher that is trained further by distillation is no distilled network of its own.
    distilled = {network_of(one) for one in lineages if (start_of(one) or one[-1]).get(KEY.role) == DISTILLED}
    runs = pool_teachers([deployed_run(row, lineage_of(row, by_key), settings, varying) for row in deployed])
    forms = [
        Form(name_of(identity, teachers - distilled), identity, sorted(of, key=seed_order))
        for identity, of in group_by(runs, lambda run: run.identity)
    ]
    sizes = start_sizes(forms)
    roles = (BASELINE, CONTROL, DISTILLED)

    def order(form: Form) -> tuple[Any, ...]:
        own = form.identity
        place = roles.index(own.role) if own.role in roles else -1
        return sizes.get(own.network) or 0, own.network, place, own.method, own.setting, len(own.steps), form.name

    return sorted(forms, key=order)


def pool_teachers(runs: Sequence[DeployedRun]) -> list[DeployedRun]:
    """Return the runs with teachers of several seeds as one form, where each seed of the student has one of them."""
    pooled: list[DeployedRun] = []
    for shared, of in group_by(runs, lambda run: replace(run.identity, setting=without_teacher_seed(run.identity))):
        seeds = [run.seeds for run in of]
        is_one = len(set(seeds)) == len(seeds)
        pooled += [replace(run, identity=shared) for run in of] if is_one else of
    return pooled


def without_teacher_seed(identity: Identity) -> str:
    """Return the setting of a form without the seed of the teacher."""
    return re.sub(r" ?teacher_seed=\d+", "", identity.setting).strip()


def deployed_run(
    row: Row, lineage: Sequence[Row], settings: Mapping[str, str], varying: Mapping[str, Sequence[str]]
) -> DeployedRun:
    """Return a run with its form; see `find_forms` and `varying_settings`."""
    start = start_of(lineage)
    origin = start or row
    steps = [step_text(step, varying.get(step["name"], ())) for step in steps_of(row)]
    for place, training in reversed(fine_tunings(lineage)):
        by = "" if start is None or arm_of(training) == arm_of(start) else f" by {arm_text(training)}"
        steps.insert(place, f"{FINE_TUNED}{by}")
    identity = Identity(
        network=network_of(lineage),
        method=origin[KEY.method],
        teacher=origin.get(KEY.teacher),
        role=origin.get(KEY.role),
        setting=settings.get(origin[KEY.run_key], ""),
        steps=tuple(steps),
        step_names=tuple(str(step["name"]) for step in steps_of(row)),
        dataset=row.get(KEY.dataset),
        student=row[KEY.student],
        session=session_of(row),
    )
    return DeployedRun(row, start, before_last_step(lineage), identity)


def network_of(lineage: Sequence[Row]) -> str:
    """Return the name of the student before any compression: that of the start, or without the names of the steps."""
    if start := start_of(lineage):
        return str(start[KEY.student])
    name, steps = str(lineage[-1][KEY.student]), [f"-{step['name']}" for step in steps_of(lineage[-1])]
    while found := next((step for step in steps if name.endswith(step)), None):
        name = name.removesuffix(found)
    return name


def arm_of(run: Row) -> tuple[Any, ...]:
    return run[KEY.method], run.get(KEY.teacher), run.get(KEY.role)


def arm_text(run: Row) -> str:
    return f"{run[KEY.method]} from {run[KEY.teacher]}" if run.get(KEY.teacher) else str(run[KEY.method])


def step_text(step: Mapping[str, Any], varying: Sequence[str] = ()) -> str:
    """Return a step of compression in words: its name and ratio, and the settings in which such steps differ."""
    ratio = number_of(step.get("ratio"))
    others = [f"{key}={step.get(key)}" for key in varying]
    return " ".join([str(step["name"]).replace("_", " "), *([f"{ratio:g}"] if ratio is not None else []), *others])


def varying_settings(deployed: Sequence[Row]) -> dict[str, list[str]]:
    """Return the settings, other than the ratio, in which the steps of one name differ."""
    found = {}
    for name, steps in group_by([step for row in deployed for step in steps_of(row)], lambda step: step["name"]):
        keys = sorted({key for step in steps for key in step} - {"name", "ratio"})
        found[name] = [key for key in keys if len({str(step.get(key)) for step in steps}) > 1]
    return found


def name_of(identity: Identity, teachers: set[str]) -> str:
    """Return the name of a form.

    Args:
        identity: what its runs have in common.
        teachers: networks that are teachers and never distilled themselves.
    """
    if identity.teacher:
        arm = f"{identity.method} from {identity.teacher}"
    elif identity.role in (BASELINE, None):
        arm = "teacher" if identity.network in teachers else identity.role or identity.method
    else:
        arm = identity.method
    return ", ".join([f"{identity.network} {arm}", *filter(None, [identity.setting]), *identity.steps])


def start_sizes(forms: Sequence[Form]) -> dict[str, float]:
    """Return the number of parameters of each network before any compression, where it is known."""
    found: dict[str, float] = {}
    for form in forms:
        rows = [run.start for run in form.runs if run.start] + ([] if form.is_compressed else list(form.rows))
        if (size := mean_of(number_of(row.get(KEY.num_params)) for row in rows)) is not None:
            found.setdefault(form.identity.network, size)
    return found


def seed_order(run: DeployedRun) -> tuple[int, ...]:
    return tuple(-1 if seed is None else seed for seed in run.seeds)
