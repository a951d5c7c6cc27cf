"""A student and its teacher, trained once, and helpers that read the lines of a run and change its files."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from kdbench.config import ModelConfig, RunConfig
from kdbench.data import dataset as datasets
from kdbench.data.embedded import Shapes
from kdbench.models import build, weights
from kdbench.rundir.files import sha256
from kdbench.rundir.summary import RunSummary, checksum_of, read_unverified
from kdbench.verify.artifacts import Options
from kdbench.verify.checks import FAIL
from kdbench.verify.verify import verify
from tests.conftest import NARROW, SMALL, complete, composed_once
from tests.derived import copies as copies
from tests.networks import SPEC

UNCHECKABLE = "peak_memory_bytes, skipped_steps, overflowed_steps, lockstep, environment"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Folder of a student's and its teacher's run directories, and the names of both."""
    config = composed_once(*SMALL, *NARROW, "recipe.epochs=3", f"output_root={tmp_path_factory.mktemp('out')}")
    student = complete(config).path
    (teacher,) = (path for path in student.parent.iterdir() if path != student)
    return student.parent, student.name, teacher.name


@pytest.fixture
def runs(trained: tuple[Path, str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "runs"))


@pytest.fixture
def student(trained: tuple[Path, str, str], runs: Path) -> Path:
    return runs / trained[1]


@pytest.fixture
def teacher(trained: tuple[Path, str, str], runs: Path) -> Path:
    return runs / trained[2]


def checked(path: Path, verdict: str = FAIL, *, quick: bool = True, **options: Any) -> dict[str, str]:
    """Return the lines of one verdict: what was checked, and the detail."""
    return {line.what: line.detail for line in verify(path, Options(quick=quick, **options)) if line.verdict == verdict}


def summary_of(path: Path) -> RunSummary:
    return read_unverified(path)[0]


def edit_summary(path: Path, **changes: Any) -> None:
    """Change keys of a summary by hand."""
    file = path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite_summary(path: Path, **changes: Any) -> None:
    """Change keys of a summary, and its checksum with them."""
    edit_summary(path, **changes)
    edit_summary(path, checksum=checksum_of(json.loads((path / "summary.json").read_text())))


def remove_keys(path: Path, *names: str) -> None:
    """Remove keys of a summary, as if an older version had written it."""
    file = path / "summary.json"
    file.write_text(json.dumps({k: value for k, value in json.loads(file.read_text()).items() if k not in names}))


def edit_config(path: Path, group: str, **changes: Any) -> None:
    """Change keys of config.yaml, and its hash in the summary with them."""
    tree = yaml.safe_load((path / "config.yaml").read_text())
    tree[group] |= changes
    (path / "config.yaml").write_text(yaml.safe_dump(tree))
    rewrite_summary(path, config_sha256=sha256(path / "config.yaml"))


def edit_logits(path: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, torch.Tensor]:
    """Change logits.safetensors, and return its new content."""
    logits = load_file(path / "logits.safetensors")
    edit(logits)
    save_file(logits, path / "logits.safetensors")
    return logits


def flip_test_logits(logits: dict[str, torch.Tensor]) -> None:
    """Give every test image the logits of another one."""
    logits["test_logits"] = logits["test_logits"].flip(0).contiguous()


def replace_weights(path: Path, model: ModelConfig) -> None:
    """Give a run weights of the same architecture, from another initialisation."""
    torch.manual_seed(7)
    file = path / "best.safetensors"
    weights.save(build(model, SPEC).body.state_dict(), file, weights.read_metadata(file))


@pytest.fixture
def replace_loader(small: Callable[..., RunConfig]) -> Iterator[Callable[[Any], None]]:
    """Replace the loader of the embedded data.

    The process keeps the latest data set, so another one is loaded before and after.
    """
    other = small("method=ce", "data.num_val=10").data
    with pytest.MonkeyPatch.context() as patch:
        datasets.load(other, "cpu")
        yield lambda load: patch.setattr(Shapes, "load", load)
    datasets.load(other, "cpu")
