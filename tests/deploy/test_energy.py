"""Energy counters: joules over all packages, a counter that starts again, and why there is none."""

import sys
import time
from pathlib import Path

import pytest

from kdbench.deploy.energy import Rapl, find_counter, measure_energy
from kdbench.deploy.latency import Candidate


@pytest.fixture
def packages(tmp_path: Path) -> list[Path]:
    """Return the folders of two packages as the kernel has them, beside one of a part of the first."""
    for name, limit, count in (("intel-rapl:0", 999_999, 400_000), ("intel-rapl:1", 499_999, 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text(f"{limit}\n")
        (tmp_path / name / "energy_uj").write_text(f"{count}\n")
    (tmp_path / "intel-rapl:0:0").mkdir()
    return [tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1"]


def consume(package: Path, microjoules: int) -> None:
    """Add energy to a counter, which starts again behind its largest number."""
    limit = int((package / "max_energy_range_uj").read_text())
    now = int((package / "energy_uj").read_text())
    (package / "energy_uj").write_text(str((now + microjoules) % (limit + 1)))


def test_joules_of_all_packages_add_up_over_starts_of_the_counter(packages: list[Path]) -> None:
    counter = Rapl(packages)
    assert counter.read() == 0
    consume(packages[0], 500_000)
    consume(packages[1], 100_000)
    assert counter.read() == pytest.approx(0.6)
    for _ in range(5):
        consume(packages[0], 700_000)
        consume(packages[1], 499_999)
        counter.read()
    assert counter.read() == pytest.approx(0.6 + 5 * (0.7 + 0.499999))


def test_the_counter_of_a_cpu_has_all_packages_and_not_their_parts(packages: list[Path], tmp_path: Path) -> None:
    counter = find_counter("cpu", tmp_path)
    assert isinstance(counter, Rapl)
    assert counter.packages == packages


def test_energy_is_the_mean_over_the_passes_of_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def execute() -> None:
        now[0] += 0.3

    class Coarse:
        """A counter of 10 W that advances once a second."""

        def read(self) -> float:
            return 10.0 * int(now[0])

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    joules = measure_energy(Candidate(execute, 8), Coarse())
    assert joules == pytest.approx(10 * int(2.1) / 7)


def test_without_a_counter_the_reason_names_the_folder(tmp_path: Path) -> None:
    assert find_counter("cpu", tmp_path) == f"this machine shows no energy counter ({tmp_path}/intel-rapl:*)"


def test_a_counter_that_cannot_be_read_is_named_with_the_reason(
    packages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (packages[1] / "energy_uj").unlink()
    reason = find_counter("cpu", tmp_path)
    assert isinstance(reason, str)
    assert "No such file or directory" in reason
    read = Path.read_text

    def denied(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", denied)
    reason = find_counter("cpu", tmp_path)
    assert isinstance(reason, str)
    assert "Permission denied" in reason
    assert "root" in reason


def test_a_counter_without_numbers_is_no_counter(packages: list[Path], tmp_path: Path) -> None:
    (packages[0] / "energy_uj").write_text("")
    assert "cannot be read" in str(find_counter("cpu", tmp_path))


def test_a_gpu_without_its_library_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reason = find_counter("cuda:0")
    assert isinstance(reason, str)
    assert "pip install nvidia-ml-py" in reason
