"""What a selection chose, as `--select selected.yaml` says it, and what that means for a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdbench.errors import ConfigError
from kdbench.report.groups import Group, base_of
from kdbench.report.runs import UNDISTILLED, Run


@dataclass(frozen=True)
class Selection:
    """The content of selected.yaml."""

    study: str
    chosen_by: str
    selection_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    winners: Sequence[Mapping[str, Any]]

    def reporting_seeds(self, groups: Sequence[Group]) -> list[int]:
        """Seeds of the distilled runs that report what was chosen."""
        return sorted(
            {run["seed"] for group in groups if group.is_distilled and self.competed(group) for run in group.runs}
        )

    def overlap(self, groups: Sequence[Group]) -> list[int]:
        """Seeds that chose and report."""
        return sorted(set(self.selection_seeds) & set(self.reporting_seeds(groups)))

    @property
    def candidates(self) -> set[str]:
        """Keys of the runs that were chosen among."""
        return {key for winner in self.winners for c in winner["candidates"] for key in c["run_keys"]}

    def reporting(self, runs: Sequence[Run]) -> list[Run]:
        """Runs without those that chose, unless their seeds are meant to report as well."""
        return [run for run in runs if run["run_key"] not in self.candidates or run["seed"] in self.final_seeds]

    def kept(self, groups: Sequence[Group]) -> list[Group]:
        """Groups without distilled ones that did not win."""
        return [group for group in groups if not group.is_distilled or self.won(group) or not self.competed(group)]

    def competed(self, group: Group) -> bool:
        return any(same_subject(winner, group) for winner in self.winners)

    def won(self, group: Group) -> bool:
        return any(same_subject(winner, group) and same_setting(winner, group) for winner in self.winners)

    def selects_undistilled(self, student: str) -> bool:
        return any(winner["method"] == UNDISTILLED and winner["student"] == student for winner in self.winners)

    def base_for(self, group: Group, groups: Sequence[Group]) -> Group | None:
        """The undistilled group with the selected recipe, equal to a distilled one in all that was not selected."""
        for winner in self.winners:
            varied = {override.partition("=")[0] for override in winner["overrides"]}
            for other in groups:
                if other["method"] == UNDISTILLED and same_subject(winner, other) and same_setting(winner, other):
                    ours, theirs = base_of(group), base_of(other)
                    if all(ours.get(key) == theirs.get(key) for key in {*ours, *theirs} - varied):
                        return other
        return None

    def base_runs(self, base: Group) -> Group:
        """The runs of an undistilled group that report: others have it too, as teachers or from other studies."""
        kept = [run for run in base.runs if run["seed"] in self.final_seeds]
        return Group(kept, base.setting) if kept else base


def same_setting(winner: Mapping[str, Any], group: Group) -> bool:
    """Whether a group has a winner's parameters of the method, and of the recipe those that were selected."""
    recipe = group["recipe"] or {}
    keys = [o.partition("=")[0].partition(".")[2] for o in winner["overrides"] if o.startswith("recipe.")]
    same_recipe = all(recipe.get(key) == winner["recipe"].get(key) for key in keys)
    return winner["method_params"] == group["method_params"] and same_recipe


def same_subject(winner: Mapping[str, Any], group: Group) -> bool:
    return all(winner[key] == group[key] for key in ("student", "teacher", "method"))


def read_selection(path: Path) -> Selection:
    """A selection from its file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        selection = Selection(
            str(content["study"]),
            str(content["chosen_by"]),
            whole(content["selection_seeds"]),
            whole(content["final_seeds"]),
            [{**winner, "candidates": [dict(c) for c in winner["candidates"]]} for winner in content["winners"]],
        )
        for winner in selection.winners:
            needed = ("student", "teacher", "method", "method_params", "recipe", "overrides", "margin", "noise")
            lacking = [key for key in needed if key not in winner]
            if lacking:
                raise ValueError(f"a winner lacks {', '.join(lacking)}")
        assert all(isinstance(key, str) for key in selection.candidates)
    except OSError as error:
        raise ConfigError(f"--select is {path}, which cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever YAML of another shape raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--select is {path}, which is no selected.yaml of kdbench-study ({said})") from None
    return selection


def whole(seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"seeds are {seeds!r}, no list of whole numbers")
    return tuple(seeds)
