"""The plan of a study: the runs of each stage as far as they are known, and the winners as far as they are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError
from kdbench.rundir.files import check_writable
from kdbench.study.derived import plan_chains, plan_measurement
from kdbench.study.progress import is_done, summary_of
from kdbench.study.stages import BASELINE_METHOD, StageConfig, Study
from kdbench.study.winners import Candidate, Winner, choose, unrivalled
from kdbench.sweep import MAX_LEARNERS
from kdbench.sweep.lockstep import group_planned
from kdbench.sweep.overrides import key_of, value_of
from kdbench.sweep.plan import PlannedRun, check_keys, plan_run
from kdbench.system.device import device_name, resolve_runtime


@dataclass
class StageSweep:
    """One `kdbench -m` of a stage, or one `kdbench-compress` or `kdbench-measure`."""

    command: list[str]
    """Command line that executes it on its own."""
    levels: list[list[PlannedRun]]
    """Runs that can be executed at once; in a chain, each step after those before it."""

    @property
    def runs(self) -> list[PlannedRun]:
        return [run for level in self.levels for run in level]


class StudyPlan:
    """The stages of a study with their runs and winners. A stage that waits for winners has no runs for them yet.

    Args:
        study: read and checked.
        max_learners: size of the largest group that trains in lockstep; 1 trains one run after the other.
    """

    def __init__(self, study: Study, max_learners: int = MAX_LEARNERS) -> None:
        self.study = study
        self.max_learners = max_learners
        example = study.compose_example()
        self.output_root = Path(example.output_root).expanduser()
        check_writable(self.output_root, "output_root")
        self.device = device_name(resolve_runtime(example.runtime).device)
        self.epochs = example.recipe.epochs
        self.folder = self.output_root / "studies" / study.label
        check_writable(self.folder, "output_root")
        self.winners: dict[str, list[Winner]] = {}
        """By the stage that chose them."""
        self.sweeps: dict[str, list[StageSweep]] = {}
        """By stage."""
        self._planned: dict[tuple[str, ...], PlannedRun] = {}
        for title in study.stages:
            self.plan_stage(title)
        self.check_overrides()

    def check_overrides(self) -> None:
        """Check that each override of every run has a run that accepts it, for one error in place of one for each.

        Raises:
            ConfigError: no student, teacher or method of the study has a key that the override sets.
        """
        runs = self.all_runs()
        for key in map(key_of, self.study.overrides):
            check_keys([run for run in runs if key in map(key_of, run.overrides)])

    @property
    def selected(self) -> Path:
        """The file of the winners."""
        return self.folder / "selected.yaml"

    def plan_stage(self, title: str, executing: bool = False) -> None:
        """Plan the sweeps of a stage, and choose its winners if it chooses and all its runs are complete.

        Args:
            title: of the stage.
            executing: whether the stages before it were executed: a measurement is then one of the complete runs.
        """
        stage = self.stage(title)
        winners: Sequence[Winner] = []
        if stage.winners_of is not None:
            if stage.winners_of not in self.winners and stage.winners_of not in self.study.stages:
                self.plan_stage(stage.winners_of)
                if self.selected.is_file():  # an earlier command carried it out; runs of it may have failed
                    self.choose_winners(stage.winners_of)
            winners = self.winners.get(stage.winners_of, [])
        self.sweeps[title] = [
            StageSweep(
                self.study.command_line(sweep), [[self.plan_run(overrides) for overrides in self.study.expand(sweep)]]
            )
            for sweep in self.study.sweeps_of(stage, winners)
        ]
        for name, chain in stage.chains.items():
            derived = plan_chains(self.study, name, chain, self.networks_of(chain.of))
            self.sweeps[title].append(StageSweep(derived.command, derived.levels))
        if stage.measures:
            derived = plan_measurement(self.study, stage.overrides, self.networks_of(stage.measures), executing)
            self.sweeps[title].append(StageSweep(derived.command, derived.levels))
        if stage.choose:
            self.check_validation(title)
        if stage.choose and all(is_done(run) for run in self.runs_of(title)):
            self.choose_winners(title)

    def networks_of(self, titles: Sequence[str]) -> list[PlannedRun]:
        """Return the runs of some stages, planned first where they are not to be executed."""
        for title in titles:
            if title not in self.sweeps:
                self.plan_stage(title)
        return unique(run for title in titles for run in self.runs_of(title))

    def levels_of(self, title: str) -> list[list[PlannedRun]]:
        """Return the runs of a stage that can be executed at once, those before them first."""
        longest = max((len(sweep.levels) for sweep in self.sweeps[title]), default=0)
        return [
            unique(run for sweep in self.sweeps[title] if level < len(sweep.levels) for run in sweep.levels[level])
            for level in range(longest)
        ]

    def check_validation(self, title: str) -> None:
        """Check that a stage that chooses has validation images that are not trained on.

        Raises:
            ConfigError: a run of it has none.
        """
        for run in self.runs_of(title):
            if run.composed and not run.composed.data.params.validation:
                raise ConfigError(
                    f"data.validation is false, and stage {title} chooses by {self.stage(title).choose}: the "
                    "validation images are trained on then; only stages that do not choose may have it, in their "
                    "overrides",
                    code="no_validation",
                    key="data.validation",
                )

    def stage(self, title: str) -> StageConfig:
        """Return the configuration of a stage."""
        return self.study.config.stages[title]

    def plan_run(self, overrides: tuple[str, ...]) -> PlannedRun:
        """Return the run of some overrides, the same object each time."""
        if overrides not in self._planned:
            self._planned[overrides] = plan_run(overrides, self.study.compose)
        return self._planned[overrides]

    def runs_of(self, title: str) -> list[PlannedRun]:
        """Return the runs of a stage, each once, in its order."""
        return unique(run for sweep in self.sweeps[title] for run in sweep.runs)

    def all_runs(self) -> list[PlannedRun]:
        """Return the runs of the stages to execute, each once."""
        return unique(run for title in self.study.stages for run in self.runs_of(title))

    def count_waiting(self, title: str | None = None) -> int:
        """Return the number of runs of a stage, or of all, that wait for winners which are not chosen yet."""
        stages = [self.stage(title)] if title else [self.stage(title) for title in self.study.stages]
        return sum(self.study.count_waiting(stage) for stage in stages if not self.winners.get(stage.winners_of or ""))

    def groups(self, runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
        """Return those of some runs that can start and are not complete, in the groups that train together."""
        return group_planned([run for run in runs if not run.error and not is_done(run)], self.max_learners)

    def choose_winners(self, title: str) -> None:
        """Choose the winners of a stage among its complete runs."""
        stage = self.stage(title)
        assert stage.choose is not None
        candidates: dict[tuple[Any, ...], Candidate] = {}
        for run in self.runs_of(title):
            if run.error:
                continue
            pair, varied = pair_of(run), varied_overrides(run, stage)
            subject = (pair, run.config.student.name, run.config.method.name, varied)
            if subject not in candidates:
                candidates[subject] = Candidate(pair, varied, [], is_default=self.is_default(run, stage))
            candidate = candidates[subject]
            if summary := summary_of(run):
                candidate.summaries.append(summary)
                candidate.paths.append(run.directory.path)
        self.winners[title] = choose(list(candidates.values()), stage.choose)

    def is_default(self, run: PlannedRun, stage: StageConfig) -> bool | None:
        """Return whether a run is the one without the grid of its method; None where that one cannot be planned."""
        grid = stage.baseline if pair_of(run) is None else stage.methods.get(run.config.method.name)
        plain = self.plan_run(tuple(text for text in run.overrides if key_of(text) not in (grid or {})))
        return None if plain.error else plain.key == run.key

    def choose_first(self, title: str) -> None:
        """Put the first setting of each pair and method in the place of the winners of a stage."""
        stage, first = self.stage(title), dict[tuple[Any, ...], Winner]()
        for run in self.runs_of(title):
            if not run.error:
                pair, config = pair_of(run), run.config
                teacher = config.teacher.model.name if config.teacher else None
                varied = list(varied_overrides(run, stage))
                subject = (pair, config.student.name, config.method.name)
                first.setdefault(subject, unrivalled(pair, config.student.name, teacher, config.method.name, varied))
        self.winners[title] = list(first.values())

    def without_winner(self, title: str) -> list[str]:
        """Return the pairs (for baselines the students) with the methods for which a stage has no winner, in words."""
        stage = self.stage(title)
        if stage.winners_of is None:
            return []
        selection = self.stage(stage.winners_of)
        methods = stage.winning_methods or list(selection.methods)
        wanted = [(pair, method) for pair in stage.pairs for method in methods]
        if self.study.selects_baseline(selection):
            wanted += [(student, BASELINE_METHOD) for student in stage.students]
        chosen = {(winner.pair or winner.student, winner.method) for winner in self.winners.get(stage.winners_of, [])}
        return [f"{subject} by {method}" for subject, method in wanted if (subject, method) not in chosen]

    def check_selections(self) -> None:
        """Check that each stage finds its winners: chosen by an earlier command, or by an earlier stage of this one.

        Raises:
            ConfigError: a selection is not carried out yet.
        """
        for title in self.study.stages:
            selection = self.stage(title).winners_of
            if selection and selection not in self.study.stages and selection not in self.winners:
                runs = self.runs_of(selection)
                left = sum(not is_done(run) for run in runs)
                raise ConfigError(
                    f"stages=[{', '.join(self.study.stages)}]: {title} trains the winners of {selection}, which are "
                    f"not chosen yet: {left} of its {len(runs)} runs are not complete; add {selection} to stages",
                    code="mismatch",
                    key="stages",
                )

    def reporting_seeds(self, title: str) -> list[int]:
        """Return the seeds of the stages that run the winners of a stage."""
        stages = self.study.config.stages.values()
        return sorted({seed for stage in stages if stage.winners_of == title for seed in stage.seeds})

    def result_paths(self) -> list[Path]:
        """Return the complete runs of the stages that do not choose: the material of a report."""
        return list(dict.fromkeys(run.directory.path for run in self.reporting_runs() if is_done(run)))

    def failed_paths(self) -> list[Path]:
        """Return the runs of these stages that failed, which a report names."""
        found = [run.directory for run in self.reporting_runs() if not run.error]
        return list(dict.fromkeys(directory.path for directory in found if directory.has_failed()))

    def reporting_runs(self) -> list[PlannedRun]:
        """Return the runs of the stages that do not choose."""
        return [run for title in self.study.stages if not self.stage(title).choose for run in self.runs_of(title)]


def unique(runs: Any) -> list[PlannedRun]:
    """Return planned runs without those that are the same run as an earlier one."""
    return list({run.key or run.title: run for run in reversed(list(runs))}.values())[::-1]


def pair_of(run: PlannedRun) -> str | None:
    """Return the pair that a run's overrides choose, or None."""
    return next((str(value_of(text)) for text in run.overrides if key_of(text) == "pair"), None)


def varied_overrides(run: PlannedRun, stage: StageConfig) -> tuple[str, ...]:
    """Return the overrides by which the candidates of a pair and method differ."""
    grids = [*stage.methods.values(), stage.baseline]
    keys = {key for grid in grids for key in grid or {}}
    return tuple(text for text in run.overrides if key_of(text) in keys)
