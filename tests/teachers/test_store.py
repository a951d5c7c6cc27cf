"""The teacher store: teachers that are trained once, loaded and verified, or refused."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.models import build
from kdbench.models.weights import read_metadata, save
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.summary import read_summary
from kdbench.teachers.store import forget_verified
from tests.conftest import complete
from tests.networks import SPEC

Small = Callable[..., RunConfig]


@pytest.fixture
def teacher(small: Small, trained_teachers: None) -> RunDirectory:
    """The run directory of a trained teacher; `small()` distils from it."""
    return complete(small("method=ce", "student=resnet20"))  # it is there


def edit_summary(run: RunDirectory, **changes: Any) -> None:
    run.write_summary(dataclasses.replace(run.read_summary(), **changes))


@contextmanager
def refused(code: str, key: str, *words: str) -> Iterator[None]:
    """Assert that the block raises an error for the user, with some names and values in its message."""
    with pytest.raises(ConfigError) as refusal:
        yield
    assert (refusal.value.code, refusal.value.key) == (code, key)
    for word in words:
        assert word in str(refusal.value)


def wide(*cases: str) -> list[Any]:
    """Return parameters of wide tests: more of a kind that the everyday suite has."""
    return [pytest.param(case, marks=pytest.mark.wide) for case in cases]


# Which run is the teacher


def test_a_teacher_is_an_ordinary_run(small: Small, teacher: RunDirectory) -> None:
    before = set(teacher.path.parent.iterdir())
    run = complete(small("seed=9"))
    assert run.read_summary().teacher_key == teacher.key
    assert set(teacher.path.parent.iterdir()) - before == {run.path}


@pytest.mark.parametrize(
    "change",
    ["data.num_train=60", *wide("teacher.recipe.epochs=2", "teacher.seed=1", "teacher.widths=[8,8,16,64]")],
)
def test_what_changes_the_teacher_needs_another_one(small: Small, teacher: RunDirectory, change: str) -> None:
    assert complete(small(change)).read_summary().teacher_key != teacher.key


@pytest.mark.parametrize("change", ["seed=1", "method=feature", *wide("recipe.lr=0.05", "student=resnet14")])
def test_what_does_not_change_the_teacher_finds_the_same(small: Small, teacher: RunDirectory, change: str) -> None:
    assert complete(small(change)).read_summary().teacher_key == teacher.key


# Teachers that are refused


def test_weights_that_are_not_the_recorded_ones_are_refused(small: Small, teacher: RunDirectory) -> None:
    weights = load_file(teacher.weights)
    weights["fc.bias"] += 1
    save(weights, teacher.weights, read_metadata(teacher.weights))
    with refused("mismatch", "teacher", str(teacher.weights), "sha256"):
        complete(small())


def test_a_flipped_bit_is_noticed(small: Small, teacher: RunDirectory) -> None:
    content = bytearray(teacher.weights.read_bytes())
    content[-100] ^= 1
    teacher.weights.write_bytes(content)
    with refused("mismatch", "teacher", str(teacher.weights)):
        complete(small())


def test_logits_of_another_run_are_noticed(small: Small, teacher: RunDirectory) -> None:
    other = complete(small("method=ce", "student=resnet14"))
    teacher.logits.write_bytes(other.logits.read_bytes())
    with refused("mismatch", "teacher", str(teacher.logits), f"delete {teacher.path}"):
        complete(small())


def test_a_recorded_accuracy_is_the_measured_one(small: Small, teacher: RunDirectory) -> None:
    recorded = teacher.read_summary().best_val_acc
    assert recorded is not None
    edit_summary(teacher, best_val_acc=recorded + 0.1)
    with refused("mismatch", "teacher", f"{recorded:.4f}", str(recorded + 0.1)):
        complete(small())


@pytest.mark.slow
def test_an_accuracy_within_half_a_point_is_accepted(small: Small, teacher: RunDirectory) -> None:
    recorded = teacher.read_summary().best_val_acc
    assert recorded is not None
    edit_summary(teacher, best_val_acc=recorded + 0.004)
    complete(small())


def test_a_teacher_with_an_edited_summary_is_refused(small: Small, teacher: RunDirectory) -> None:
    teacher.summary.write_text(json.dumps(json.loads(teacher.summary.read_text()) | {"test_nll": 0.0}))
    with refused("checksum", "summary.json", str(teacher.summary)):
        complete(small())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture", {"_target_": "elsewhere.Net"}),
        ("number of classes", 100),
        ("normalisation", {"mean": [0, 0, 0], "std": [1, 1, 1]}),
    ],
)
def test_weights_of_something_else_are_refused_with_both_sides(
    small: Small, teacher: RunDirectory, name: str, value: Any
) -> None:
    here = read_metadata(teacher.weights)
    save(load_file(teacher.weights), teacher.weights, here | {name: value})
    edit_summary(teacher, weights_sha256=sha256(teacher.weights))
    with refused("mismatch", "teacher", name, str(value), str(here[name]), f"delete {teacher.path}"):
        complete(small())


def test_damaged_logits_and_summaries_are_named(small: Small, teacher: RunDirectory) -> None:
    logits = teacher.logits.read_bytes()
    teacher.logits.write_bytes(logits[:100])
    with refused("mismatch", "teacher", str(teacher.logits)):
        complete(small())
    teacher.logits.write_bytes(logits)
    teacher.summary.write_text("{")
    with refused("damaged", "summary.json", str(teacher.summary)):
        complete(small())


def test_missing_weights_are_named(small: Small, teacher: RunDirectory) -> None:
    teacher.weights.unlink()
    with refused("damaged", "teacher", str(teacher.weights), f"delete {teacher.path}"):
        complete(small())


# Given weights


@pytest.fixture
def checkpoint(small: Small, tmp_path: Path) -> Path:
    """A foreign file as the reference study writes it."""
    torch.manual_seed(3)
    body = build(small("method=ce", "student=resnet20").student, SPEC).body
    file = tmp_path / "teacher.pth"
    torch.save({"model_state_dict": {f"model.{name}": t for name, t in body.state_dict().items()}}, file)
    return file


def test_given_weights_serve_as_teacher_and_are_evaluated_once(small: Small, checkpoint: Path) -> None:
    config = small(f"teacher.checkpoint={checkpoint}")
    summary = complete(config).read_summary()
    stored = next((checkpoint.parent / "out" / "runs").glob(f"*_{summary.teacher_key}"))
    given = read_summary(stored)
    assert given.is_given
    assert (given.student, given.recipe, given.role) == ("resnet20", None, None)
    assert given.method_params == {"file": "teacher.pth", "sha256": sha256(checkpoint)}
    assert given.test_acc_best == summary.teacher_test_acc
    assert summary.agreement is not None
    stamp = (stored / "logits.safetensors").stat().st_mtime_ns
    forget_verified()
    complete(small(f"teacher.checkpoint={checkpoint}", "seed=1"))
    assert (stored / "logits.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_the_same_weights_in_another_place_are_the_same_run(small: Small, checkpoint: Path, tmp_path: Path) -> None:
    first = complete(small(f"teacher.checkpoint={checkpoint}"))
    moved = checkpoint.rename(tmp_path / "moved.pth")
    assert complete(small(f"teacher.checkpoint={moved}")) == first


def assert_refused(small: Small, file: Path, code: str, *words: str) -> None:
    """Assert that given weights are refused before anything is written."""
    with refused(code, "teacher.checkpoint", str(file), *words):
        complete(small(f"teacher.checkpoint={file}"))
    assert not (file.parent / "out").exists()


def test_given_weights_of_another_architecture_are_refused(small: Small, checkpoint: Path) -> None:
    state = torch.load(checkpoint)["model_state_dict"]
    file = checkpoint.with_suffix(".safetensors")
    save_file({name: tensor for name, tensor in state.items() if "layer3.2" not in name}, file)
    assert_refused(small, file, "mismatch", "teacher=resnet20")


def test_given_weights_with_other_classes_are_refused(small: Small, checkpoint: Path) -> None:
    state = torch.load(checkpoint)["model_state_dict"]
    torch.save(state | {"model.fc.weight": torch.zeros(100, 32), "model.fc.bias": torch.zeros(100)}, checkpoint)
    assert_refused(small, checkpoint, "mismatch", "fc.weight", "[100, 32]", "[10, 32]")


def test_truncated_and_missing_weights_are_refused(small: Small, checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    assert_refused(small, checkpoint, "damaged")
    checkpoint.unlink()
    assert_refused(small, checkpoint, "not_found")


def test_given_weights_without_finite_logits_are_refused(small: Small, checkpoint: Path) -> None:
    state = torch.load(checkpoint)["model_state_dict"]
    torch.save(state | {"model.fc.bias": torch.full((10,), torch.nan)}, checkpoint)
    with refused("not_finite", "teacher.checkpoint", str(checkpoint)):
        complete(small(f"teacher.checkpoint={checkpoint}"))
