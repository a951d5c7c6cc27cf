"""Choices of settings by a study: how far each may be chance, and how much too good its winner looks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.report import statistics as st
from kdbench.report.columns import CHOICES, row
from kdbench.report.groups import BASELINE, COMPARED, RunGroup, percents
from kdbench.report.noise import (
    interaction_variance,
    nested_optimism,
    noise_share,
    optimism,
    paired_noise,
    seed_noise,
    share_of_discordance,
    unpaired_noise,
)
from kdbench.report.predictions import predictions_in, same_images, validation_correctness
from kdbench.report.runs import rows_of
from kdbench.report.select import SelectedSetting, Selection

CLEAR = 2
"""Number of standard errors from which a margin is clear: chance alone leads this far in 5 % of choices."""
BY_VALIDATION, BY_TEST, BY_FINALS, APART = (
    "images: validation logits",
    "images: test logits of the candidates",
    "images: test logits of final runs",
    "images: an upper bound, no logits",
)
BY_SELECTION, BY_REPORT, UNKNOWN = "seeds: those that chose", "seeds: final runs", "seeds: not known"


def choices_table(selection: Selection | None, found: pd.DataFrame, groups: Sequence[RunGroup]) -> pd.DataFrame:
    """Return the content of choices.csv: a row for each winner that had a rival.

    Args:
        selection: the selection; without one the table is empty.
        found: every run that was found, those that chose among them.
        groups: groups of the report.
    """
    if selection is None:
        return pd.DataFrame([], columns=CHOICES)
    by_key = {run.run_key: run for run in rows_of(found)}
    spreads = {
        student: selection_spread(selection, student, by_key) for student in {w.student for w in selection.winners}
    }
    rows = [
        choice_row(winner, by_key, [g for g in groups if g.shared.student == winner.student], spreads[winner.student])
        for winner in selection.winners
        if winner.margin is not None and len(winner.candidates) > 1
    ]
    return pd.DataFrame(rows, columns=CHOICES).astype({"clear": "boolean"})


def choice_row(
    winner: SelectedSetting, runs: dict[str, Any], groups: Sequence[RunGroup], spread: float
) -> dict[str, Any]:
    """Return a row of choices.csv.

    Args:
        winner: setting that won.
        runs: every run that was found, by its key.
        groups: groups of the report with the same student.
        spread: variance over the selection's seeds, see `selection_spread`.
    """
    rivals = rivals_of(winner)
    most = len(rivals[0]["run_keys"])
    scores = [float(candidate["score"]) for candidate in rivals]
    cells = row(
        student=winner.student, teacher=winner.teacher, method=winner.method, chosen=" ".join(winner.overrides),
        candidates=len(rivals), margin=winner.margin,
        optimism_nested=nested_optimism(seed_scores(winner, rivals, runs)),
    )  # fmt: skip
    images, images_from = image_noise(winner, rivals, runs, groups)
    if images is None:
        return cells
    seeds, seeds_from = winner.noise_seeds, BY_SELECTION
    if seeds is None and not math.isnan(spread):
        seeds = seed_noise(spread, most, images)
    if seeds is None:
        seeds_from, spread = BY_REPORT, validation_spread(groups)
        seeds = None if math.isnan(spread) else seed_noise(spread, most, images)
    noise, margin = math.hypot(images, seeds or 0.0), float(winner.margin or 0.0)
    beyond = margin >= CLEAR * noise
    return cells | row(
        noise_images=images,
        noise_seeds=seeds,
        noise=noise,
        clear=None if beyond and seeds is None else beyond,
        optimism=optimism(scores, noise),
        noise_share=noise_share(scores, noise),
        noise_from=f"{images_from}; {seeds_from if seeds is not None else UNKNOWN}",
    )


def image_noise(
    winner: SelectedSetting, rivals: Sequence[Any], runs: dict[str, Any], groups: Sequence[RunGroup]
) -> tuple[float | None, str]:
    """Return the standard error of a margin that comes from the images, in points, and how it is known.

    None if the number of validation images is not known. Arguments: see `choice_row`; `rivals`: candidates.
    """
    if winner.noise_images is not None:
        return winner.noise_images, BY_VALIDATION
    best = next((c for c in rivals if list(c["overrides"]) == list(winner.overrides)), rivals[0])
    second = max((c for c in rivals if c is not best), key=lambda c: float(c["score"]))
    pair = [[runs[key] for key in candidate["run_keys"] if key in runs] for candidate in (best, second)]
    seeds = len(best["run_keys"])
    if all(len(own) == seeds for own in pair):
        ours, theirs = (stacked([validation_correctness(run.path) for run in own]) for own in pair)
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            return paired_noise(ours, theirs), BY_VALIDATION
    known = [run.num_val for run in (*pair[0], *pair[1], *(group.shared for group in groups)) if run.num_val]
    if not known:
        return None, ""
    accuracies = [float(candidate["score"]) / 100 for candidate in (best, second)]
    for where, pairs in ((BY_TEST, list(zip(*pair, strict=False))), (BY_FINALS, pairs_within(groups))):
        shares = [share for a, b in pairs if (share := test_share(a, b)) is not None]
        if shares:
            return unpaired_noise(accuracies, known[0], seeds, float(np.mean(shares))), where
    return unpaired_noise(accuracies, known[0], seeds), APART


def pairs_within(groups: Iterable[RunGroup]) -> list[tuple[Any, Any]]:
    """Return two runs of each group."""
    return [(group.rows[0], group.rows[1]) for group in groups if len(group.rows) > 1]


def test_share(a: Any, b: Any) -> float | None:
    """Return the share of discordance of two runs on the test images; None without logits of the same images."""
    ours, theirs = predictions_in(a.path), predictions_in(b.path)
    if ours is None or theirs is None or not same_images(ours, theirs):
        return None
    return share_of_discordance(ours.correct, theirs.correct)


def stacked(rows: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    """Return arrays of the same images as one, [S, M]; None if one is missing or of other images."""
    known = [own for own in rows if own is not None]
    return np.stack(known) if known and len(known) == len(rows) and len({len(own) for own in known}) == 1 else None


def seed_scores(winner: SelectedSetting, rivals: Sequence[Any], runs: dict[str, Any]) -> list[list[float]]:
    """Return the score of each run of each candidate, per cent; empty where they are not known."""
    recorded = {plain_key(c): list(own) for c, own in zip(winner.candidates, winner.seed_scores, strict=False)}
    found = []
    for candidate in rivals:
        own = [runs[key].best_val_acc for key in candidate["run_keys"] if key in runs]
        scores = recorded.get(plain_key(candidate)) or percents(pd.Series(own, dtype=object))
        if len(scores) != len(candidate["run_keys"]):
            return []
        found.append(scores)
    return found


def plain_key(candidate: Any) -> tuple[str, ...]:
    return tuple(candidate["run_keys"])


def selection_spread(selection: Selection, student: str, runs: dict[str, Any]) -> float:
    """Return the variance over the selection's seeds of what is not common to all settings of a choice, pooled over
    the choices of a student, points squared; NaN where one seed chose."""
    tables = [seed_scores(winner, rivals_of(winner), runs) for winner in selection.winners if winner.student == student]
    return interaction_variance([table for table in tables if table])


def rivals_of(winner: SelectedSetting) -> list[Any]:
    """Return the candidates with as many runs as the one with the most."""
    most = max((len(candidate["run_keys"]) for candidate in winner.candidates), default=0)
    return [candidate for candidate in winner.candidates if len(candidate["run_keys"]) == most]


def validation_spread(groups: Iterable[RunGroup]) -> float:
    """Return the variance over seeds of the validation accuracy of final runs, pooled within groups, points squared."""
    return st.pooled_std([percents(group.runs.best_val_acc) for group in groups if group.shared.validation]) ** 2


def describe_choices(choices: pd.DataFrame) -> list[str]:
    """Return what a reader must know about the choices, as sentences.

    Args:
        choices: content of choices.csv.
    """
    known = choices[choices.noise.notna()]
    if not len(known):
        return []
    clear, unsure = int(known.clear.fillna(False).sum()), int(known.clear.isna().sum())
    lines = [
        f"{clear} of {len(known)} choices of a setting {'was' if clear == 1 else 'were'} clear, which means ahead of "
        f"the next best by twice the noise of images and seeds; chance could have made the other {len(known) - clear}."
    ]
    if unsure:
        lines.append(f"Of {unsure} of these the spread over seeds is not known, so their noise is larger than stated.")
    shares = known.noise_share.dropna()
    lines.append(
        f"The validation score of a winner is expected to be {known.optimism.mean():.2f} points too high on average, "
        "because it is the best of several"
        + (
            f"; {100 * shares.median():.0f} % of the variance of the scores that it won among is noise (median)."
            if len(shares)
            else "."
        )
    )
    return lines


def remark_untuned(selection: Selection | None, runs: pd.DataFrame) -> list[str]:
    """Remark on students of which only the methods were tuned, and not the baseline.

    Args:
        selection: the selection.
        runs: runs that report.
    """
    if selection is None:
        return []
    reported = rows_of(runs)
    baselines = {run.student for run in reported if run.role == BASELINE}
    tuned = {
        run.student for run in reported if run.role == BASELINE and any(w.is_subject(run) for w in selection.winners)
    }
    methods = {run.student for run in reported if run.role in COMPARED and run.is_selected}
    untuned = sorted(methods.intersection(baselines) - tuned)
    if not untuned:
        return []
    return [
        f"the baseline{'s' if len(untuned) > 1 else ''} of {', '.join(untuned)} "
        f"{'were' if len(untuned) > 1 else 'was'} not tuned, only the methods were: a part of a gain may be that of "
        "tuning one arm alone (kdbench-study select_baseline=true tunes both)"
    ]
