"""The teacher store: what is trained once, what is loaded, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.errors import ConfigError
from kdbench.models import build
from kdbench.run import execute
from kdbench.runs import sealed, sha256
from kdbench.teachers import forget_verified


@pytest.fixture
def teacher(small, trained_teachers):
    """A trained teacher's run directory; `small()` distils from it."""
    return execute(small("method=ce", "student=resnet20"))  # finds it complete


def edit_summary(run, **changes):
    run.summary.write_text(json.dumps(sealed(run.read_summary() | changes)))


def test_teacher_is_the_very_run_that_one_could_ask_for(small, teacher):
    before = set(teacher.path.parent.iterdir())
    run = execute(small("seed=9"))
    assert run.read_summary()["teacher_key"] == teacher.key
    assert set(teacher.path.parent.iterdir()) - before == {run.path}


def slowly(*cases):
    """More of a kind that the everyday suite has."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    "change",
    ["teacher.recipe.epochs=2", "data.num_train=60", *slowly("teacher.seed=1", "teacher.widths=[8,8,16,64]")],
)
def test_what_changes_the_teacher_asks_for_another_one(small, teacher, change):
    assert execute(small(change)).read_summary()["teacher_key"] != teacher.key


@pytest.mark.parametrize("change", ["seed=1", "method=feature", *slowly("recipe.lr=0.05", "student=resnet14")])
def test_what_does_not_change_the_teacher_finds_the_same(small, teacher, change):
    assert execute(small(change)).read_summary()["teacher_key"] == teacher.key


def test_weights_that_are_not_those_recorded_are_refused(small, teacher):
    weights = load_file(teacher.weights)
    weights["fc.bias"] += 1
    from kdbench.models.weights import read_metadata, save

    save(weights, teacher.weights, read_metadata(teacher.weights))
    with pytest.raises(ConfigError, match=r"best.safetensors is not the file that its summary.json records: sha256"):
        execute(small())


def test_a_flipped_bit_is_noticed(small, teacher):
    content = bytearray(teacher.weights.read_bytes())
    content[-100] ^= 1
    teacher.weights.write_bytes(content)
    with pytest.raises(ConfigError, match="is not the file that its"):
        execute(small())


def test_logits_of_another_run_are_noticed(small, teacher):
    other = execute(small("method=ce", "student=resnet14"))
    teacher.logits.write_bytes(other.logits.read_bytes())
    with pytest.raises(
        ConfigError, match=r"logits.safetensors is not the file.*delete .* to have this teacher made again"
    ):
        execute(small())


def test_recorded_accuracy_must_be_what_is_measured(small, teacher):
    recorded = teacher.read_summary()["best_val_acc"]
    edit_summary(teacher, best_val_acc=recorded + 0.1)
    with pytest.raises(ConfigError, match=rf"is {recorded:.4f} here and {recorded + 0.1} in its summary.json"):
        execute(small())


def test_teacher_whose_summary_was_edited_is_refused(small, teacher):
    teacher.summary.write_text(json.dumps(teacher.read_summary() | {"test_nll": 0.0}))
    with pytest.raises(ConfigError, match=r"summary\.json was changed since it was written"):
        execute(small())


def test_accuracy_within_half_a_point_is_accepted(small, teacher):
    edit_summary(teacher, best_val_acc=teacher.read_summary()["best_val_acc"] + 0.004)
    execute(small())


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("architecture", {"_target_": "elsewhere.Net"}),
        ("number of classes", 100),
        ("normalisation", {"mean": [0, 0, 0], "std": [1, 1, 1]}),
    ],
)
def test_weights_of_something_else_are_refused_naming_both_sides(small, teacher, what, value):
    from kdbench.models.weights import read_metadata, save

    here = read_metadata(teacher.weights)
    save(load_file(teacher.weights), teacher.weights, here | {what: value})
    edit_summary(teacher, weights_sha256=sha256(teacher.weights))
    with pytest.raises(ConfigError, match=f"{what} is .* there and .* here; delete"):
        execute(small())


def test_damaged_summary_and_logits_are_named(small, teacher):
    logits = teacher.logits.read_bytes()
    teacher.logits.write_bytes(logits[:100])
    with pytest.raises(ConfigError, match=r"logits.safetensors is not the file that its summary.json records"):
        execute(small())
    teacher.logits.write_bytes(logits)
    teacher.summary.write_text("{")
    with pytest.raises(ConfigError, match=r"summary.json cannot be read"):
        execute(small())


@pytest.fixture
def checkpoint(small, tmp_path):
    """A foreign file as the reference study writes it."""
    torch.manual_seed(3)
    body = build(small("method=ce", "student=resnet20").student, 10).body
    file = tmp_path / "teacher.pth"
    torch.save({"model_state_dict": {f"model.{name}": t for name, t in body.state_dict().items()}}, file)
    return file


def test_given_checkpoint_teaches_and_is_evaluated_once(small, checkpoint):
    config = small(f"teacher.checkpoint={checkpoint}")
    summary = execute(config).read_summary()
    stored = next((checkpoint.parent / "out" / "runs").glob(f"*_{summary['teacher_key']}"))
    given = json.loads((stored / "summary.json").read_text())
    assert (given["method"], given["student"], given["recipe"]) == ("checkpoint", "resnet20", None)
    assert given["method_params"] == {"file": "teacher.pth", "sha256": sha256(checkpoint)}
    assert given["test_acc_best"] == summary["teacher_test_acc"]
    assert summary["agreement"] is not None
    stamp = (stored / "logits.safetensors").stat().st_mtime_ns
    forget_verified()
    execute(small(f"teacher.checkpoint={checkpoint}", "seed=1"))
    assert (stored / "logits.safetensors").stat().st_mtime_ns == stamp


def test_the_same_weights_in_another_place_are_the_same_run(small, checkpoint, tmp_path):
    first = execute(small(f"teacher.checkpoint={checkpoint}"))
    moved = checkpoint.rename(tmp_path / "moved.pth")
    assert execute(small(f"teacher.checkpoint={moved}")) == first


def refused(small, file, message):
    out = file.parent / "out"
    with pytest.raises(ConfigError, match=message):
        execute(small(f"teacher.checkpoint={file}"))
    assert not out.exists()


def test_checkpoint_of_another_architecture_is_refused_and_nothing_written(small, checkpoint):
    state = torch.load(checkpoint)["model_state_dict"]
    save_file(
        {name.replace("layer3", "layer9"): t for name, t in state.items()}, checkpoint.with_suffix(".safetensors")
    )
    refused(
        small, checkpoint.with_suffix(".safetensors"), r"teacher.checkpoint: .*\(for teacher=resnet20\) is of another"
    )


def test_checkpoint_with_other_classes_is_refused(small, checkpoint):
    state = torch.load(checkpoint)["model_state_dict"]
    torch.save(state | {"model.fc.weight": torch.zeros(100, 32), "model.fc.bias": torch.zeros(100)}, checkpoint)
    refused(small, checkpoint, r"fc.weight is \[100, 32\] there and \[10, 32\] here")


def test_truncated_and_missing_checkpoints_are_refused(small, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    refused(small, checkpoint, "is damaged or in an unknown format")
    checkpoint.unlink()
    refused(small, checkpoint, "there is no such file")
