"""Choosing winners, on validation accuracy alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from kdbench.runs import written_atomically


@dataclass(frozen=True)
class Candidate:
    """One setting with its complete runs."""

    pair: str | None
    overrides: tuple[str, ...]
    summaries: list[Mapping[str, Any]]

    def score(self, key: str) -> float:
        """Mean over the seeds, per cent."""
        return 100 * mean(summary[key] for summary in self.summaries)


def choose(candidates: Sequence[Candidate], by: str) -> list[dict[str, Any]]:
    """The winner of each pair and method (of each student, for undistilled ones), with what it won by.

    Only settings with as many complete runs as the best covered one compete. Of equals the first wins.

    Args:
        candidates: In the order of the grid; those without a complete run are left out.
        by: The key of summary.json that decides; of validation images.

    Returns:
        For each: pair, student, teacher, method, overrides and method_params of the winner, its score and the
        runner-up's in per cent, `margin` between them in points, `tie` where it is 0, and `noise`: the standard error
        in points of a difference of two such scores that the number of validation images alone brings about, were both
        measured on images of their own. Both are measured on the same ones, so the true one is smaller; `seed_std` is
        the standard deviation over seeds.
    """

    def subject(candidate: Candidate) -> tuple[str, str]:
        summary = candidate.summaries[0]
        return candidate.pair or summary["student"], summary["method"]

    winners = []
    able = [candidate for candidate in candidates if candidate.summaries]
    for one in dict.fromkeys(map(subject, able)):
        known = [candidate for candidate in able if subject(candidate) == one]
        most = max(len(candidate.summaries) for candidate in known)
        ranked = sorted((c for c in known if len(c.summaries) == most), key=lambda c: -c.score(by))
        best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
        summary = best.summaries[0]
        winners.append(
            {
                "pair": best.pair,
                "student": summary["student"],
                "teacher": summary.get("teacher"),
                "method": summary["method"],
                "overrides": list(best.overrides),
                "method_params": dict(summary["method_params"]),
                "recipe": dict(summary["recipe"]),
                "score": round(best.score(by), 4),
                "runner_up": second and {"overrides": list(second.overrides), "score": round(second.score(by), 4)},
                "margin": round(best.score(by) - second.score(by), 4) if second else None,
                "tie": second is not None and best.score(by) == second.score(by),
                "noise": round(noise(best, second, by), 4) if second else None,
                "seed_std": round(100 * stdev(s[by] for s in best.summaries), 4) if most > 1 else None,
                "candidates": [
                    {
                        "overrides": list(candidate.overrides),
                        "score": round(candidate.score(by), 4),
                        "run_keys": [s["run_key"] for s in candidate.summaries],
                    }
                    for candidate in known
                ],
            }
        )
    return winners


def noise(best: Candidate, second: Candidate, by: str) -> float:
    """The standard error of a difference of two scores, in points, by the binomial distribution."""

    def variance(candidate: Candidate) -> float:
        accuracy = candidate.score(by) / 100
        return accuracy * (1 - accuracy) / (candidate.summaries[0]["num_val"] * len(candidate.summaries))

    return 100 * math.sqrt(variance(best) + variance(second))


def write_selected(
    path: Path, study: str, stage: str, by: str, seeds: Mapping[str, Sequence[int]], winners: Any
) -> None:
    """selected.yaml: what was chosen, from what, by how much, and how noisy that choice is."""
    header = (
        f"# Chosen by {by} on validation images, mean over the selection's seeds, in per cent; not on test data.\n"
        "# margin: points ahead of the runner-up; of a tie the first of the grid wins. noise: the standard error of\n"
        "# that margin from the number of validation images alone. A margin below twice the noise says little about\n"
        "# which setting is better.\n"
    )
    content = {
        "study": study,
        "stage": stage,
        "chosen_by": by,
        **{k: list(v) for k, v in seeds.items()},
        "winners": winners,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as temporary:
        temporary.write_text(header + OmegaConf.to_yaml(OmegaConf.create(content)))
