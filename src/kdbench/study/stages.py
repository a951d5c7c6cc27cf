"""A study's configuration, and the sweeps of its stages.

Every sweep of a study is an ordinary `kdbench -m`: its overrides are what stands after that on the command line.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader

from kdbench.config import RunConfig, compose
from kdbench.config.schema import added, setting
from kdbench.config.sections import TeacherKeys
from kdbench.errors import ConfigError
from kdbench.pipeline.steps import SHARED, is_within
from kdbench.study.winners import Winner
from kdbench.sweep.overrides import OPEN_SECTIONS, expand, key_of, options_of, override

BASELINE_METHOD = "ce"


@dataclass
class ChainConfig:
    """A chain of compressions and trainings that begins with the runs of earlier stages (`kdbench-compress`)."""

    of: list[str] = setting(lambda stages: stages != [], "a list of earlier stages")
    steps: list[str] = setting(lambda steps: steps != [], "a list of steps such as [structured, finetune, int8]")
    networks: list[str] = field(default_factory=list)
    """Restricts these runs to students of some names; empty for all."""
    settings: list[str] = field(default_factory=list)
    """Settings of the steps, such as structured.ratio=0.5."""


@dataclass
class StageConfig:
    """Runs of one purpose. Every list may be empty."""

    students: list[str] = field(default_factory=list)
    """Networks trained without a teacher, by the student's recipe."""
    teachers: list[str] = field(default_factory=list)
    """Networks trained without a teacher, by the teacher's recipe: the teachers of `pairs`."""
    pairs: list[str] = field(default_factory=list)
    methods: dict[str, Any] = field(default_factory=dict)
    """Methods that distil the pairs, each with its grid: keys with lists of values."""
    baseline: dict[str, Any] = field(default_factory=dict)
    """Grid of the pairs' students without a teacher, executed with select_baseline=true."""
    winners_of: str | None = None
    """The stage whose winners give the settings of the pairs (and of the students, with select_baseline=true)."""
    winning_methods: list[str] = field(default_factory=list)
    """Restricts these winners to some methods; empty for all."""
    overrides: list[str] = field(default_factory=list)
    chains: dict[str, ChainConfig] = field(default_factory=dict)
    """By title."""
    measures: list[str] = field(default_factory=list)
    """Earlier stages whose networks are measured in turn; `overrides` are then the settings of the measurement."""
    seeds: list[int] = added(
        setting(
            lambda seeds: len(set(seeds)) == len(seeds) and min(seeds, default=0) >= 0,
            "a list of different whole numbers from 0 on",
        ),
        (),
    )
    """Of students, teachers and pairs; other runs have the seeds of those that they begin with."""
    choose: str | None = None
    """Key of summary.json that chooses a winner per pair and method; measured on validation images."""
    optional: bool = False
    """Executed only where stages= names it."""


@dataclass
class StudyConfig:
    """The content of a study's YAML file."""

    question: str = setting(lambda text: text.strip() != "", "a sentence")
    overrides: list[str] = field(default_factory=list)
    selection_seeds: list[int] = field(default_factory=list)
    final_seeds: list[int] = field(default_factory=list)
    teacher_seeds: list[int] = field(default_factory=list)
    select_baseline: bool = False
    stages: dict[str, StageConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study, read and checked.

    Args:
        name: stem of the YAML file.
        config: the file's content, with the settings of the command line in place.
        overrides: overrides of every run, those of the command line last; one value each.
        stages: names of the stages to execute, in the file's order.
        label: name of the study's folder.
        changes: settings and overrides of the command line that can change results.
        config_dir: the user's own folder of options.
        launcher: overrides that choose and set the launcher; none for this process.
        composer: function that composes a run from its overrides and that folder.
    """

    name: str
    config: StudyConfig
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    label: str
    changes: dict[str, Any]
    config_dir: Path | None = None
    launcher: tuple[str, ...] = ()
    composer: Callable[[Sequence[str], Path | None], RunConfig] = compose

    def sweeps_of(self, stage: StageConfig, winners: Sequence[Winner]) -> list[tuple[str, ...]]:
        """Return the overrides of each sweep of a stage.

        Args:
            stage: of this study.
            winners: those of the stage that `winners_of` names; empty before they are chosen.
        """
        if not stage.seeds:  # chains and measurements alone
            return []
        seeds = override("seed", *stage.seeds)
        baseline = override("method", BASELINE_METHOD)
        sweeps = []
        if stage.teachers:
            teachers = override("student", *stage.teachers)
            sweeps.append(self.sweep(stage, teachers, baseline, *self.teacher_recipe(), seeds, teachers=True))
        if stage.students:
            sweeps.append(self.sweep(stage, override("student", *stage.students), baseline, seeds))
        for method, grid in stage.methods.items():
            pairs = override("pair", *stage.pairs)
            sweeps.append(self.sweep(stage, pairs, override("method", method), *grid_overrides(grid), seeds))
        if self.selects_baseline(stage):
            students = dict.fromkeys(self.compose_pair(pair).student.name for pair in stage.pairs)
            grid_values = grid_overrides(stage.baseline)
            sweeps.append(self.sweep(stage, override("student", *students), baseline, *grid_values, seeds))
        alike: dict[tuple[str, ...], list[str]] = {}
        for winner in winners:
            wanted = winner.student in stage.students if winner.pair is None else winner.pair in stage.pairs
            if wanted and winner.method in (stage.winning_methods or [winner.method]):
                group = "student" if winner.pair is None else "pair"
                alike.setdefault((group, winner.method, *winner.overrides), []).append(winner.pair or winner.student)
        for (group, method, *chosen), names in alike.items():
            sweeps.append(self.sweep(stage, override(group, *names), override("method", method), *chosen, seeds))
        return sweeps

    def sweep(self, stage: StageConfig, *own: str, teachers: bool = False) -> tuple[str, ...]:
        """Return a sweep's overrides, those of the study first. No other override may set what the stage varies.

        Args:
            stage: of this study.
            own: overrides of the sweep alone.
            teachers: whether its runs train teachers.

        Raises:
            ConfigError: an override of the command line sets what the stage varies.
        """
        fixed = {key_of(text) for text in (*own, *stage.overrides)}
        in_file = {key_of(text) for text in self.config.overrides}
        for text in self.overrides:
            if key_of(text) in fixed - in_file:
                remedy = "give final_seeds=[...]" if key_of(text) == "seed" else "change the study's file"
                raise ConfigError(
                    f"{text}: study={self.name} sets {key_of(text)} itself; {remedy}",
                    code="set_by_study",
                    key=key_of(text),
                )
        of_study = [text for text in self.overrides if key_of(text) not in fixed]
        of_stage = stage.overrides
        if override("method", BASELINE_METHOD) in own:
            of_study, of_stage = (without_teacher(texts, teachers) for texts in (of_study, of_stage))
        return (*of_study, *own, *of_stage)

    def expand(self, sweep: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the overrides of each run of a sweep. Errors: see `kdbench.sweep.overrides.expand`."""
        return expand(sweep, self.loader())

    def loader(self) -> ConfigLoader:
        """Return Hydra's loader for the options of kdbench and of the user."""
        return options_of(self.config_dir)

    def selects_baseline(self, stage: StageConfig) -> bool:
        """Return whether a stage also chooses the recipe of the baselines."""
        return bool(stage.baseline) and self.config.select_baseline

    def command_line(self, sweep: Sequence[str]) -> list[str]:
        """Return the command that executes a sweep of this study on its own."""
        own_options = ["--config-dir", str(self.config_dir)] if self.config_dir else []
        return ["kdbench", "-m", *own_options, *sweep]

    def shared_overrides(self) -> tuple[str, ...]:
        """Return the overrides of every run that runs without a training have too, such as those of the runtime."""
        return tuple(text for text in self.overrides if is_within(key_of(text), SHARED))

    def count_waiting(self, stage: StageConfig) -> int:
        """Return the number of runs of a stage that wait for the winners of another, before these are chosen."""
        if stage.winners_of is None:
            return 0
        selection = self.config.stages[stage.winners_of]
        methods = stage.winning_methods or list(selection.methods)
        runs = len(methods) * len(set(stage.pairs) & set(selection.pairs))
        if self.selects_baseline(selection) and not stage.winning_methods:
            runs += len(stage.students)
        return runs * len(stage.seeds) * len(self.expand(stage.overrides))

    def compose(self, overrides: Sequence[str]) -> RunConfig:
        """Return the run of `kdbench OVERRIDES`, with the user's own options."""
        return self.composer(overrides, self.config_dir)

    def compose_example(self) -> RunConfig:
        """Return a distilled run of the study, for the settings that all its runs share."""
        return self.compose([*filter(is_shared, self.overrides), "method=logit"])

    def compose_pair(self, name: str) -> RunConfig:
        """Return a distilled run of a pair, for the names of its student and teacher."""
        return self.compose([*filter(is_shared, self.overrides), override("pair", name), "method=logit"])

    def teacher_recipe(self) -> list[str]:
        """Return the overrides by which a run's own recipe becomes that of its teacher."""
        run = self.compose_example()
        assert run.teacher is not None
        own, wanted = dataclasses.asdict(run.recipe), dataclasses.asdict(run.teacher.recipe)
        unused = run.teacher.recipe.unused()
        return [
            override(f"recipe.{key}", value) for key, value in wanted.items() if own[key] != value and key not in unused
        ]


def is_shared(text: str) -> bool:
    """Return whether an override sets a key that every run has, whatever its student, teacher and method are."""
    section, _, name = key_of(text).partition(".")
    if section == "teacher":
        return name.partition(".")[0] in ("", *(f.name for f in dataclasses.fields(TeacherKeys)))
    return not key_of(text).startswith(OPEN_SECTIONS)


def without_teacher(overrides: Sequence[str], teachers: bool) -> list[str]:
    """Return overrides of every run as those of runs without a teacher: keys of teacher and method do not concern them.

    Args:
        overrides: of the study or of a stage.
        teachers: whether the runs train teachers, so that keys of `teacher` are those of their `student`.
    """
    network = "teacher." if teachers else "student."
    kept = [text for text in overrides if is_shared(text) or key_of(text).startswith(network)]
    return [text if is_shared(text) else text.replace(network, "student.", 1) for text in kept]


def grid_overrides(grid: dict[str, list[Any]] | None) -> list[str]:
    """Return the override of each key of a grid, with all its values."""
    return [override(key, *values) for key, values in (grid or {}).items()]
