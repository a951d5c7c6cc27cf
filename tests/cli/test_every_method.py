"""Every method by the command of the documentation."""

from pathlib import Path

import pytest

from kdbench import cli
from tests.conftest import NARROW, SMALL
from tests.every_method import METHODS, for_few_images

pytestmark = pytest.mark.slow


def sweep(monkeypatch: pytest.MonkeyPatch, root: Path, *overrides: str) -> list[str]:
    """Execute `kdbench -m`, and return the methods of its run directories."""
    networks = ("student=resnet8", "teacher=resnet20")
    arguments = ["kdbench", "-m", *SMALL, *NARROW, *networks, "hydra/launcher=lockstep", *overrides]
    monkeypatch.setattr("sys.argv", [*arguments, f"output_root={root}"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    return sorted(path.name for path in (root / "runs").iterdir())


def test_one_command_trains_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [method for method in METHODS if not for_few_images(method)]
    runs = sweep(monkeypatch, tmp_path, f"method={','.join(plain)}")
    for method in (method for method in METHODS if for_few_images(method)):
        runs += sweep(monkeypatch, tmp_path, f"method={method}", *for_few_images(method))
    for method in METHODS:
        assert any(f"resnet8_{method}_" in run for run in runs), method
