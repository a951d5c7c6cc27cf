"""The choice of winners, on validation accuracy alone."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from kdbench.rundir.files import write_text
from kdbench.rundir.summary import KEY, RunSummary
from kdbench.sweep.overrides import escape_interpolations

CHOSEN_BY = (KEY.best_val_acc,)
"""Keys of summary.json that may choose."""


@dataclass(frozen=True)
class Candidate:
    """One setting of a pair, or of a student without a teacher, with its complete runs."""

    pair: str | None
    overrides: tuple[str, ...]
    summaries: list[RunSummary]

    def score(self, by: str) -> float:
        """Return the mean over the seeds, in per cent."""
        return 100 * mean(getattr(summary, by) for summary in self.summaries)

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
    score: float
    runner_up: dict[str, Any] | None
    margin: float | None
    tie: bool
    noise: float | None
    """Standard error of a difference of two such scores that comes from the number of validation images, were both
    measured on images of their own. Both are measured on the same ones, so the true one is smaller."""
    seed_std: float | None
    """Standard deviation over the seeds."""
    candidates: list[dict[str, Any]]


def choose(candidates: Sequence[Candidate], by: str) -> list[Winner]:
    """Return the winner of each pair and method, and of each student without a teacher.

    Only settings with as many complete runs as the one with the most compete. Of equals the first wins.

    Args:
        candidates: in the order of the grid; those without a complete run are left out.
        by: key of summary.json that decides.
    """
    able = [candidate for candidate in candidates if candidate.summaries]
    subjects = dict.fromkeys(candidate.subject for candidate in able)
    return [winner_of([candidate for candidate in able if candidate.subject == subject], by) for subject in subjects]


def winner_of(rivals: Sequence[Candidate], by: str) -> Winner:
    """Return the winner among the settings of one subject. Arguments: see `choose`."""
    most = max(len(candidate.summaries) for candidate in rivals)
    ranked = sorted((c for c in rivals if len(c.summaries) == most), key=lambda c: -c.score(by))
    best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    summary = best.summaries[0]
    return Winner(
        pair=best.pair,
        student=summary.student,
        teacher=summary.teacher,
        method=summary.method,
        overrides=list(best.overrides),
        method_params=dict(summary.method_params or {}),
        recipe=dict(summary.recipe or {}),
        score=round(best.score(by), 4),
        runner_up={"overrides": list(second.overrides), "score": round(second.score(by), 4)} if second else None,
        margin=round(best.score(by) - second.score(by), 4) if second else None,
        tie=second is not None and best.score(by) == second.score(by),
        noise=round(noise(best, second, by), 4) if second else None,
        seed_std=round(100 * stdev(getattr(s, by) for s in best.summaries), 4) if most > 1 else None,
        candidates=[
            {
                "overrides": list(candidate.overrides),
                "score": round(candidate.score(by), 4),
                "run_keys": [s.run_key for s in candidate.summaries],
            }
            for candidate in rivals
        ],
    )


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
        "# that margin from the number of validation images alone. A margin below twice the noise is weak evidence\n"
        "# of which setting is better.\n"
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
