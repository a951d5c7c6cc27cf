"""The launcher for Ray: its keys, how groups are counted and started again, and sweeps on a cluster of two nodes."""

import json
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from ray import exceptions

from hydra_plugins.kdbench_ray import RayLauncher
from kdbench.config import CONF_DIR, RunConfig
from kdbench.errors import ConfigError
from kdbench.rundir.summary import Status
from kdbench.sweep import ray_cluster, ray_tasks
from kdbench.sweep.overrides import expand
from kdbench.sweep.plan import JobResult, PlannedRun, plan
from kdbench.sweep.ray_cluster import Cluster, GroupOptions, check_reachable, lacking, refusal, request, room
from kdbench.sweep.ray_tasks import RETRY_SECONDS, Attempt, RayTasks, task_name
from tests.sweep.ray_nodes import TwoNodes, environment

KEYS = CONF_DIR / "hydra" / "launcher" / "ray.yaml"
RUNS = (
    "student=resnet8", "student.widths=[8,8,16,16]", "teacher=resnet8", "teacher.widths=[8,8,16,16]", "teacher.seed=9",
    "data=shapes", "data.num_train=64", "data.num_val=20", "data.num_test=20", "recipe=smoke", "recipe.batch_size=16",
    "recipe.epochs=16", "teacher.recipe.batch_size=16", "runtime.device=cpu", "runtime.threads=1",
    "runtime.precision=fp32", "checkpoint.every_minutes=0.003", "method=ce,logit", "seed=0,1",
)  # fmt: skip
"""A sweep of four runs of seconds, one teacher."""
COMPARE = Path(__file__).parents[2] / "scripts" / "compare_runs.py"
LONGEST = 400.0
"""Seconds after which a test gives up on a command."""


def launcher(**keys: Any) -> RayLauncher:
    """Return the launcher with the keys of its file, some of them changed."""
    given = OmegaConf.merge(OmegaConf.load(KEYS), {"address": None, **keys})
    return RayLauncher(**{str(name): value for name, value in given.items() if name != "_target_"})


@pytest.fixture
def planned(small: Callable[..., RunConfig]) -> Callable[..., list[PlannedRun]]:
    """Plan the runs of a sweep of small runs."""
    return lambda *overrides: plan(expand(overrides), lambda job: small(*job))


# Keys


def test_the_keys_of_the_file_are_valid() -> None:
    options = launcher().options()
    assert (options.cpus, options.threads, options.gpus, options.strategy, options.retries) == (1, 1, None, "SPREAD", 3)
    assert "KDBENCH_" in options.environment


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("cpus", value) for value in (0, -1, 1.5, "two", None, True, float("inf"))),
        *(("gpus", value) for value in (2, -0.5, "all", None, False)),
        *(("memory_gb", value) for value in (0, "4 GB")),
        *(("resources", value) for value in ("disk", {"disk": 0}, {"GPU": 1}, {"disk": "fast"})),
        *(("scheduling", value) for value in ("SPREAD", 0)),
        ("autoscaling", "yes"), ("autoscaling", 1), ("retries", -1), ("retries", 1.5),
        ("environment", "KDBENCH_"), ("environment", [""]), ("cpu", 1),
    ],
)  # fmt: skip
def test_a_value_that_a_key_may_not_have_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        launcher(**{key: value}).options()
    assert refused.value.code in ("out_of_range", "wrong_type", "unknown_key")
    assert refused.value.key == f"hydra.launcher.{key}"


@pytest.mark.parametrize("address", ["localhost", ":6379", "host:99999", "http://host:8265/", 6379, "", "ray://host"])
def test_an_address_that_is_none_is_refused(address: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        launcher(address=address).check([])
    assert (refused.value.code, refused.value.key) == ("out_of_range", "hydra.launcher.address")


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # without listen: connections are refused
        port = unused.getsockname()[1]
        for scheme in ("", "ray://"):
            with pytest.raises(ConfigError) as refused:
                check_reachable(f"{scheme}127.0.0.1:{port}", 5)
            assert (refused.value.code, refused.value.key) == ("unreachable", "hydra.launcher.address")


@pytest.mark.parametrize(
    ("error", "address", "text"),
    [
        (ConnectionError("Could not find any running Ray instance."), "auto", "ray start --head"),
        (RuntimeError("AuthenticationError: InvalidAuthToken: missing"), "a:1", "RAY_AUTH_TOKEN"),
        (RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.50"), "a:1", "same versions"),
        (ImportError("No module named grpc"), "ray://a:1", "kdbench[ray]"),
        (ConnectionError("Failed to connect to Ray cluster at a:1"), "a:1", "no Ray cluster answers"),
    ],
)
def test_a_cluster_that_refuses_is_reported_with_what_to_do(error: Exception, address: str, text: str) -> None:
    message = refusal(address, error)
    assert text in message
    assert "\n" not in message


def test_a_device_that_ray_would_hide_is_refused() -> None:
    for device, gpus in (("cuda:1", "auto"), ("cuda", 0)):
        run: Any = SimpleNamespace(composed=True, config=SimpleNamespace(runtime=SimpleNamespace(device=device)))
        with pytest.raises(ConfigError) as refused:
            launcher(gpus=gpus).check([run])
        assert refused.value.code == "conflicting_options"


def test_a_group_larger_than_this_machine_is_refused_before_ray_starts() -> None:
    for key, value in (("cpus", 10_000), ("memory_gb", 1e6), ("resources", {"disk": 1})):
        with pytest.raises(ConfigError) as refused:
            launcher(**{key: value}).check([])
        assert (refused.value.code, refused.value.key) == ("too_large", "hydra.launcher")


def test_every_stage_of_a_study_is_executed_on_the_cluster_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str | None] = []

    def connected(address: str | None, _: int = 0) -> Cluster:
        opened.append(address)
        cluster: Any = SimpleNamespace(check=lambda options, device: None, close=lambda: None)
        return cluster

    monkeypatch.setattr(ray_cluster, "connect", connected)
    monkeypatch.setattr(ray_cluster, "start_local", lambda: connected(None))
    monkeypatch.setattr(ray_tasks, "run_groups", lambda groups, cluster, options: iter([(0, [None])]))
    for address in ("a:1", None):
        opened.clear()
        given = launcher(address=address)
        given.check([])
        for _ in range(2):
            assert len(list(given.launch_groups([[]]))) == 1
        assert opened == [address] * 2
        assert list(given.launch_groups([])) == []
        assert len(opened) == 2


# How many groups, and which ones again


def test_groups_are_counted_per_node_and_shares_per_gpu() -> None:
    node = {"CPU": 16.0, "GPU": 2.0, "memory": 64e9, "object_store_memory": 1e9}
    assert room({"CPU": 3}, node) == 5
    assert room({"CPU": 1, "GPU": 1}, node) == 2
    assert room({"CPU": 1, "GPU": 1 / 3}, node) == 6
    assert room({"CPU": 1, "GPU": 0.4}, node) == 4  # two on each, not five on both
    assert room({"CPU": 0.5, "memory": 20e9}, node) == 3
    assert room({"CPU": 1, "disk": 1}, node) == 0


def test_what_no_node_has_enough_of_is_named() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0}]
    assert lacking({"CPU": 4, "GPU": 1}, nodes) is None
    assert lacking({"CPU": 65}, nodes) == "65 CPU, and no node has more than 64 CPU"
    assert lacking({"CPU": 8, "GPU": 1}, nodes) == "8 CPU, 1 GPU, and no node has all of that"
    assert lacking({"CPU": 1, "GPU": 1}, []) == "1 CPU, and no node has more than 0 CPU"


def test_a_lost_group_waits_and_is_tried_as_often_as_allowed(
    planned: Callable[..., list[PlannedRun]], capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = RayTasks([planned("method=ce", "seed=0,1")], Cluster("a:1"), GroupOptions(retries=2))
    tasks.waiting.clear()
    for number in (1, 2):
        now = time.monotonic()
        assert tasks.lost(Attempt(0, number), "its node was lost") is None
        again = tasks.waiting.pop()
        assert (again.position, again.number) == (0, number + 1)
        assert again.not_before - now >= RETRY_SECONDS * number
    results = tasks.lost(Attempt(0, 3), "its node was lost")
    assert results is not None
    assert [result.status for result in results if result] == [Status.FAILED] * 2
    assert "its node was lost (3 times)" in capsys.readouterr().err


def test_groups_that_have_started_are_noted_for_the_record(
    monkeypatch: pytest.MonkeyPatch, planned: Callable[..., list[PlannedRun]]
) -> None:
    started = SimpleNamespace(remote=lambda *task, **named: "reference")
    ray = SimpleNamespace(remote=lambda call: SimpleNamespace(options=lambda **options: started))
    monkeypatch.setitem(sys.modules, "ray", ray)
    runs = planned("method=ce", "seed=0,1")
    cluster: Any = SimpleNamespace(request=lambda options, device: {"CPU": 1}, room=lambda request: 1)
    tasks = RayTasks([[run] for run in runs], cluster, GroupOptions())
    tasks.start_next()
    assert [run.launched for run in runs] == [True, False]


def test_a_group_has_the_numbers_of_its_runs(planned: Callable[..., list[PlannedRun]]) -> None:
    runs = planned("method=ce", "seed=0,1,2")
    assert task_name(runs, 4) == "jobs 5-7"
    assert task_name(runs[:1], 4) == "job 5"


def test_a_group_whose_process_was_stopped_is_started_again(
    monkeypatch: pytest.MonkeyPatch, planned: Callable[..., list[PlannedRun]]
) -> None:
    stopped = [JobResult(Status.COMPLETE, "runs/a"), JobResult(Status.INTERRUPTED, error="stopped by SIGTERM")]
    ray = SimpleNamespace(get=lambda reference: stopped, exceptions=exceptions)
    monkeypatch.setitem(sys.modules, "ray", ray)
    tasks = RayTasks([planned("method=ce", "seed=0,1")], Cluster("a:1"), GroupOptions(retries=1))
    tasks.waiting.clear()
    assert tasks.results(Attempt(0), "reference") is None
    assert [(again.position, again.number) for again in tasks.waiting] == [(0, 2)]


def test_runs_on_the_cpu_take_no_gpu_into_account(planned: Callable[..., list[PlannedRun]]) -> None:
    class OneGpu(Cluster):
        def nodes(self) -> list[dict[str, float]]:
            return [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}]

    for gpus in (None, 1.0):
        options, cluster = GroupOptions(gpus=gpus), OneGpu("a:1")
        runs = {device: planned("method=ce", f"runtime.device={device}")[0] for device in ("cpu", "auto")}
        rooms = {device: RayTasks([[run]], cluster, options).room(0) for device, run in runs.items()}
        assert rooms == {"cpu": 6, "auto": 1}
    assert lacking(request(GroupOptions(gpus=1), "cpu", [{"CPU": 2.0}]), [{"CPU": 2.0}]) is None
    assert lacking(request(GroupOptions(cpus=8), "auto", OneGpu("a:1").nodes()), OneGpu("a:1").nodes())


# Real clusters


def on_ray(
    folder: Path, log: str, *arguments: str, flags: tuple[str, ...] = ("-m",), **variables: str
) -> subprocess.Popen[str]:
    """Start a sweep on Ray in a process of its own, with its output in a file.

    Args:
        folder: working directory; runs are written below it.
        log: name of the file.
        arguments: further overrides.
        flags: flags of the command line.
        variables: further environment variables.
    """
    command = [sys.executable, "-m", "kdbench"]
    with (folder / log).open("w") as output:
        return subprocess.Popen(
            [*command, *flags, "hydra/launcher=ray", *RUNS, "output_root=out", *arguments],
            cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment(**variables), text=True,
        )  # fmt: skip


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], log: Path) -> None:
    """Wait until a condition is true while a command runs."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def ended(process: subprocess.Popen[str]) -> int:
    """Wait for the end of a command, and return its exit code."""
    try:
        return process.wait(LONGEST)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    """A cluster of two nodes with one core each."""
    with tempfile.TemporaryDirectory(prefix="kd_ray_", dir="/tmp") as folder:  # paths of sockets have to be short
        nodes = TwoNodes(Path(folder))
        try:
            yield nodes
        finally:
            nodes.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output root of the same sweep in one process."""
    root = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "kdbench", "-m", *RUNS, f"output_root={root}"]
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


def assert_same_runs(one: Path, other: Path) -> None:
    """Check that two output roots hold the same runs with the same numbers, bit for bit."""
    compare = runpy.run_path(str(COMPARE))
    before, after = compare["runs_by_key"](one), compare["runs_by_key"](other)
    assert before.keys() == after.keys()
    assert len(before) == 5  # the teacher's too
    for key, run in before.items():
        assert compare["differences_of"](run, after[key]) == []
        accuracies = [json.loads((found / "summary.json").read_text())["test_acc_best"] for found in (run, after[key])]
        assert accuracies[0] == accuracies[1]


def checkpoint_of(folder: Path, pids: list[int]) -> bool:
    """Return whether a run that one of these processes holds has a checkpoint."""
    for lock in folder.glob("out/.locks/*"):
        try:
            held = any(str(pid) in lock.read_text() for pid in pids)
        except OSError:  # given back meanwhile
            continue
        if held and list(folder.glob(f"out/runs/*{lock.name.split('.')[0][-16:]}/last.ckpt")):
            return True
    return False


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_sweep_survives_the_loss_of_a_node(two_nodes: TwoNodes, undisturbed: Path, tmp_path: Path) -> None:
    address = f"hydra.launcher.address={two_nodes.address}"
    log = tmp_path / "lost.log"
    sweep = on_ray(tmp_path, log.name, address)
    wait_until(lambda: checkpoint_of(tmp_path, two_nodes.second.workers()), sweep, log)
    two_nodes.second.lose()
    assert ended(sweep) == 0, log.read_text()
    assert "its node was lost; starting it again (1 of 3 retries)" in log.read_text()
    assert "resuming from last.ckpt" in log.read_text()
    assert_same_runs(undisturbed, tmp_path / "out")


@pytest.mark.wide
@pytest.mark.xdist_group("ray")
def test_a_stop_request_reaches_the_tasks_of_a_cluster_that_goes_on(
    two_nodes: TwoNodes, undisturbed: Path, tmp_path: Path
) -> None:
    log = tmp_path / "stopped.log"
    sweep = on_ray(
        tmp_path, log.name, f"hydra.launcher.address={two_nodes.address}", "checkpoint.every_minutes=null",
        "checkpoint.every_epochs=1000",
    )  # fmt: skip
    wait_until(lambda: "epoch 2/16" in log.read_text(), sweep, log)
    sweep.send_signal(signal.SIGINT)
    assert ended(sweep) == 130, log.read_text()
    assert list(tmp_path.glob("out/runs/*/last.ckpt"))
    (record,) = (tmp_path / "out" / "sweeps").iterdir()
    assert "interrupted" in [job["status"] for job in json.loads(record.read_text())["jobs"]]
    assert two_nodes.head.process.poll() is None
    again = on_ray(tmp_path, "again.log", f"hydra.launcher.address={two_nodes.client_address}")
    assert ended(again) == 0, (tmp_path / "again.log").read_text()
    assert_same_runs(undisturbed, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_cluster_of_this_machine_ends_with_its_command(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own.py").write_text(
        "from kdbench.methods import CrossEntropy\n\n\nclass Own(CrossEntropy):\n    pass\n"
    )
    (tmp_path / "own" / "method").mkdir()
    (tmp_path / "own" / "method" / "own.yaml").write_text("_target_: own.Own\n")
    temporary = Path(tempfile.mkdtemp(prefix="kd_", dir="/tmp"))
    arguments = (
        "hydra.launcher.max_learners=2", "hydra.launcher.address=null", "method=own,ce", "seed=0", "recipe.epochs=1000",
    )  # fmt: skip
    log = tmp_path / "local.log"
    sweep = on_ray(tmp_path, log.name, *arguments, flags=("--config-dir", "own", "-m"), TMPDIR=str(temporary))
    wait_until(lambda: log.read_text().count("epoch 2/1000") == 2, sweep, log)
    assert "2 jobs in lockstep" in log.read_text()
    sweep.send_signal(signal.SIGTERM)
    assert ended(sweep) == 75, log.read_text()
    assert len(list(tmp_path.glob("out/runs/*/last.ckpt"))) == 2
    assert list(temporary.iterdir()) == []
    temporary.rmdir()
    assert str(temporary) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
