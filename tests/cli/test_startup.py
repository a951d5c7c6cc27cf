"""Commands that only print: they answer at once, without the large libraries, and survive a closed pipe."""

import json
import os
import subprocess
import sys

import pytest

from kdbench import cli
from kdbench.config import CONF_DIR
from tests.conftest import NARROW, SMALL, rest_wide

HEAVY = ("torch", "torchvision", "pandas", "scipy", "matplotlib", "statsmodels")

COMMAND = """
import json, sys
sys.argv = {argv!r}
from kdbench import cli
try:
    cli.{entry}()
finally:
    sys.stdout.flush()
    print(json.dumps([name for name in {heavy!r} if name in sys.modules]), file=sys.stderr)
"""

PRINTING = [
    ("main", ["kdbench", "--help"]),
    ("main", ["kdbench", "--version"]),
    ("main", ["kdbench", "--hydra-help"]),
    ("main", ["kdbench", "--cfg", "job", "method=ce", "recipe.lr=0.3"]),
    ("main", ["kdbench", "--info", "defaults"]),
    ("main_report", ["kdbench-report", "--help"]),
    ("main_study", ["kdbench-study", "--help"]),
    ("main_bench", ["kdbench-bench", "--help"]),
    ("main_verify", ["kdbench-verify", "--help"]),
    ("main_compare", ["kdbench-compare", "--help"]),
]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Start every command at once, and return its exit code, output and heavy imports by its arguments."""
    processes = {}
    for entry, argv in PRINTING:
        code = COMMAND.format(argv=argv, entry=entry, heavy=HEAVY)
        processes[" ".join(argv)] = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=tmp_path_factory.mktemp("home"),
        )  # fmt: skip
    results = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=120)
        results[name] = process.returncode, out, err
    return results


@pytest.mark.parametrize("command", [" ".join(argv) for _, argv in PRINTING])
def test_a_command_that_only_prints_imports_no_large_library(printed, command):
    code, out, err = printed[command]
    assert code == 0, err
    assert out
    *lines, heavy = err.splitlines()
    assert lines == []
    assert json.loads(heavy) == []


def test_version_names_torch_too(printed):
    assert printed["kdbench --version"][1].startswith("kdbench ")
    assert "torch" in printed["kdbench --version"][1]


def test_help_lists_the_options_of_every_group(printed):
    out = printed["kdbench --help"][1]
    assert out.startswith("kdbench")
    methods = sorted(file.stem for file in (CONF_DIR / "method").glob("*.yaml"))
    assert f"method: {', '.join(methods)}" in out
    assert "experiment=quickstart" in out
    assert "experiment: crd_cifar100/... (60 files of conf/), diddo, quickstart, siddo\n" in out


def test_a_printed_config_has_the_overrides(printed):
    out = printed["kdbench --cfg job method=ce recipe.lr=0.3"][1]
    assert "lr: 0.3" in out
    assert "kdbench.methods.ce.CrossEntropy" in out


def test_other_commands_print_their_usage(printed):
    for program in ("kdbench-report", "kdbench-study", "kdbench-bench", "kdbench-verify", "kdbench-compare"):
        assert printed[f"{program} --help"][1].startswith(f"usage: {program}")


def start(arguments, writer, folder):
    """Start `kdbench` with a pipe as its standard output, and close the pipe here."""
    command = [sys.executable, "-u", "-m", "kdbench", *arguments]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=folder)
    os.close(writer)
    return process


@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.parametrize("arguments", rest_wide([["--cfg", "job"], ["--help"]]))
def test_a_closed_pipe_ends_a_command_without_a_traceback(tmp_path, arguments, lines):
    reader, writer = os.pipe()
    if lines == 0:
        os.close(reader)
    process = start(arguments, writer, tmp_path)
    if lines:
        os.read(reader, 1)
        os.close(reader)
    err = process.communicate(timeout=120)[1]
    assert err == ""
    assert process.returncode in (0, 141)


@pytest.mark.slow
def test_a_closed_pipe_ends_a_sweep_before_its_next_job(tmp_path):
    reader, writer = os.pipe()
    arguments = ["-m", *SMALL, *NARROW[:1], "method=ce", "seed=0,1", "output_root=out"]
    process = start(arguments, writer, tmp_path)
    os.read(reader, 1)  # of the line "jobs: 2"
    os.close(reader)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 141
    (record,) = (tmp_path / "out" / "sweeps").iterdir()
    assert [job["status"] for job in json.loads(record.read_text())["jobs"]] == ["interrupted", "not started"]


@pytest.mark.parametrize(("rank", "code"), [("0", 2), ("1", 0)])
@pytest.mark.parametrize("name", ["bench", "report", "compare", "export", "measure", "verify"])
def test_a_command_that_trains_no_run_is_refused_once_under_torchrun(name, rank, code, monkeypatch, capsys):
    variables = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    ended = []
    monkeypatch.setattr(cli, "finish", lambda code: ended.append(code))
    getattr(cli, f"main_{name}")()
    line = f"kdbench-{name}: error: kdbench-{name} runs in one process; start it without torchrun\n"
    assert (ended, capsys.readouterr().err) == ([code], line if rank == "0" else "")
