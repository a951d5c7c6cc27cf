"""The wheel alone, in an empty directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # one process, one wheel

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel, and how to call the command from it without the checkout in sight."""
    wheels, site, home = (tmp_path_factory.mktemp(name) for name in ("wheels", "site", "home"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, CHECKOUT], check=True)
    (wheel,) = wheels.glob("kdbench-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    # -S leaves out the editable install's path file; dependencies come back by name.
    dependencies = next(p for p in sys.path if p.endswith("site-packages"))
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{dependencies}"}

    def call(*arguments):
        code = "import sys; from kdbench.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-S", "-c", code, *arguments], cwd=home, env=environment, capture_output=True, text=True
        )

    return call, site, home


def test_wheel_carries_its_configs_and_works_in_an_empty_directory(installed):
    call, site, home = installed
    assert (site / "kdbench" / "conf" / "config.yaml").is_file()
    printed = call("--cfg", "job")
    assert printed.returncode == 0, printed.stderr
    assert "torchvision_resnet" in printed.stdout
    run = call(*SMALL, "method=ce")
    assert run.returncode == 0, run.stderr
    assert len(list((home / "outputs" / "runs").iterdir())) == 1


def test_wheel_takes_a_users_own_yaml(installed, tmp_path):
    call, _, home = installed
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "hot.yaml").write_text(
        "_target_: kdbench.methods.logit.LogitDistillation\n"
        "alpha: 0.9\nce_weight: null\nkd_weight: null\ntemperature: 20.0\n"
    )
    run = call("--config-dir", str(tmp_path), *SMALL, "method=hot")
    assert run.returncode == 0, run.stderr
    assert list((home / "outputs" / "runs").glob("*_hot_from_resnet20_*"))


def test_wheel_sweeps(installed):
    call, site, _ = installed
    run = call("-m", *SMALL, "method=ce", "seed=0,1", "report=said")
    assert run.returncode == 0, run.stderr
    assert "record of this sweep" in run.stdout
    assert "report: said/report.html" in run.stdout
    assert (site / "kdbench" / "conf" / "study" / "lab.yaml").is_file()
