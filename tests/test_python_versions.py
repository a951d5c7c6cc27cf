"""The package under the newest Python, and all others where KDBENCH_VENVS is set: installed, one run, one report."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import NARROW, SMALL

CHECKOUT = Path(__file__).parents[1]
SUPPORTED = ("3.11", "3.12", "3.13")
KEPT = os.environ.get("KDBENCH_VENVS")
"""Folder in which environments, of 6 GB each, are kept; an unset one is made anew in a minute and deleted."""
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"

Call = Callable[..., str]


def interpreter(version: str) -> Path | None:
    """Return an interpreter of this version from PATH or pyenv that starts, or None."""
    named = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [*pyenv.glob(f"{version}.*/bin/python{version}"), *([Path(named)] if named else [])]
    for candidate in found:  # pyenv puts a command on PATH for versions that are not active, and these do not start
        if subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.fixture(params=[version for version in (SUPPORTED if KEPT else SUPPORTED[-1:]) if version != HERE])
def call(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Call]:
    """The commands of an environment of one Python version, called in an empty folder."""
    version = request.param
    found = interpreter(version)
    if found is None:
        pytest.skip(f"needs Python {version}: no python{version} on PATH or in pyenv")
    environment = (Path(KEPT) if KEPT else tmp_path) / f"python{version}"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([found, "-m", "venv", environment], check=True)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--constraint", CHECKOUT / "constraints.txt", CHECKOUT], check=True)  # what is missing
    subprocess.run([*pip, "--no-deps", "--force-reinstall", CHECKOUT], check=True)  # this version of the code
    home = tmp_path / "home"
    home.mkdir()

    def call(program: str, *arguments: str) -> str:
        command = [environment / "bin" / program, *arguments]
        ended = subprocess.run(command, cwd=home, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    yield call
    if not KEPT:  # pytest keeps the folders of its last three sessions
        shutil.rmtree(environment)


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
def test_version_run_and_report_work_under_other_pythons(call: Call) -> None:
    assert call("kdbench", "--version").startswith("kdbench 0.")
    assert "done: test accuracy" in call("kdbench", *SMALL, *NARROW, "method=logit")
    assert "report.html" in call("kdbench-report", "outputs/runs", "--out", "report")


def test_supported_versions_are_those_that_the_package_declares() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    classified = [
        c.rsplit(" ", 1)[1] for c in project["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    ]
    assert tuple(classified) == SUPPORTED
    assert project["requires-python"] == ">=3.11,<3.14"
