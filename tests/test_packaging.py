"""The wheel alone in an empty folder, and the package where it is only on PYTHONPATH."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import kdbench
from tests.conftest import SMALL

CHECKOUT = Path(__file__).parents[1]
Finished = subprocess.CompletedProcess[str]
Installed = tuple[Callable[..., Finished], Path, Path]

slow = pytest.mark.slow
one_process = pytest.mark.xdist_group("wheel")  # one process, one wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, CHECKOUT], check=True)
    (file,) = folder.glob("kdbench-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A function that calls the command of the unpacked wheel, the wheel's folder, and the working directory."""
    site, home = (tmp_path_factory.mktemp(name) for name in ("site", "home"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)

    def call(*arguments: str) -> Finished:
        # -S leaves out the path file of the editable install; dependencies come back by name.
        environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{dependencies()}"}
        code = "import sys; from kdbench.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-S", "-c", code, *arguments], cwd=home, env=environment, capture_output=True, text=True
        )

    return call, site, home


def dependencies() -> str:
    """Return the folder of the installed packages."""
    return next(path for path in sys.path if path.endswith("site-packages"))


@slow
@one_process
def test_wheel_carries_its_configs_and_works_in_an_empty_directory(installed: Installed) -> None:
    call, site, home = installed
    assert (site / "kdbench" / "conf" / "config.yaml").is_file()
    printed = call("--cfg", "job")
    assert printed.returncode == 0, printed.stderr
    assert "torchvision_resnet" in printed.stdout
    run = call(*SMALL, "method=ce")
    assert run.returncode == 0, run.stderr
    assert len(list((home / "outputs" / "runs").iterdir())) == 1


@slow
@one_process
def test_wheel_takes_a_users_own_yaml(installed: Installed, tmp_path: Path) -> None:
    call, _, home = installed
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "hot.yaml").write_text(
        "_target_: kdbench.methods.logit.LogitDistillation\n"
        "alpha: 0.9\nce_weight: null\nkd_weight: null\ntemperature: 20.0\n"
    )
    run = call("--config-dir", str(tmp_path), *SMALL, "method=hot")
    assert run.returncode == 0, run.stderr
    assert list((home / "outputs" / "runs").glob("*_hot_from_resnet20_*"))


@slow
@one_process
def test_wheel_sweeps(installed: Installed) -> None:
    call, site, home = installed
    run = call("-m", *SMALL, "method=ce", "seed=0,1", "report=summarized")
    assert run.returncode == 0, run.stderr
    assert list((home / "outputs" / "sweeps").glob("*.json"))
    assert (home / "summarized" / "report.html").is_file()
    assert (site / "kdbench" / "conf" / "study" / "lab.yaml").is_file()


@slow
@one_process
def test_wheel_has_types_license_and_the_version_of_the_code(wheel: Path) -> None:
    assert wheel.name.startswith(f"kdbench-{kdbench.__version__}-")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata_file,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = content.read(metadata_file).decode()
    assert "kdbench/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "License-Expression: MIT" in metadata
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"kdbench", "hydra_plugins"}


@pytest.fixture
def on_the_path(tmp_path: Path) -> Callable[..., Finished]:
    """A function that runs Python where kdbench is only on PYTHONPATH, as on a machine that cannot install anything."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(dependencies()).iterdir():  # everything that is installed, except the editable kdbench
        if "kdbench" not in entry.name:
            (site / entry.name).symlink_to(entry)
    environment = os.environ | {"PYTHONPATH": f"{CHECKOUT / 'src'}{os.pathsep}{site}"}

    def run(*arguments: str) -> Finished:
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_package_that_is_only_on_the_path_can_be_imported(on_the_path: Callable[..., Finished]) -> None:
    code = (
        "import importlib.metadata, kdbench\n"
        "found = {d.metadata['Name'] for d in importlib.metadata.distributions()}\n"
        "assert 'kdbench' not in found and 'hydra-core' in found\n"
        "print(kdbench.__version__, kdbench.load_runs.__name__)"
    )
    ended = on_the_path("-c", code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == f"{kdbench.__version__} load_runs"
    ended = on_the_path("-m", "kdbench", "--version")
    assert ended.stdout.startswith(f"kdbench {kdbench.__version__} "), ended.stderr


@slow
def test_package_that_is_only_on_the_path_trains(on_the_path: Callable[..., Finished]) -> None:
    ended = on_the_path("-m", "kdbench", *SMALL, "method=ce")
    assert ended.returncode == 0, ended.stderr
