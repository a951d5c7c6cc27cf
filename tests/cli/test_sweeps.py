"""Sweeps as a user types them, planned without training: which runs there are, and which are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig, compose
from kdbench.errors import RunError
from kdbench.runner.run import RunResult
from kdbench.sweep.plan import PlannedRun
from tests.conftest import SMALL, Finished, rest_wide
from tests.errors import recorded_errors, reported

BASE = tuple(o for o in SMALL if not o.startswith(("student=", "teacher=")))
Planned = Callable[..., list[PlannedRun]]


@pytest.fixture
def planned(kdbench: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Return the runs that a command plans, none of them carried out."""

    def make(*arguments: str) -> list[PlannedRun]:
        runs: list[PlannedRun] = []
        monkeypatch.setattr("kdbench.sweep.execute.execute", lambda planned, *_, **__: runs.extend(planned))
        result = kdbench(*arguments)
        assert (result.code, result.err) == (0, "")
        return runs

    return make


def errors_of(runs: list[PlannedRun]) -> list[tuple[str, str] | None]:
    return [(run.error.code, run.error.key) if run.error else None for run in runs]


def test_a_key_of_the_networks_of_a_sweep_is_that_of_each(planned: Planned) -> None:
    runs = planned("-m", *BASE, "student=resnet8,resnet14", "method=ce", "student.widths=[8,8,16,32]")
    assert errors_of(runs) == [None, None]
    assert [run.config.student.arguments["widths"] for run in runs] == [[8, 8, 16, 32]] * 2


@pytest.mark.parametrize("given", rest_wide(["method.stages=[layer1]", "+method.stages=[layer1]"]))
def test_a_key_that_one_method_lacks_refuses_the_run_of_that_method_only(planned: Planned, given: str) -> None:
    runs = planned("-m", *BASE, "student=resnet8", "teacher=resnet20", "method=feature,ce", given)
    assert errors_of(runs) == [None, ("unknown_key", "method.stages")]
    assert runs[0].config.method.params.stages == ["layer1"]
    assert "a command of their own" in str(runs[1].error)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a folder of options with experiments."""
    files = {
        "sweep": "hydra: {mode: MULTIRUN, sweeper: {params: {method: 'feature,logit', student.depth: '8,14'}}}\n",
        "nets": "defaults: [override /student: resnet8, override /teacher: resnet20]\n",
        "pair": "defaults: [override /pair: resnet20_resnet8]\n",
        "key": "pair: resnet20_resnet8\n",
    }
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "own" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{content}")
    return tmp_path / "own"


@pytest.mark.slow
def test_keys_of_a_sweep_in_an_experiment_or_in_the_parameters_of_the_sweeper_are_those_of_its_runs(
    planned: Planned, own: Path
) -> None:
    given = ("--config-dir", str(own), *BASE, "student=resnet8", "teacher=resnet20")
    runs = planned(*given, "experiment=sweep", "method.stages=[layer2]", "student.widths=[8,8,16,32]")
    assert [run.config.student.arguments["depth"] for run in runs[:2]] == [8, 14]
    assert errors_of(runs) == [None, None, *[("unknown_key", "method.stages")] * 2]
    runs = planned("-m", *given, "+hydra.sweeper.params={method: 'feature,ce'}", "method.stages=[layer2]")
    assert errors_of(runs) == [None, ("unknown_key", "method.stages")]


@pytest.mark.parametrize("given", [("student=resnet8", "seed=0,1"), ("student=resnet8,resnet14",)])
def test_a_key_that_no_run_of_a_sweep_can_have_is_one_error_before_the_sweep(
    kdbench: Callable[..., Finished], given: tuple[str, ...]
) -> None:
    with recorded_errors() as made:
        result = kdbench("-m", *BASE, *given, "student.wdths=[8,8,16,32]")
    assert (result.code, reported(made, result.err)) == (2, [("unknown_key", "student.wdths")])


@pytest.mark.parametrize("experiment", rest_wide(["nets", "pair"]))
def test_a_pair_of_the_command_line_replaces_the_networks_of_an_experiment(
    planned: Planned, own: Path, experiment: str
) -> None:
    given = ["pair=resnet56_resnet20,resnet32_resnet8", f"experiment={experiment}"]
    runs = planned("-m", "--config-dir", str(own), *given)
    chosen = [(run.config.student.name, run.config.teacher and run.config.teacher.model.name) for run in runs]
    assert chosen == [("resnet20", "resnet56"), ("resnet8", "resnet32")]
    config = compose(["pair=resnet56_resnet20", f"experiment={experiment}", "student=resnet14"], own)
    assert (config.student.name, config.teacher and config.teacher.model.name) == ("resnet14", "resnet56")


@pytest.mark.slow
def test_experiments_are_runs_of_a_sweep_unless_they_are_sweeps_themselves(planned: Planned, own: Path) -> None:
    runs = planned("-m", "--config-dir", str(own), "experiment=nets,sweep,key", "seed=0,1")
    assert errors_of(runs) == [None] * 2 + [("usage", "experiment")] * 2 + [("invalid_option_file", "pair")] * 2
    runs = planned("experiment=quickstart", "seed=0,1")
    assert [(run.config.method.name, run.config.seed) for run in runs] == [
        (method, seed) for method in ("ce", "logit", "feature") for seed in (0, 1)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "lockstep"])
def test_the_number_of_a_run_in_its_values_is_its_place_in_the_sweep_whichever_launcher_starts_it(
    kdbench: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    started: list[RunConfig] = []

    def fail(configs: list[RunConfig], *_: Any, **__: Any) -> list[RunResult]:
        started.extend(configs)
        return [RunResult(config, None, RunError("not trained", code="x")) for config in configs]

    monkeypatch.setattr("kdbench.sweep.execute.run_with_retries", fail)
    given = ["student=resnet8", "method=ce", "recipe.lr=-1,0.1,0.2", "output_root=out/${hydra:job.num}"]
    result = kdbench("-m", f"hydra/launcher={launcher}", *BASE, *given, "init_seed='${hydra:job.num}'")
    assert result.code == 1
    assert [(config.recipe.lr, config.output_root, config.init_seed) for config in started] == [
        (0.1, "out/1", 1), (0.2, "out/2", 2),
    ]  # fmt: skip
    assert len(list(Path("out/1/sweeps").iterdir())) == 1


def test_values_of_hydra_are_those_of_the_run(planned: Planned, kdbench: Callable[..., Finished]) -> None:
    assert compose(["method=ce", "output_root='${hydra:runtime.choices.method}'"]).output_root == "ce"
    runs = planned("-m", "method=ce,logit", "output_root='out/${hydra:runtime.choices.method}'")
    assert [run.config.output_root for run in runs] == ["out/ce", "out/logit"]
    with recorded_errors() as made:
        result = kdbench("output_root=out/${hydra:job.num}")
    assert (result.code, reported(made, result.err)) == (2, [("interpolation", "output_root")])
    assert "-m" in result.err


def test_a_sweep_has_one_report(kdbench: Callable[..., Finished]) -> None:
    with recorded_errors() as made:
        result = kdbench("-m", *BASE, "student=resnet8", "method=ce", "report=a,b")
    assert (result.code, reported(made, result.err)) == (2, [("several_options", "report")])
    assert not list(Path().iterdir())
