"""Several processes that train one run, disturbed, resumed, and beside one process: by torchrun, and forked."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdbench
from kdbench.config import RunConfig
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import resolve_run
from tests.conftest import complete
from tests.ranks import SECONDS, Ranks
from tests.train.test_parallel import ROOT, SMOOTH

pytestmark = pytest.mark.slow

RUN = (
    "student=smooth", "data=shapes", "recipe=smoke", "data.num_train=320", "data.num_val=40", "data.num_test=40",
    "recipe.batch_size=32", "recipe.lr=0.05", "runtime.precision=fp32", "runtime.device=cpu", "runtime.threads=1",
    "runtime.channels_last=false",
)  # fmt: skip
UNTAUGHT = (*RUN, "teacher=none")
LONG = (*UNTAUGHT, "method=signalling", "recipe.epochs=4")
"""A run of 40 steps; in the twelfth, the second process may receive a signal."""


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the options of these tests."""
    folder = tmp_path_factory.mktemp("options") / "conf"
    dropout = SMOOTH.replace("smooth.Smooth", "smooth.WithDropout")
    options = {
        "model/smooth": SMOOTH,
        "model/dropout": dropout,
        "method/failing": "_target_: tests.train.smooth.Failing\n",
        "method/signalling": "_target_: tests.train.smooth.Signalling\n",
    }
    for name, text in options.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory of every process."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(conf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output root of the long run, trained in one process."""
    root = tmp_path_factory.mktemp("one")
    complete(kdbench.compose([*LONG, f"output_root={root}"], conf))
    return root


def torchrun(conf: Path, number: signal.Signals, *words: str) -> tuple[int, str]:
    """Return exit code and lines of kdbench in two processes of torchrun, of which the second receives a signal."""
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "kdbench"]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "KDBENCH_TEST_SIGNAL": str(int(number))}
    done = subprocess.run(
        [*program, "--config-dir", str(conf), *words], env=os.environ | own, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
    )  # fmt: skip
    return done.returncode, done.stdout


def forked(conf: Path, *words: str) -> tuple[list[int], str]:
    """Return the exit codes of two processes, and the lines of the first."""
    ranks = Ranks(Path.cwd(), 2, "--config-dir", str(conf), *words)
    return ranks.finish(), ranks.output()


def composed(conf: Path, *words: str) -> RunConfig:
    return kdbench.compose(list(words), conf)


def check_same_weights(first: Path, second: Path) -> None:
    weights = []
    for root in (first, second):
        (run,) = (root / "runs").glob("shapes_smooth_*")
        state = load_file(run / "best.safetensors")
        weights.append(torch.cat([value.double().reshape(-1) for _, value in sorted(state.items())]))
    assert float((weights[0] - weights[1]).norm() / weights[0].norm()) < 1e-5


def test_a_signal_at_any_process_stops_all_and_one_process_continues(conf: Path, undisturbed: Path) -> None:
    words = (*LONG, "checkpoint.every_minutes=null", "output_root=two")
    code, stopped = torchrun(conf, signal.SIGUSR1, *words)
    assert code == 1
    assert "SIGUSR1: stopped after 1 of 4 epochs and 2 steps" in stopped, stopped
    assert "kdbench: stopped by SIGUSR1; the same command continues" in stopped
    assert "exitcode  : 75" in stopped  # in torchrun's own words
    assert stopped.count("epoch 1/4: loss") == 1  # rank 0 alone writes
    directory = complete(composed(conf, *words))
    assert "resuming from last.ckpt" in directory.log.read_text()
    check_same_weights(undisturbed, Path("two"))
    assert json.loads((directory.path / "summary.json").read_text())["environment"]["processes"] == 1


def test_a_killed_process_ends_the_others_and_the_same_command_continues(conf: Path, undisturbed: Path) -> None:
    words = (*LONG, "checkpoint.every_epochs=1", "output_root=two")
    code, killed = torchrun(conf, signal.SIGKILL, *words)
    assert code == 1
    assert "a process has ended" in killed, killed
    codes, resumed = forked(conf, *words)
    assert codes == [0, 0], resumed
    assert "resuming from last.ckpt" in resumed
    check_same_weights(undisturbed, Path("two"))


def test_a_sweep_in_lockstep_with_a_teacher_is_that_of_one_process(conf: Path) -> None:
    group = (
        *RUN, "teacher=smooth", "teacher.width=16", "teacher.recipe.batch_size=32", "teacher.recipe.lr=0.05",
        "recipe.epochs=2",
    )  # fmt: skip
    results = run_with_retries(
        [composed(conf, *group, f"method={method}", "output_root=by1") for method in ("logit", "feature")],
        ["logit", "feature"],
    )
    assert [result.error for result in results] == [None, None]
    codes, printed = forked(conf, "-m", "hydra/launcher=lockstep", *group, "method=logit,feature", "output_root=by2")
    assert codes == [0, 0], printed
    runs = sorted(Path("by1", "runs").iterdir())
    assert len(runs) == 3
    for one in runs:
        two = Path("by2", "runs", one.name)
        assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in two.iterdir())
        first, second = (load_file(run / "best.safetensors") for run in (one, two))
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5)


def test_local_makes_another_run_for_each_number_of_processes(conf: Path) -> None:
    words = (*UNTAUGHT, "method=ce", "student=dropout", "output_root=out")
    codes, printed = forked(conf, *words, "runtime.parallel=local")
    assert codes == [0, 0], printed
    (two,) = Path("out", "runs").iterdir()
    assert "processes: 2" in (two / "config.yaml").read_text()
    runs = [composed(conf, *words, f"runtime.parallel={parallel}") for parallel in ("local", "exact")]
    local, exact = (resolve_run(run)[1].path.name for run in runs)
    assert local == exact  # of one process
    assert local != two.name


def test_a_network_that_several_processes_cannot_train_is_refused_in_one_line(conf: Path) -> None:
    codes, printed = forked(conf, *UNTAUGHT, "method=ce", "student=dropout")
    assert codes == [1, 0]
    (line,) = (line for line in printed.splitlines() if line.startswith("kdbench: error:"))
    assert "runtime.parallel=exact: 2 processes compute other logits than one" in line


def test_a_run_that_fails_in_every_process_does_not_end_the_sweep(conf: Path) -> None:
    codes, printed = forked(conf, "-m", *UNTAUGHT, "method=failing,ce", "output_root=out")
    assert codes == [1, 0]
    assert "1 of 2 jobs failed" in printed
    assert printed.count("ValueError: a bug of the third step") == 1
    assert "done: test accuracy" in printed
    assert len(list(Path("out", "runs").glob("*_ce_*/summary.json"))) == 1
