"""What a selection chose, as `--select selected.yaml` says it, and what that means for a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdbench.errors import ConfigError
from kdbench.report.groups import Group
from kdbench.report.runs import UNDISTILLED, Run


@dataclass(frozen=True)
class Selection:
    """The content of selected.yaml."""

    study: str
    chosen_by: str
    selection_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    winners: Sequence[Mapping[str, Any]]

    @property
    def overlap(self) -> list[int]:
        """Seeds that choose and report."""
        return sorted(set(self.selection_seeds) & set(self.final_seeds))

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
        return any(
            same_subject(winner, group) and winner["method_params"] == group["method_params"] for winner in self.winners
        )

    def bases(self, groups: Sequence[Group]) -> dict[str, Group]:
        """The undistilled groups that were chosen, by student; empty where undistilled students were not selected."""
        return {
            group["student"]: group
            for winner in self.winners
            if winner["method"] == UNDISTILLED
            for group in groups
            if same_subject(winner, group) and group["recipe"] == winner["recipe"]
        }


def same_subject(winner: Mapping[str, Any], group: Group) -> bool:
    return all(winner[key] == group[key] for key in ("student", "teacher", "method"))


def read_selection(path: Path) -> Selection:
    """A selection from its file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        return Selection(
            str(content["study"]),
            str(content["chosen_by"]),
            tuple(content["selection_seeds"]),
            tuple(content["final_seeds"]),
            [dict(winner) | {"candidates": list(winner["candidates"])} for winner in content["winners"]],
        )
    except OSError as error:
        raise ConfigError(f"--select is {path}, which cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever YAML of another shape raises
        raise ConfigError(
            f"--select is {path}, which is no selected.yaml of kdbench-study ({type(error).__name__}: {error})"
        ) from None
