"""A small study, and a launcher that completes its runs without training."""

import dataclasses
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kdbench.rundir.summary import RunSummary
from kdbench.runner.run import resolve_run
from kdbench.study.execute import StudyExecution
from kdbench.study.plan import StudyPlan
from kdbench.study.read import read_study
from kdbench.sweep import MAX_LEARNERS
from kdbench.sweep.plan import JobResult, PlannedRun
from kdbench.system.device import device_name
from tests.conftest import composed_once

TINY = """
question: Does it work?
overrides:
  [data=shapes, data.num_train=64, data.num_val=50, data.num_test=60, recipe=smoke, runtime.device=cpu,
   runtime.precision=fp32]
selection_seeds: [9]
final_seeds: [0, 1]
teacher_seeds: [0]
select_baseline: false
stages:
  teachers: {teachers: [resnet20], seeds: "${teacher_seeds}"}
  selection:
    pairs: [resnet20_resnet8]
    methods:
      logit: {method.temperature: [2, 4]}
    baseline: {recipe.lr: [0.1, 0.2]}
    seeds: ${selection_seeds}
    choose: best_val_acc
  finals:
    students: [resnet8]
    pairs: [resnet20_resnet8]
    winners_of: selection
    seeds: ${final_seeds}
"""


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of options with one small study, tiny."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "tiny.yaml").write_text(TINY)
    return folder


class Trainer:
    """Takes the place of the launcher: completes runs at once, by rules of the test."""

    def __init__(self) -> None:
        self.launched: list[list[str]] = []
        """Titles of the runs of each group."""
        self.trained: list[str] = []
        self.accuracy: Callable[[RunSummary], float] = lambda _: 0.5
        self.fails: Callable[[str], bool] = lambda _: False
        self.skips: Callable[[str], bool] = lambda _: False
        self.interrupt_after: int | None = None

    def __call__(self, runs: Sequence[PlannedRun], first: int) -> list[JobResult]:
        self.launched.append([run.title for run in runs])
        return [self.run(run) for run in runs]

    def run(self, run: PlannedRun) -> JobResult:
        if self.interrupt_after is not None and len(self.trained) >= self.interrupt_after:
            signal.raise_signal(signal.SIGINT)
        if self.skips(run.title):
            return JobResult("skipped", error="held by another process")
        if self.fails(run.title):
            return JobResult("failed", error="it fails")
        self.trained.append(run.title)
        return JobResult("complete", run=str(self.complete(run)))

    def complete(self, run: PlannedRun) -> Path:
        config, directory = resolve_run(run.config)
        directory.path.mkdir(parents=True)
        summary = RunSummary(
            run_key=directory.key,
            status="complete",
            student=config.student.name,
            teacher=config.teacher.model.name if config.teacher else None,
            method=config.method.name,
            method_params=dataclasses.asdict(config.method.params),
            recipe={"lr": config.recipe.lr},
            seed=config.seed,
            epochs=config.recipe.epochs,
            num_train=config.data.params.num_train,
            num_val=1000,
            macs=1_000_000,
            train_seconds=60.0,
            test_acc_best=0.0,
            environment={"device": device_name("cpu")},
        )
        directory.write_summary(dataclasses.replace(summary, best_val_acc=self.accuracy(summary)))
        return directory.path


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


Tiny = Callable[..., StudyExecution]


@pytest.fixture
def tiny(studies: Path, trainer: Trainer) -> Tiny:
    """Read and plan the small study, its runs composed once for all tests."""

    def make(*arguments: str, max_learners: int = MAX_LEARNERS) -> StudyExecution:
        study = read_study(["study=tiny", "output_root=out", *arguments], studies)
        study = dataclasses.replace(study, composer=lambda overrides, _: composed_once(*overrides))
        return StudyExecution(StudyPlan(study, max_learners), trainer)

    return make


def better_at_4(summary: RunSummary) -> float:
    return 0.62 if (summary.method_params or {}).get("temperature") == 4 else 0.6
