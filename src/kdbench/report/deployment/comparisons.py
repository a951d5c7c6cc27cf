"""Distilled networks against other ways to a network of equal size or latency: pairs of forms, and their differences.

The pairs are chosen without test accuracy. Rivals that were fine-tuned after compression go first, since a network that
was not is an easy one to beat; then the nearest pair counts, then that of the higher validation accuracy.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kdbench.report import statistics as st
from kdbench.report.deployment.forms import FINE_TUNED, Form, mean_of
from kdbench.report.deployment.measurement import ENGINES, MILLION, latency_of, number_of
from kdbench.report.groups import BASELINE, DISTILLED
from kdbench.rundir.summary import KEY

TOLERANCE = 1.25
"""Largest ratio of two sizes or latencies that count as about equal."""
STEP = math.log(1.02)
"""Ratios within such steps of each other are equally near."""
QUANTISED = re.compile(r"u?int\d+|b?fp?\d+|b?float\d+|half|quanti[sz].*|dynamic|static", re.IGNORECASE)
"""Names of steps that store numbers with fewer bits; other steps remove weights."""


class Way(StrEnum):
    """Way to a small network, in words."""

    DISTILLED = "the distilled network"
    DISTILLED_QUANTISED = "the distilled and quantised network"
    PRUNED = "the pruned large network"
    QUANTISED = "the quantised large network"
    PRUNED_QUANTISED = "the pruned and quantised large network"
    ALONE = "the small network trained alone"


SUBJECTS = (Way.DISTILLED, Way.DISTILLED_QUANTISED)
RIVALS = (Way.PRUNED, Way.QUANTISED, Way.PRUNED_QUANTISED, Way.ALONE)


class Measure(StrEnum):
    """Cost at which networks are compared."""

    SIZE = "size"
    LATENCY = "latency"


@dataclass(frozen=True, eq=False)
class Question:
    """Comparison of a distilled form with a rival that costs about as much."""

    subject: Way
    rival: Way
    measure: Measure
    pair: tuple[Form, Form] | None
    """Nearest forms; None where none are near enough."""
    costs: tuple[float, float] | None
    result: st.Comparison | None = None
    """Difference of accuracies in points; without an interval where there are too few seeds."""
    n: tuple[int, int] = (0, 0)
    """Number of runs of both; of pairs, twice the same."""
    is_paired: bool = False
    p_adjusted: float = st.NAN


def is_quantisation(step: str) -> bool:
    return bool(QUANTISED.fullmatch(step))


def kind_of(form: Form) -> tuple[bool, bool]:
    """Return whether a form is pruned, and whether it is quantised."""
    quantised = [is_quantisation(step) for step in form.identity.step_names]
    return not all(quantised), any(quantised)


def size_of_form(form: Form) -> float | None:
    """Return the size of the file in bytes."""
    return form.mean("size_bytes", of_measurement=True)


def engine_of(forms: Iterable[Form]) -> str | None:
    """Return the engine whose latency compares forms: the first that measured one image."""
    listed = list(forms)
    return next((engine for engine in ENGINES if any(latency(form, engine) for form in listed)), None)


def latency(form: Form, engine: str | None) -> float | None:
    """Return the latency of one image in ms."""
    return None if engine is None else mean_of(latency_of(run, engine, 1) for run in form.rows)


def ask(forms: Sequence[Form]) -> list[Question]:
    """Return every comparison of a distilled form with a rival, with p adjusted for their number.

    Args:
        forms: forms of one session.
    """
    engine = engine_of(forms)
    questions = [
        answer(subject, rival, measure, forms, engine)
        for subject in SUBJECTS
        for rival in RIVALS
        for measure in Measure
        if candidates(forms, subject, rival)
    ]
    return adjust(questions)


def candidates(forms: Sequence[Form], subject: Way, rival: Way) -> list[tuple[Form, Form]]:
    """Return the pairs of a distilled form and a rival of the same data, whatever they cost."""
    return [
        (ours, theirs)
        for ours in forms
        if is_subject(ours, subject)
        for theirs in forms
        if is_rival(theirs, rival, ours, forms) and theirs.identity.dataset == ours.identity.dataset
    ]


def is_subject(form: Form, way: Way) -> bool:
    return form.identity.role == DISTILLED and kind_of(form) == (False, way is Way.DISTILLED_QUANTISED)


def is_rival(form: Form, way: Way, ours: Form, forms: Sequence[Form]) -> bool:
    """Return whether a form is a rival of a distilled one: not distilled before its compression, and of a larger
    network, or the same small network trained alone, quantised or not."""
    pruned, quantised = kind_of(form)
    is_same = form.identity.network == ours.identity.network
    if way is Way.ALONE:
        return form.identity.role == BASELINE and is_same and not pruned
    wanted = {Way.PRUNED: (True, False), Way.QUANTISED: (False, True), Way.PRUNED_QUANTISED: (True, True)}[way]
    is_plain = form.identity.role in (BASELINE, None)
    return is_plain and not is_same and (pruned, quantised) == wanted and is_larger(form, ours, forms)


def is_larger(form: Form, ours: Form, forms: Sequence[Form]) -> bool:
    """Return whether the network of a form was larger before compression; true where that is not known."""
    sizes = [params_at_start(form, forms), params_at_start(ours, forms)]
    known = [size for size in sizes if size is not None]
    return len(known) < 2 or known[0] > known[1]


def params_at_start(form: Form, forms: Sequence[Form]) -> float | None:
    """Return the parameters of a network before any compression, from its trained run or an uncompressed form."""
    starts = mean_of(number_of(run.start.get(KEY.num_params)) for run in form.runs if run.start)
    if starts is not None:
        return starts
    same = [own for own in forms if own.identity.network == form.identity.network and not own.is_compressed]
    return mean_of(own.mean(KEY.num_params) for own in same)


def answer(subject: Way, rival: Way, measure: Measure, forms: Sequence[Form], engine: str | None) -> Question:
    """Return the comparison of the pair that is nearest in a cost, without adjusted p."""

    def cost(form: Form) -> float | None:
        return size_of_form(form) if measure is Measure.SIZE else latency(form, engine)

    near = []
    for ours, theirs in candidates(forms, subject, rival):
        costs = cost(ours), cost(theirs)
        if costs[0] and costs[1] and is_comparable(ours, theirs, measure):
            distance = abs(math.log(costs[0] / costs[1]))
            if distance <= math.log(TOLERANCE) * (1 + 1e-9):
                rank = (not is_fine_tuned(theirs), int(distance / STEP), -validation_of(ours), ours.name, theirs.name)
                near.append((rank, ours, theirs))
    if not near:
        return Question(subject, rival, measure, None, None)
    _, ours, theirs = min(near, key=lambda found: found[0])
    result, n, is_paired = compare(ours, theirs)
    return Question(
        subject, rival, measure, (ours, theirs), (cost(ours) or 0.0, cost(theirs) or 0.0), result, n, is_paired
    )


def is_fine_tuned(form: Form) -> bool:
    """Return whether a network was trained on after a compression."""
    return any(step.startswith(FINE_TUNED) for step in form.identity.steps)


def is_comparable(ours: Form, theirs: Form, measure: Measure) -> bool:
    """Return whether two costs mean the same: sizes of files of one format."""
    formats = [{row.get(f"{KEY.measurement}.size_format") for row in form.rows} for form in (ours, theirs)]
    return measure is Measure.LATENCY or formats[0] == formats[1]


def validation_of(form: Form) -> float:
    """Return the mean validation accuracy of the trained runs that a form began with; 0 where it is not known."""
    return mean_of(number_of(run.start.get(KEY.best_val_acc)) for run in form.runs if run.start) or 0.0


def compare(ours: Form, theirs: Form) -> tuple[st.Comparison, tuple[int, int], bool]:
    """Return the difference of accuracies in points, the numbers of runs, and whether it is over pairs of one seed.

    Paired where the forms have two seeds or more in common, else Welch's test, which is no test with one run in an arm
    or with runs that are no independent samples.
    """
    by_seeds = [{run.seeds: run.accuracy for run in form.runs} for form in (ours, theirs)]
    common = [seeds for seeds in by_seeds[0] if seeds in by_seeds[1] and None not in seeds]
    independent = ours.are_replicates and theirs.are_replicates
    if len(common) > 1 and independent:
        differences = [by_seeds[0][seeds] - by_seeds[1][seeds] for seeds in common]
        return st.contrast([differences], [1.0]), (len(common), len(common)), True
    result, n = st.welch(ours.accuracies, theirs.accuracies), (len(ours.runs), len(theirs.runs))
    if not independent:
        result = replace(result, se=st.NAN, df=st.NAN, low=st.NAN, high=st.NAN, p=st.NAN)
    return result, n, False


def adjust(questions: Sequence[Question]) -> list[Question]:
    """Return questions with p by Holm's method over the different pairs: one that is nearest twice is one test."""
    tests = {question.pair: question.result.p for question in questions if question.pair and question.result}
    adjusted = dict(zip(tests, st.holm(list(tests.values())), strict=True))
    return [replace(own, p_adjusted=adjusted[own.pair]) if own.pair else own for own in questions]


def cost_text(measure: Measure, costs: tuple[float, float]) -> str:
    """Return two sizes or latencies as text."""
    unit, scale = ("MB", MILLION) if measure is Measure.SIZE else ("ms", 1.0)
    return f"{costs[0] / scale:.3g} against {costs[1] / scale:.3g} {unit}"
