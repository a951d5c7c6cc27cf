"""The choice of winners, on validation accuracy alone."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from kdbench.report.noise import interaction_variance, paired_noise, seed_noise
from kdbench.rundir.files import write_text
from kdbench.rundir.summary import DATA, KEY, RunSummary
from kdbench.sweep.overrides import escape_interpolations

CHOSEN_BY = (KEY.best_val_acc,)
"""Keys of summary.json that may choose."""


@dataclass(frozen=True)
class Candidate:
    """One setting of a pair, or of a student without a teacher, with its complete runs."""

    pair: str | None
    overrides: tuple[str, ...]
    summaries: list[RunSummary]
    paths: list[Path] = field(default_factory=list)
    """Directories of these runs, for their logits."""
    is_default: bool | None = None
    """True if it is the setting without what is varied; None where that is not known."""

    def scores(self, by: str) -> list[float]:
        """Return the score of each run, in per cent."""
        return [100 * float(getattr(summary, by)) for summary in self.summaries]

    def score(self, by: str) -> float:
        """Return the mean over the seeds, in per cent."""
        return mean(self.scores(by))

    @property
    def subject(self) -> tuple[str, str]:
        """Subject of the competition: a pair (without a teacher a student) and a method."""
        summary = self.summaries[0]
        return self.pair or summary.student, summary.method


@dataclass(frozen=True)
class Winner:
    """The best setting of a pair and method, or of a student without a teacher. Its fields are keys of selected.yaml.

    Scores are in per cent, differences in points.
    """

    pair: str | None
    student: str
    teacher: str | None
    method: str
    overrides: list[str]
    method_params: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any]
    """Data set and sizes of its parts (`DATA`), so that a report can refuse runs on other data."""
    score: float
    runner_up: dict[str, Any] | None
    margin: float | None
    tie: bool
    noise: float | None
    """Standard error of a difference of two such scores that comes from the number of validation images, were both
    measured on images of their own. Both are measured on the same ones, so the true one is smaller."""
    noise_images: float | None
    """The same, from the images on which the two differ; None without the logits of the runs."""
    noise_seeds: float | None
    """Standard error of that difference that comes from the seeds beyond that; None where one seed chose."""
    seed_std: float | None
    """Standard deviation over the seeds."""
    candidates: list[dict[str, Any]]
    seed_scores: list[list[float]]
    """Score of each run of each candidate."""


def choose(candidates: Sequence[Candidate], by: str) -> list[Winner]:
    """Return the winner of each pair and method, and of each student without a teacher.

    Only settings with as many complete runs as the one with the most compete. Of equals the first wins.

    Args:
        candidates: in the order of the grid; those without a complete run are left out.
        by: key of summary.json that decides.
    """
    able = [candidate for candidate in candidates if candidate.summaries]
    subjects = dict.fromkeys(candidate.subject for candidate in able)
    rivals = [[candidate for candidate in able if candidate.subject == subject] for subject in subjects]
    spreads = pool_by_student(rivals, by)
    return [winner_of(of, by, spreads[of[0].summaries[0].student]) for of in rivals]


def unrivalled(pair: str | None, student: str, teacher: str | None, method: str, overrides: list[str]) -> Winner:
    """Return a setting as a winner without scores, for a plan of runs whose settings are not selected yet."""
    unknown: dict[str, Any] = dict.fromkeys(f.name for f in dataclasses.fields(Winner))
    known = {"pair": pair, "student": student, "teacher": teacher, "method": method, "overrides": overrides}
    return Winner(**unknown | known)


def pool_by_student(choices: Sequence[Sequence[Candidate]], by: str) -> dict[str, float]:
    """Return, for each student, the variance over the selection's seeds of what is not common to all settings of a
    choice, pooled over its choices, in points squared; NaN where one seed chose."""
    tables = defaultdict[str, list[list[list[float]]]](list)
    for rivals in choices:
        tables[rivals[0].summaries[0].student].append([c.scores(by) for c in competing(rivals)])
    return {student: interaction_variance(of_student) for student, of_student in tables.items()}


def competing(rivals: Sequence[Candidate]) -> list[Candidate]:
    """Return the settings that have as many complete runs as the one with the most."""
    most = max(len(candidate.summaries) for candidate in rivals)
    return [candidate for candidate in rivals if len(candidate.summaries) == most]


def winner_of(rivals: Sequence[Candidate], by: str, spread: float = math.nan) -> Winner:
    """Return the winner among the settings of one subject. Other arguments: see `choose`.

    Args:
        spread: variance over the seeds, see `pool_by_student`.
    """
    ranked = sorted(competing(rivals), key=lambda c: -c.score(by))
    best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    summary, most = best.summaries[0], len(best.summaries)
    images = noise_on_images(best, second) if second else None
    seeds = seed_noise(spread, most, images or 0.0) if second and not math.isnan(spread) else None
    return Winner(
        pair=best.pair,
        student=summary.student,
        teacher=summary.teacher,
        method=summary.method,
        overrides=list(best.overrides),
        method_params=dict(summary.method_params or {}),
        recipe=dict(summary.recipe or {}),
        data={key: getattr(summary, key) for key in DATA},
        score=round(best.score(by), 4),
        runner_up={"overrides": list(second.overrides), "score": round(second.score(by), 4)} if second else None,
        margin=round(best.score(by) - second.score(by), 4) if second else None,
        tie=second is not None and best.score(by) == second.score(by),
        noise=round(noise(best, second, by), 4) if second else None,
        noise_images=None if images is None else round(images, 4),
        noise_seeds=None if seeds is None else round(seeds, 4),
        seed_std=round(100 * stdev(getattr(s, by) for s in best.summaries), 4) if most > 1 else None,
        candidates=[
            {
                "overrides": list(candidate.overrides),
                "default": candidate.is_default,
                "score": round(candidate.score(by), 4),
                "run_keys": [s.run_key for s in candidate.summaries],
            }
            for candidate in rivals
        ],
        seed_scores=[[round(score, 4) for score in candidate.scores(by)] for candidate in rivals],
    )


def noise_on_images(best: Candidate, second: Candidate) -> float | None:
    """Return the standard error of a difference of two scores from the number of validation images, in points.

    Both settings are measured on the same images, so only those on which they differ count. None without logits.
    """
    from kdbench.report.predictions import validation_correctness  # late: it imports pandas

    correct = [[validation_correctness(path) for path in candidate.paths] for candidate in (best, second)]
    ours, theirs = ([row for row in rows if row is not None] for rows in correct)
    if not ours or (len(ours), len(theirs)) != (len(best.summaries), len(second.summaries)):
        return None
    if len({len(row) for row in (*ours, *theirs)}) > 1:
        return None
    return paired_noise(np.array(ours), np.array(theirs))


def noise(best: Candidate, second: Candidate, by: str) -> float:
    """Return the standard error of a difference of two scores, in points, by the binomial distribution."""

    def variance(candidate: Candidate) -> float:
        accuracy = candidate.score(by) / 100
        images = candidate.summaries[0].num_val
        assert images is not None
        return accuracy * (1 - accuracy) / (images * len(candidate.summaries))

    return 100 * math.sqrt(variance(best) + variance(second))


def write_selected(
    path: Path, study: str, stage: str, by: str, seeds: Mapping[str, Sequence[int]], winners: Sequence[Winner]
) -> None:
    """Write selected.yaml: the winners, their candidates, margins and the noise of each choice."""
    header = (
        f"# Chosen by {by} on validation images, mean over the selection's seeds, in per cent; not on test data.\n"
        "# margin: points ahead of the runner-up; of a tie the first of the grid wins. noise: the standard error of\n"
        "# that margin from the number of validation images alone, were both measured on images of their own.\n"
        "# noise_images: the same for the common images on which both were measured (null without logits).\n"
        "# noise_seeds: what the seeds add to it (null where one seed chose: kdbench-report estimates it from runs\n"
        "# that report). A margin below twice the root of the sum of their squares is weak evidence of which setting\n"
        "# is better: choices.csv of the report. seed_scores: score of each run of each candidate. default: true for\n"
        "# the setting without the grid, null where that one cannot be planned.\n"
    )
    content = {
        "study": study,
        "stage": stage,
        "chosen_by": by,
        **{name: list(values) for name, values in seeds.items()},
        "winners": [dataclasses.asdict(winner) for winner in winners],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, header + yaml_of(content))


def yaml_of(content: Mapping[str, Any]) -> str:
    """Return plain data as YAML that OmegaConf reads back literally, `${` in texts included."""
    return OmegaConf.to_yaml(OmegaConf.create(escape_interpolations(dict(content))))
