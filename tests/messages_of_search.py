"""Calls with a user's mistakes in a search; tests/test_messages.py holds their messages."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kdbench.config import compose
from kdbench.config.sections import TrialConfig
from kdbench.report.command import report
from kdbench.runner.pruning import TrialReporter
from kdbench.runner.trials import build_pruner, storage_error
from kdbench.search import settings
from kdbench.search.command import end, search
from kdbench.search.options import Options
from kdbench.search.results import write_results
from kdbench.search.search import Search
from kdbench.search.space import Space, read_space
from kdbench.search.study import Definition, check_root, open_arms
from kdbench.sweep.plan import JobResult
from tests.conftest import SMALL, composed_once, composed_options

LR = "recipe.lr=tag(log,interval(1e-3,1e-1))"
KEYS: dict[str, Any] = {
    "n_trials": 2, "n_jobs": 1, "per": [], "study_name": "s", "storage": None, "direction": None,
    "defaults_first": True, "max_failures": 10, "sampler": {"name": "random", "seed": 0}, "pruner": {"name": "none"},
    "params": {},
}  # fmt: skip
MEDIAN = {"pruner": {"name": "median", "n_startup_trials": 5}}


class Composer:
    """Composes as Hydra's sweeper does, and launches nothing."""

    loader = None

    def check_launcher(self) -> None:
        """Accept it."""

    def compose_job(self, number: int, overrides: tuple[str, ...]) -> Any:
        return compose(list(overrides)) if any("=a" in o for o in overrides) else composed_once(*overrides)

    def node(self, overrides: tuple[str, ...]) -> Any:
        return composed_options(overrides)[0]

    def launch_planned(self, runs: Sequence[Any]) -> Any:
        raise AssertionError


def searched(*overrides: str, **keys: Any) -> None:
    """Start a search that is refused."""
    search(Composer(), KEYS | keys, [*SMALL, "teacher=none", "method=ce", *overrides])


def without_optuna() -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(settings.importlib.util, "find_spec", lambda name: None)
        settings.check_optuna()


def without_cmaes() -> None:
    real = settings.importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(settings.importlib.util, "find_spec", lambda name: None if name == "cmaes" else real(name))
        settings.build_sampler({"name": "cmaes", "seed": 0}, 0)


def without_driver() -> None:
    raise storage_error("postgresql://me:word@host/base", ModuleNotFoundError(name="psycopg2"))


def definition(**changes: Any) -> Definition:
    plain = {
        "objectives": ["val_acc"], "directions": ["maximize"], "space": {"recipe.lr": "choice(1,2)"},
        "fixed": ["data=shapes"], "per": [], "base": "0",
    }  # fmt: skip
    return Definition(**plain | changes)


def opened(*definitions: Definition, name: str = "s", file: str = "searches.db", foreign: bool = False) -> None:
    """Open searches of one name in one storage, one after the other."""
    import optuna

    from kdbench.runner import trials

    url = f"sqlite:///{Path.cwd() / file}"
    space = read_space(["recipe.lr=1,2"])
    options = Options(space, lambda _: None, lambda overrides: composed_options(overrides)[0])
    with trials.closing_storages():
        if foreign:
            study = optuna.create_study(storage=trials.open_storage(url), study_name=name, load_if_exists=True)
            study.add_trial(optuna.trial.create_trial(value=1.0))
        for one in definitions:
            open_arms(name, url, settings.read_keys(KEYS), options, one, 1)


def stub(**changes: Any) -> Search:
    arm = SimpleNamespace(
        running=lambda: [SimpleNamespace(number=3, user_attrs={})], left_alone=set(), finished=list, label="",
        set_attrs=lambda *_: None, attributes=lambda _: {}, is_held=lambda *_: True,
    )  # fmt: skip
    plain = {
        "name": "s", "url": "sqlite:///s.db", "keys": settings.read_keys(KEYS), "objectives": ["val_acc"],
        "arms": [arm], "members": SimpleNamespace(alone=nullcontext, renew=lambda: None, own="own"), "compose": None,
        "launch": None, "waits": False,
    }  # fmt: skip
    return Search(**plain | changes)


def broken() -> Any:
    raise sqlite3.OperationalError("disk I/O error")


def failed_storage() -> None:
    stub(arms=[SimpleNamespace(running=broken)]).work()


def without_objective() -> None:
    work = stub()
    trial = SimpleNamespace(arm=work.arms[0], number=0, name="trial 0")
    work.tell(trial, None, JobResult("complete", run="x"))


def unwritable_results() -> None:
    Path("blocked").touch()
    trial = SimpleNamespace(user_attrs={"status": "complete"}, intermediate_values={}, number=0, params={})
    arm = SimpleNamespace(trials=lambda: [trial], label="", options=Options(Space(()), lambda _: None, lambda _: None))
    write_results(stub(arms=[arm]), Path("blocked"), composed_once(*SMALL, "teacher=none", "method=ce"), None)


def left_over_trial() -> None:
    end([SimpleNamespace(left_alone={1}, running=lambda: [SimpleNamespace(number=1)], finished=list)])


def pruned() -> None:
    learner: Any = SimpleNamespace(epoch=2, recipe=SimpleNamespace(epochs=9), rows=[{"epoch": 2, "val_acc": 0.25}])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrialReporter, "should_prune", lambda _: True)
        config = TrialConfig("sqlite:///s.db", "s", 0, {"name": "median"})
        TrialReporter(config, learner, SimpleNamespace(save=lambda: None)).report()


def reported(path: str, content: str | None = None) -> None:
    """Report runs with a search in a file."""
    if content is not None:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(content)
    report(["runs", "--out", "report", "--search", path, "--no-figures"])


def reported_beside_right(student: str, dataset: str) -> None:
    """Report a baseline of resnet8 on cifar10 with a search of some student and data set."""
    folder = Path("searches/s")
    folder.mkdir(parents=True, exist_ok=True)
    columns = "student,teacher,method,role,status,val_acc,default,run_key"
    (folder / "trials.csv").write_text(f"{columns}\n{student},,ce,baseline,complete,60,True,x\n")
    winner = {"student": student, "teacher": None, "method": "ce", "data": {"dataset": dataset}, "candidates": []}
    others = {"method_params": {}, "recipe": {}, "overrides": [], "margin": None, "noise": None}
    content = {"study": "s", "search": {"sampler": "tpe"}, "winners": [winner | others]}
    (folder / "best.yaml").write_text(yaml.safe_dump(content))
    report(["runs/right", "--out", "report", "--search", str(folder), "--no-figures"])


SEARCH_CASES: list[Callable[[], object]] = [
    without_optuna, without_cmaes, lambda: searched(), lambda: searched("recipe.lr=interval(1,0.1)"),
    lambda: searched("recipe.lr=tag(log,interval(0,1))"), lambda: searched("recipe.lr=tag(even,interval(1,2))"),
    lambda: searched("recipe.epochs=tag(log,range(1,9,2))"), lambda: searched("recipe.epochs=range(3,3)"),
    lambda: searched("recipe.epochs=interval(1,3)"), lambda: searched("method.nothing=1,2"),
    lambda: searched("seed=0,1"), lambda: searched("init_seed=range(0,3)"),
    lambda: searched("method=logit", "teacher=resnet8", "teacher.seed=0,1"), lambda: searched("data=shapes,cifar10"),
    lambda: searched("data.num_val=40,50"), lambda: searched("runtime.threads=1,2"),
    lambda: searched("checkpoint.every_minutes=interval(1,2)"), lambda: searched(LR, "data.validation=false"),
    lambda: searched(LR, n_trials=0), lambda: searched(LR, n_jobs=0), lambda: searched(LR, study_name="a b"),
    lambda: searched(LR, per=["student"]), lambda: searched(LR, per=["methods"]),
    lambda: searched(LR, per=4), lambda: searched(LR, direction="up"),
    lambda: searched(LR, sampler={"name": "best"}), lambda: searched(LR, sampler={"name": "tpe", "seed": -1}),
    lambda: searched(LR, sampler={"name": "tpe", "seed": 0, "n_startup_trials": "many", "x": 1}),
    lambda: searched(LR, pruner="median"), lambda: searched(LR, pruner={"name": "best"}),
    lambda: build_pruner({"name": "median", "n_startup_trials": -1}, 3),
    lambda: searched(LR, sampler={"name": "random", "seed": 0, "n_startup_trials": 1}),
    lambda: build_pruner({"name": "median", "n_warmup_steps": "abc"}, 3),
    lambda: build_pruner({"name": "threshold", "lower": None}, 3), without_driver,
    lambda: searched(LR, "objectives=[val_acc,test_acc]"),
    lambda: searched(LR, "objectives=[val_acc,seconds]", **MEDIAN),
    lambda: searched(LR, "objectives=[seconds]", **MEDIAN),
    lambda: searched(LR, "objectives=[val_acc,seconds]", direction="maximize"),
    lambda: searched(LR, storage="/proc/nowhere/search.db"), lambda: searched(LR, storage="nothing://host/base"),
    lambda: (Path("text.db").write_text("no database"), searched(LR, storage="text.db")),
    lambda: opened(definition(), definition(space={"recipe.lr": "choice(1,3)"}, fixed=["data=svhn"])),
    lambda: opened(definition(), definition(base="1")), lambda: opened(definition(), name="foreign", foreign=True),
    lambda: stub(problems=10).work(), lambda: stub().others_work(), failed_storage, without_objective,
    unwritable_results, pruned, left_over_trial,
    lambda: end([SimpleNamespace(left_alone=set(), running=list, finished=list)]),
    lambda: reported("nowhere"), lambda: reported("searches/s.db"),
    lambda: reported("searches/trials.csv", "a,b\n1,2\n"),
    lambda: reported("searches/trials.csv", "status,val_acc\nfailed,\n"),
    lambda: reported_beside_right("resnet14", "cifar10"), lambda: reported_beside_right("resnet8", "cifar100"),
    lambda: searched(LR, sampler={"name": "grid"}),
    lambda: searched("recipe.epochs=int(interval(1,30000))", sampler={"name": "grid"}),
    lambda: check_root(SimpleNamespace(study_name="s", user_attrs={"output_root": str(Path.cwd())}), Path("other")),
]  # fmt: skip
"""Calls, each of which ends in an error."""
