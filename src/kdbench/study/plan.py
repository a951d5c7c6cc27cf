"""A study's YAML, and the sweeps that its stages are.

A stage is ordinary Hydra sweeps: what `Sweep.overrides` holds is what stands after `kdbench -m`.
"""

import dataclasses
import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.compose import run_config
from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.schema import ranged

Grid = dict[str, list[Any]]
"""Overrides with the values that each takes."""


@dataclass
class StageConfig:
    """Runs of one purpose. Every list may be empty."""

    students: list[str] = field(default_factory=list)
    """Trained without a teacher, by the student's recipe."""
    teachers: list[str] = field(default_factory=list)
    """Trained without a teacher, by the teacher's recipe: what `pairs` learn from."""
    pairs: list[str] = field(default_factory=list)
    methods: dict[str, Any] = field(default_factory=dict)
    """How the pairs learn, each method with its grid."""
    undistilled: dict[str, Any] = field(default_factory=dict)
    """The grid of the pairs' undistilled students, carried out with select_undistilled=true."""
    winners_of: str | None = None
    """The stage whose winners the pairs (and the students, with select_undistilled=true) learn by."""
    winning_methods: list[str] = field(default_factory=list)
    """Of those winners only these methods'; empty for all."""
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] = ranged(
        lambda seeds: seeds and len(set(seeds)) == len(seeds) and min(seeds) >= 0, "different whole numbers from 0 on"
    )
    choose: str | None = None
    """What winners are chosen by, one per pair and method: a key of summary.json that validation images decide."""
    optional: bool = False
    """Carried out only where stages= names it."""


@dataclass
class StudyConfig:
    question: str = ranged(lambda text: text.strip() != "", "a sentence")
    overrides: list[str] = field(default_factory=list)
    selection_seeds: list[int] = field(default_factory=list)
    final_seeds: list[int] = field(default_factory=list)
    teacher_seeds: list[int] = field(default_factory=list)
    select_undistilled: bool = False
    stages: dict[str, StageConfig] = field(default_factory=dict)


SETTABLE = ("selection_seeds", "final_seeds", "teacher_seeds", "select_undistilled")
"""Keys of a study that the command line may set; others there are the runs'."""
CHOSEN_BY = ("best_val_acc",)
UNDISTILLED = "ce"
NOT_IN_NAME = ("output_root", "report", "runtime", "checkpoint", "hydra", "on_busy", "overwrite")
"""Overrides that change no number, and so not what the study is called."""


@dataclass(frozen=True)
class Sweep:
    """One `kdbench -m`, its values as they stand on the command line."""

    overrides: tuple[str, ...]

    @property
    def jobs(self) -> list[tuple[str, ...]]:
        """The overrides of each job, in the order of the sweep."""
        choices = []
        for override in self.overrides:
            key, _, values = override.partition("=")
            alone = values.startswith(("[", "{", "'", '"', "$"))
            choices.append([override] if alone else [f"{key}={value}" for value in values.split(",")])
        return list(itertools.product(*choices))


@dataclass(frozen=True)
class Study:
    """A study as it is to be carried out.

    Args:
        name: Of the YAML file.
        config: With the command line's settings in place.
        overrides: Of every run, the command line's last.
        stages: Names of those to carry out, in the file's order.
        label: The name with the command line's overrides, as a folder may be called.
        config_dir: The user's own, if one was given.
    """

    name: str
    config: StudyConfig
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    label: str
    config_dir: Path | None = None

    def sweeps(self, stage: StageConfig, winners: Sequence[Mapping[str, Any]]) -> list[Sweep]:
        """What a stage consists of; winners are those of the stage that it names, and empty before they are known."""
        seeds = listed("seed", stage.seeds)
        sweeps = []
        if stage.teachers:
            recipe = self.teachers_recipe()
            sweeps.append(self.sweep(stage, listed("student", stage.teachers), "method=ce", *recipe, seeds))
        if stage.students:
            sweeps.append(self.sweep(stage, listed("student", stage.students), "method=ce", seeds))
        for method, grid in stage.methods.items():
            values = [listed(key, choices) for key, choices in (grid or {}).items()]
            sweeps.append(self.sweep(stage, listed("pair", stage.pairs), f"method={method}", *values, seeds))
        if self.selects_undistilled(stage):
            values = [listed(key, choices) for key, choices in stage.undistilled.items()]
            students = list(dict.fromkeys(self.pair(pair).student.name for pair in stage.pairs))
            sweeps.append(self.sweep(stage, listed("student", students), "method=ce", *values, seeds))
        alike: dict[tuple[Any, ...], list[str]] = {}
        for winner in winners:
            if winner["method"] == UNDISTILLED:
                subject, wanted = "student", winner["student"] in stage.students
            else:
                subject, wanted = "pair", winner["pair"] in stage.pairs
            if wanted and winner["method"] in (stage.winning_methods or [winner["method"]]):
                key = (subject, winner["method"], *winner["overrides"])
                alike.setdefault(key, []).append(winner[subject])
        for (subject, method, *chosen), names in alike.items():
            sweeps.append(self.sweep(stage, listed(subject, names), f"method={method}", *chosen, seeds))
        return sweeps

    def sweep(self, stage: StageConfig, *own: str) -> Sweep:
        """A sweep with the study's overrides first; what the stage varies, no other override may set.

        Raises:
            ConfigError: one does.
        """
        fixed = {key_of(override) for override in (*own, *stage.overrides)}
        for override in self.overrides:
            if key_of(override) in fixed and key_of(override) not in {key_of(o) for o in self.config.overrides}:
                raise ConfigError(f"{override}: study={self.name} sets {key_of(override)} itself; edit conf/study")
        for override in (*self.overrides, *own, *stage.overrides):
            if "(" in override.partition("=")[2]:
                raise ConfigError(f"{override}: a study's sweeps list their values, a,b,c; functions are not read here")
        kept = [override for override in self.overrides if key_of(override) not in fixed]
        return Sweep((*kept, *own, *stage.overrides))

    def selects_undistilled(self, stage: StageConfig) -> bool:
        return bool(stage.undistilled) and self.config.select_undistilled

    def arguments(self, sweep: Sweep) -> list[str]:
        """What stands after `kdbench` to carry a sweep out."""
        return ["-m", *(["--config-dir", str(self.config_dir)] if self.config_dir else []), *sweep.overrides]

    def unknown_winners(self, stage: StageConfig) -> int:
        """How many runs a stage will have that waits for the winners of another."""
        if stage.winners_of is None:
            return 0
        selection = self.config.stages[stage.winners_of]
        methods = stage.winning_methods or list(selection.methods)
        runs = len(methods) * len(set(stage.pairs) & set(selection.pairs))
        if self.selects_undistilled(selection) and not stage.winning_methods:
            runs += len(stage.students)
        more = [len(Sweep((override,)).jobs) for override in stage.overrides]
        return runs * len(stage.seeds) * math.prod(more)

    def compose(self, *overrides: str) -> RunConfig:
        """The run that `kdbench OVERRIDES` would carry out."""
        return run_config(*overrides, config_dir=self.config_dir)

    def pair(self, name: str) -> RunConfig:
        """A distilling run of a pair, to ask who its student and teacher are."""
        return self.compose(*self.overrides, f"pair={name}", "method=logit")

    def teachers_recipe(self) -> list[str]:
        """What has to be overridden so that a run's own recipe is that of its teacher."""
        run = self.compose(*self.overrides, "method=logit")
        assert run.teacher is not None
        own, wanted = dataclasses.asdict(run.recipe), dataclasses.asdict(run.teacher.recipe)
        return [listed(f"recipe.{key}", [value]) for key, value in wanted.items() if own[key] != value]


def listed(key: str, values: Sequence[Any]) -> str:
    return f"{key}={','.join(written(value) for value in values)}"


def written(value: Any) -> str:
    """A value as Hydra reads it on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def shown(arguments: Sequence[str]) -> str:
    """A command of kdbench as one types it."""
    return shlex.join(["kdbench", *arguments])


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
