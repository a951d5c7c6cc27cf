"""Sentences of deployment: at equal size or latency, is distilling better than the other ways to a small network?"""

import math
from collections.abc import Mapping, Sequence

from kdbench.report.column import P
from kdbench.report.columns import format_value
from kdbench.report.deployment.comparisons import (
    SUBJECTS,
    TOLERANCE,
    Question,
    ask,
    cost_text,
    engine_of,
    is_fine_tuned,
    kind_of,
)
from kdbench.report.deployment.forms import Form
from kdbench.report.deployment.measurement import Session
from kdbench.report.gains import group_by
from kdbench.report.groups import DISTILLED
from kdbench.report.statistics import ALPHA

VERDICTS = BETTER, WORSE, OPEN, UNTESTED, NO_PAIR = (
    "more accurate than",
    "less accurate than",
    "not shown to differ in accuracy from",
    "not tested against",
    "not compared with",
)


def describe_deployment(forms: Sequence[Form], numbers: Mapping[Session, int]) -> list[str]:
    """Return the sentences of deployment; none without a measurement.

    Args:
        forms: forms of the session that is compared.
        numbers: number of each session.
    """
    if not forms:
        return []
    questions = ask(forms)
    if not any(form.identity.role == DISTILLED for form in forms):
        return ["No distilled network was measured, so distilling is not compared with pruning or quantising."]
    if not questions:
        return [
            "No pruned, quantised or undistilled network was measured together with a distilled one, so distilling is "
            "not compared with them."
        ]
    return [*summarise(questions), *describe_questions(questions), describe_rule(forms, questions, numbers)]


def verdict_of(question: Question) -> str:
    """Return what the adjusted p of a comparison supports."""
    if not question.pair or not question.result:
        return NO_PAIR
    if math.isnan(question.p_adjusted):
        return UNTESTED
    if question.p_adjusted >= ALPHA:
        return OPEN
    return BETTER if question.result.difference > 0 else WORSE


def summarise(questions: Sequence[Question]) -> list[str]:
    """Return the answer for each kind of distilled network and each cost, in one sentence."""
    lines = []
    for (subject, measure), of in group_by(questions, lambda question: (question.subject, question.measure)):
        verdicts = sorted(group_by(of, verdict_of), key=lambda item: VERDICTS.index(item[0]))
        parts = [
            f"{verdict} {listed([rival_text(question) for question in found])}"
            + (f", since no pair of forms has about equal {measure}" if verdict == NO_PAIR else "")
            for verdict, found in verdicts
        ]
        lines.append(f"At about equal {measure}, {subject} is {'; '.join(parts)}.")
    return lines


def rival_text(question: Question) -> str:
    """Return a rival in words, with the remark that it was pruned and not fine-tuned."""
    is_raw = question.pair and kind_of(question.pair[1])[0] and not is_fine_tuned(question.pair[1])
    return f"{question.rival}{' (not fine-tuned)' if is_raw else ''}"


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def describe_questions(questions: Sequence[Question]) -> list[str]:
    """Return a sentence with the numbers of each pair of forms, for all costs in which it is the nearest."""
    found = [question for question in questions if question.pair]
    lines = []
    for _, of in sorted(group_by(found, lambda question: question.pair), key=lambda item: order_of(item[1][0])):
        at = " and ".join(f"{question.measure} ({cost_text(question.measure, question.costs)})" for question in of
                          if question.costs)  # fmt: skip
        lines.append(f"At about equal {at}: {describe_difference(of[0])}.")
    return lines


def order_of(question: Question) -> int:
    return SUBJECTS.index(question.subject)


def describe_difference(question: Question) -> str:
    """Return forms, difference, interval, n and p of a comparison as text."""
    assert question.pair
    assert question.result
    ours, theirs = question.pair
    result, (n, m) = question.result, question.n
    word = "more" if result.difference >= 0 else "less"
    size = f"{ours.name} is {abs(result.difference):.2f} points {word} accurate than {theirs.name}"
    if math.isnan(result.p):
        reason = "one run in an arm" if min(n, m) < 2 else "runs do not vary, or share seeds"
        return (
            f"{ours.name} differs from {theirs.name} by {result.difference:+.2f} points of accuracy (n = {n} and {m}; "
            f"no test: {reason})"
        )
    seeds = f"n = {n} pairs of one seed" if question.is_paired else f"n = {n} and {m}, Welch"
    interval = f"95 % interval {result.low:+.2f} to {result.high:+.2f}"
    p = format_value(question.p_adjusted, P)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    shown = "" if question.p_adjusted < ALPHA else ": a difference is not shown"
    return f"{size} ({interval}, {seeds}; {p} after Holm{shown})"


def describe_rule(forms: Sequence[Form], questions: Sequence[Question], numbers: Mapping[Session, int]) -> str:
    """Return how pairs were found and tested, and of which session."""
    tests = len({question.pair for question in questions if question.pair and not math.isnan(question.p_adjusted)})
    runs, session, engine = sum(len(form.runs) for form in forms), forms[0].session, engine_of(forms)
    assert session
    timed = f"; latency is that of one image by {engine}" if engine else "; no latency was measured"
    corrected = f"Holm's correction is over {tests} test{'' if tests == 1 else 's'}; intervals are not corrected"
    return (
        f"About equal means within a factor of {TOLERANCE:g}; of several pairs one with a rival that was fine-tuned "
        "after compression counts first, then the nearest, then that of the higher validation accuracy"
        f"{timed}. {corrected}. All of it is about session {numbers[session]}: {runs} runs of {len(forms)} forms, "
        f"measured in turn on {session.place}."
    )
