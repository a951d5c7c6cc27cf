"""The joblib launcher on several CUDA devices, or on one that two workers share."""

from pathlib import Path

import pytest
import torch

from tests.sweep.test_joblib_launcher import Home, most_at_once

pytestmark = pytest.mark.gpu
ALONE = "hydra.launcher.max_learners=1"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_no_gpu_ever_has_two_runs_and_all_of_them_work(tmp_path: Path) -> None:
    home, count = Home(tmp_path), torch.cuda.device_count()
    home.sweep(f"seed=range({2 * count})", ALONE, TOGETHER=str(count))
    notes = home.notes()
    assert {note.device for note in notes} == {f"cuda:{n}" for n in range(count)}
    assert len({note.run for note in notes}) == 2 * count
    assert {most_at_once(notes, f"cuda:{n}") for n in range(count)} == {1}
    assert min(note.training for note in notes) == count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_workers_share_a_gpu_where_they_are_told_to(tmp_path: Path) -> None:
    home = Home(tmp_path)
    out, _ = home.sweep(
        "seed=0,1", ALONE, "hydra.launcher.devices=[cuda:0]", "hydra.launcher.runs_per_device=2", TOGETHER="2"
    )
    assert most_at_once(home.notes(), "cuda:0") == 2
    assert out.count("on cuda:0") == 2
