"""Runs that two processes train, as torchrun starts them: checks, and messages before the first step."""

from pathlib import Path

import pytest

import kdbench
from kdbench.errors import RunError
from kdbench.runner.build import check_parts
from kdbench.runner.policy import groups_to_retry
from kdbench.runner.run import RunResult, resolve_run
from kdbench.system import world
from kdbench.system.world import World
from tests.conftest import complete
from tests.ranks import Ranks
from tests.train.test_parallel import SMOOTH

RUN = (
    "data=shapes", "recipe=smoke", "data.num_train=64", "data.num_val=20", "data.num_test=20", "recipe.batch_size=16",
    "runtime.precision=fp32", "runtime.device=cpu", "runtime.threads=1", "output_root=out",
)  # fmt: skip
TAUGHT = (*RUN, "teacher.recipe.batch_size=16")


def option(folder: Path, group: str, name: str, text: str) -> Path:
    """Write an option of a group, and return the config folder."""
    file = folder / "conf" / group / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return folder / "conf"


@pytest.mark.parametrize("problem", [None, "process 0 of 2 ended: out of memory"])
def test_a_group_without_memory_is_not_tried_again_once_the_other_processes_have_ended(small, monkeypatch, problem):
    monkeypatch.setattr(world, "_world", World(0, 2, problem=problem))
    short = RunResult(small(), None, RunError("lower recipe.batch_size", code="out_of_memory", key="recipe.batch_size"))
    assert groups_to_retry([short, short], 1) == ([] if problem else [[0], [1]])


def test_a_teacher_is_checked_for_exact_training_whatever_its_students_have(small, monkeypatch):
    monkeypatch.setattr(world, "_world", World(0, 2))
    sizes = ("data.num_train=34", "recipe.batch_size=34", "teacher.recipe.batch_size=16")  # 2 images in the last step
    check_parts(resolve_run(small("method=logit", "runtime.parallel=local", *sizes))[0])


def test_the_processes_connect_before_any_work(kdbench, monkeypatch):
    def fail(url: str) -> None:
        raise RuntimeError("no route to host")

    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "far.example", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world, "_world", World())
    monkeypatch.setattr(world, "rendezvous", fail)
    finished = kdbench("student=none_such")
    assert finished.code == 1
    assert "process 0 of 2 cannot reach the others (no route to host)" in finished.err


@pytest.mark.slow
def test_code_beside_the_config_folder_is_found_by_every_process(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "own_method.py").write_text(
        "from dataclasses import dataclass\n"
        "from kdbench.methods import CrossEntropy\n"
        "class Own(CrossEntropy):\n"
        "    @dataclass\n"
        "    class Config:\n"
        "        weight: float = 1.0\n"
    )
    conf = option(tmp_path / "elsewhere", "method", "own", "_target_: own_method.Own\nweight: 2.0\n")
    ranks = Ranks(
        tmp_path / "work", 2, "--config-dir", str(conf), *RUN, "student=resnet8", "teacher=none", "method=own"
    )
    assert ranks.finish() == [0, 0], ranks.output()
    assert "processes: 2" in ranks.output()


@pytest.mark.slow
def test_a_run_that_another_process_holds_leaves_its_group_in_every_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conf = option(tmp_path, "model", "smooth", SMOOTH)
    group = (*TAUGHT, "student=smooth", "teacher=smooth", "on_busy=skip")
    _, directory = resolve_run(kdbench.compose([*group, "method=feature"], conf))
    lock = directory.lock("run")
    lock.acquire(wait=False)
    try:
        words = ("--config-dir", str(conf), "-m", "hydra/launcher=lockstep", *group, "method=logit,feature")
        ranks = Ranks(tmp_path, 2, *words)
        assert ranks.finish() == [75, 0], ranks.output()
    finally:
        lock.release()
    assert len(list(tmp_path.glob("out/runs/*_logit_*/summary.json"))) == 1


@pytest.mark.slow
def test_a_signal_while_a_process_builds_its_learners_stops_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conf = option(tmp_path, "model", "smooth", SMOOTH.replace("Smooth", "StoppingOthers"))
    group = (*TAUGHT, "student=smooth", "teacher=smooth", "teacher.cache=off")
    complete(kdbench.compose([*group, "method=logit"], conf))  # so that the teacher is there
    ranks = Ranks(tmp_path, 2, "--config-dir", str(conf), *group, "method=feature")
    assert ranks.finish() == [75, 0], ranks.output()
    assert "kdbench: stopped by SIGUSR1" in ranks.output()
