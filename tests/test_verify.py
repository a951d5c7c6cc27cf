"""`kdbench-verify`: a run as it was written holds, and whatever is changed in it is noticed."""

import json
import random
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from kdbench import metrics
from kdbench.cli import main_verify
from kdbench.data import dataset as datasets
from kdbench.errors import ConfigError
from kdbench.methods.logit import LogitDistillation
from kdbench.models import build, weights
from kdbench.run import execute
from kdbench.runs import sealed, sha256
from kdbench.verify.command import verify_runs
from kdbench.verify.findings import FAILS, HOLDS, NOT_CHECKED
from kdbench.verify.material import Options
from kdbench.verify.run import verify
from tests.conftest import NARROW, SMALL, composed

ALWAYS_UNCHECKED = "peak_memory_bytes, environment"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Names of a student's and its teacher's run directories, and the folder of both."""
    config = composed(*SMALL, *NARROW, "recipe.epochs=3", f"output_root={tmp_path_factory.mktemp('out')}")
    student = execute(config).path
    (teacher,) = (path for path in student.parent.iterdir() if path != student)
    return student.parent, student.name, teacher.name


@pytest.fixture
def runs(trained, tmp_path):
    return Path(shutil.copytree(trained[0], tmp_path / "runs"))


@pytest.fixture
def student(trained, runs):
    return runs / trained[1]


@pytest.fixture
def teacher(trained, runs):
    return runs / trained[2]


def found(path, verdict=FAILS, *, quick=True, **options):
    """The lines of one verdict: what it is of, and what it says."""
    return {line.what: line.detail for line in verify(path, Options(quick=quick, **options)) if line.verdict == verdict}


def reseal(path, **changes):
    """Change a summary as somebody would who knows of the seal."""
    file = path / "summary.json"
    file.write_text(json.dumps(sealed(json.loads(file.read_text()) | changes)))


def summary_of(path):
    return json.loads((path / "summary.json").read_text())


def test_a_fresh_run_and_its_teacher_hold(runs, student, teacher, capsys):
    assert verify_runs([str(runs)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [str(teacher), str(student)]
    assert last == f"2 runs: {sum(line.startswith('  holds  ') for line in lines)} checks hold, 0 fail, " + (
        f"{sum(line.startswith('  not checked  ') for line in lines)} not checked"
    )
    late = {"test_acc_final"} if summary_of(student)["best_val_epoch"] != 3 else set()
    assert found(student, NOT_CHECKED, quick=False).keys() == {ALWAYS_UNCHECKED} | late
    held = found(student, HOLDS, quick=False)
    assert {
        "seal", "run_key", "weights_sha256", "logits_sha256", "metrics_sha256", "config_sha256", "data_sha256",
        "test_logits from the weights", "test_acc_best", "teacher_weights_sha256", "agreement", "kl_t4", "metrics.csv",
    } <= held.keys()  # fmt: skip
    assert "largest difference 0 of" in held["test_logits from the weights"]


def test_a_summary_edited_by_hand_is_noticed(student):
    edited = summary_of(student) | {"peak_memory_bytes": 1}
    (student / "summary.json").write_text(json.dumps(edited))
    assert found(student) == {"seal": "summary.json was changed since it was written"}
    del edited["seal"]
    (student / "summary.json").write_text(json.dumps(edited))
    assert found(student).keys() == {"seal"}


@pytest.mark.parametrize(
    "keys",
    [
        "best_val_acc test_acc_best test_nll test_ece per_class_acc num_params macs",
        "agreement kl_t1 kl_t4 teacher_test_acc",
        "best_val_epoch train_seconds images_per_second",
        "run_key group_key baseline_key",
        "teacher_key",
        "weights_sha256 logits_sha256 config_sha256 metrics_sha256 teacher_weights_sha256 data_sha256",
        "schema_version status student teacher method dataset precision seed init_seed data_seed teacher_seed "
        "teacher_table stem recipe method_params epochs num_train",
        "num_val num_test",
    ],
)
def test_each_key_of_a_resealed_summary_is_held_against_what_it_is_of(student, keys):
    summary = summary_of(student)
    reseal(student, **{key: changed(summary[key]) for key in keys.split()})
    failed = found(student)
    assert set(keys.split()) <= failed.keys()
    assert "seal" not in failed


def changed(value):
    """Something of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + type(value)(1)
    if isinstance(value, str):
        return value[::-1]
    if isinstance(value, list):
        return [changed(value[0]), *value[1:]]
    first = next(iter(value))
    return value | {first: changed(value[first])}


def test_logits_of_other_weights_are_noticed_even_if_the_summary_was_made_to_fit(student):
    file = student / "logits.safetensors"
    logits = load_file(file)
    logits["test_logits"] = logits["test_logits"].flip(0).contiguous()
    save_file(logits, file)
    assert {"logits_sha256", "agreement"} <= found(student).keys()
    numpy = [logits[name].numpy() for name in ("test_logits", "test_labels")]
    quality = {
        "test_acc_best": metrics.accuracy(*numpy),
        "test_nll": metrics.nll(*numpy),
        "test_ece": metrics.expected_calibration_error(*numpy),
        "per_class_acc": metrics.per_class_accuracy(*numpy),
    }
    reseal(student, logits_sha256=sha256(file), **quality)
    failed = found(student, quick=False)
    assert "test_acc_best" not in failed
    assert "predictions differ" in failed["test_logits from the weights"]


def test_predictions_turned_within_rounding_are_noticed(student, monkeypatch):
    """bfloat16 rounds so much that an accuracy could be made up within it."""
    edit_config(student, "runtime", precision="bf16")
    file = student / "logits.safetensors"
    logits = load_file(file)
    logits["test_logits"] += 0.03 * logits["test_logits"].abs().max() * torch.eye(10)[logits["test_labels"]]
    save_file(logits, file)
    assert "test_logits from the weights" in found(student, quick=False)
    monkeypatch.setattr("kdbench.verify.numbers.FLIPS_OFF", 1)
    assert "test_logits from the weights" not in found(student, quick=False)


def other_weights(path, model):
    """Weights of the same architecture, from another initialisation."""
    torch.manual_seed(7)
    state = build(model, 10).body.state_dict()
    weights.save(state, path / "best.safetensors", weights.read_metadata(path / "best.safetensors"))


def test_weights_of_another_seed_are_noticed(student, small):
    other_weights(student, small().student)
    assert found(student).keys() == {"weights_sha256"}
    reseal(student, weights_sha256=sha256(student / "best.safetensors"))
    assert found(student, quick=False).keys() == {"val_logits from the weights", "test_logits from the weights"}


def test_weights_that_are_not_finite_or_of_something_else_are_noticed(student, teacher):
    file = student / "best.safetensors"
    metadata, state = weights.read_metadata(file), load_file(file)
    state["fc.bias"][0] = torch.nan
    weights.save(state, file, metadata)
    assert "not finite in fc.bias" in found(student)["weights"]
    shutil.copyfile(teacher / "best.safetensors", file)
    assert "is of another architecture" in found(student)["weights"]
    assert "weights' architecture" in found(student)


def test_a_teacher_replaced_after_its_student_was_trained_is_noticed(student, teacher, small):
    other_weights(teacher, small().teacher.model)
    reseal(teacher, weights_sha256=sha256(teacher / "best.safetensors"))
    assert found(student).keys() == {"teacher_weights_sha256"}
    assert "of the teacher that is there now" in found(student)["teacher_weights_sha256"]


def test_a_teacher_with_other_logits_or_another_summary_is_noticed(student, teacher):
    file = teacher / "logits.safetensors"
    logits = load_file(file)
    save_file(logits | {"test_logits": logits["test_logits"].flip(0).contiguous()}, file)
    assert {"agreement", "kl_t1", "kl_t4"} <= found(student).keys()
    (teacher / "summary.json").write_text(json.dumps(summary_of(teacher) | {"test_nll": 0.0}))
    assert "was changed since it was written" in found(student)["teacher"]


def test_a_missing_teacher_is_said(student, teacher):
    shutil.rmtree(teacher)
    assert found(student) == {}
    assert "no run of the key" in found(student, NOT_CHECKED)["teacher"]


def edit_config(path, group, **changes):
    tree = yaml.safe_load((path / "config.yaml").read_text())
    tree[group] |= changes
    (path / "config.yaml").write_text(yaml.safe_dump(tree))
    reseal(path, config_sha256=sha256(path / "config.yaml"))


def test_a_config_that_no_longer_matches_its_key_is_noticed(student):
    edit_config(student, "recipe", lr=0.01)
    assert found(student).keys() == {"run_key", "group_key", "baseline_key", "recipe"}


def test_a_config_with_another_teacher_no_longer_matches_its_key(student):
    edit_config(student, "teacher", seed=5)
    assert found(student).keys() == {"run_key", "group_key", "teacher_key", "teacher_seed"}


def test_any_change_of_the_config_is_noticed_by_its_hash(student):
    with (student / "config.yaml").open("a") as file:
        file.write("# harmless\n")
    assert found(student).keys() == {"config_sha256"}


def rewrite_metrics(path, edit):
    file = path / "metrics.csv"
    file.write_text("\n".join(edit(file.read_text().splitlines())) + "\n")
    assert "metrics_sha256" in found(path)
    reseal(path, metrics_sha256=sha256(file))
    return found(path)


def with_value(row, column, value):
    def edit(lines):
        cells = lines[row].split(",")
        cells[lines[0].split(",").index(column)] = value
        return [*lines[:row], ",".join(cells), *lines[row + 1 :]]

    return edit


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (with_value(2, "val_acc", "0.99"), "best_val_acc"),
        (with_value(1, "seconds", "1000"), "train_seconds"),
        (with_value(3, "images_per_second", "100000000"), "images_per_second"),
        (with_value(3, "train_loss", "nan"), "metrics.csv"),
        (with_value(3, "train_loss", "low"), "metrics.csv"),
        (with_value(2, "epoch", "7"), "metrics.csv"),
        (lambda lines: lines[:-1], "epochs"),
        (lambda lines: lines[:1], "metrics.csv"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "metrics.csv"),
        (lambda lines: [line.rpartition(",")[0] for line in lines], "metrics.csv"),
        (lambda lines: [*lines[:-1], lines[-1][:10]], "metrics.csv"),
    ],
)
def test_edited_metrics_no_longer_agree_with_the_summary(student, edit, what):
    assert what in rewrite_metrics(student, edit)


def test_labels_that_are_not_the_datas_are_noticed(student):
    file = student / "logits.safetensors"
    logits = load_file(file)
    logits["test_labels"][:3] = (logits["test_labels"][:3] + 1) % 10
    save_file(logits, file)
    reseal(student, logits_sha256=sha256(file))
    assert found(student)["test_labels"] == "3 of 60 are not the data's"


def test_data_that_changed_are_noticed(student, monkeypatch):
    from kdbench.data import embedded

    monkeypatch.setattr(datasets, "_latest", None)
    monkeypatch.setitem(embedded.SEEDS, "test", 5)
    failed = found(student, quick=False)
    assert {"data_sha256", "test_labels", "test_logits from the weights"} <= failed.keys()
    assert "val_logits from the weights" not in failed


def test_missing_data_are_said_and_found_elsewhere(student, monkeypatch, tmp_path):
    load = datasets.LOADERS["shapes"]

    def from_disk(config):
        if config.root != str(tmp_path):
            raise ConfigError(f"there is no folder {config.root}")
        return load(config)

    monkeypatch.setattr(datasets, "_latest", None)
    monkeypatch.setitem(datasets.LOADERS, "shapes", from_disk)
    edit_config(student, "data", root="/nowhere/at/all")
    unchecked = found(student, NOT_CHECKED, quick=False)
    assert unchecked["data"] == "there is no folder /nowhere/at/all; or say where they are: --data-root DIR"
    assert {"data_sha256", "labels", "logits from the weights"} <= unchecked.keys()
    assert found(student, quick=False) == {}
    assert {"data_sha256", "test_logits from the weights"} <= found(
        student, HOLDS, quick=False, data_root=tmp_path
    ).keys()


FILES = ("summary.json", "config.yaml", "metrics.csv", "logits.safetensors", "best.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_a_line(student, capsys, name):
    content = (student / name).read_bytes()
    for size in (0, len(content) // 2, len(content) - 2):
        (student / name).write_bytes(content[:size])
        assert verify_runs([str(student), "--quick"]) == 1
        assert "FAILS" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_a_line(student, capsys, name):
    content = (student / name).read_bytes()
    draw = random.Random(0)
    for place in (0, *(draw.randrange(len(content)) for _ in range(3))):
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        (student / name).write_bytes(damaged)
        assert verify_runs([str(student), "--quick"]) == 1
        assert "FAILS" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*FILES[1:], "train.log"])
def test_a_missing_file_is_a_line(student, name):
    (student / name).unlink()
    assert found(student) == {"files": f"there is no {name}"}


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"run_key": [], "teacher_key": "../*", "method": {}}'])
def test_a_summary_of_something_else_is_a_line(student, content):
    (student / "summary.json").write_text(content)
    assert found(student)


def test_a_renamed_folder_is_noticed(student):
    assert found(student.rename(student.with_name("my_best_run"))).keys() == {"folder"}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that says when it is imported, and the file that it then writes."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\ndef net(num_classes): return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "marker"
    sys.modules.pop("evil", None)


@pytest.mark.parametrize("target", ["evil.net", "kdbench.summary.subprocess.run"])
def test_code_of_others_is_refused_and_not_imported(student, evil, capsys, target):
    edit_config(student, "student", _target_=target)
    assert verify_runs([str(student)]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "--trust" in line)
    assert line.startswith(f"  FAILS        config.yaml: student._target_ is '{target}'")
    assert not evil.exists()


def test_code_that_the_user_trusts_is_run(small, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_nets.py").write_text(
        "from kdbench.models.cifar_resnet import CifarResNet\n"
        "def tiny(num_classes): return CifarResNet(8, [8, 16, 16, 16], num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = small("method=ce")
    config.student.target, config.student.arguments = "my_nets.tiny", {}
    run = str(execute(config).path)
    assert verify_runs([run]) == 1
    assert verify_runs([run, "--trust", "my_nets"]) == 0
    sys.modules.pop("my_nets")


def test_a_given_teacher_and_its_student_hold_without_the_file(small, tmp_path, capsys):
    torch.manual_seed(3)
    file = tmp_path / "teacher.safetensors"
    save_file(build(small("method=ce", "student=resnet20").student, 10).body.state_dict(), file)
    student = execute(small(f"teacher.checkpoint={file}")).path
    file.unlink()
    assert verify_runs([str(student.parent)]) == 0, capsys.readouterr().out
    (given,) = student.parent.glob("*_checkpoint_*")
    edit_config(given, "method", sha256="0" * 64)
    assert {"run_key", "method_params"} <= found(given).keys()


def test_an_unfinished_run_is_said_and_nothing_to_verify(student, capsys):
    (student / "summary.json").unlink()
    assert verify_runs([str(student)]) == 2
    assert "not checked  run: it is unfinished: there is no summary.json" in capsys.readouterr().out


def test_runs_in_their_small_form_are_checked_as_far_as_they_can_be(runs, student, tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[1] / "scripts" / "keep_results.py"
    monkeypatch.setattr(sys, "argv", [script.name, str(runs), "--out", str(tmp_path / "small")])
    runpy.run_path(str(script), run_name="__main__")
    small = tmp_path / "small" / student.name
    assert verify_runs([str(tmp_path / "small")]) == 0
    assert "logits_sha256: in half precision: cannot be compared by hash" in capsys.readouterr().out
    assert {"seal", "metrics_sha256", "test_acc_best", "agreement", "metrics.csv"} <= found(small, HOLDS).keys()
    reseal(small, test_acc_best=0.9, agreement=0.9)
    final = {"test_acc_final"} if summary_of(student)["best_val_epoch"] == 3 else set()
    assert found(small).keys() == {"test_acc_best", "agreement"} | final


def test_a_device_that_is_not_here_is_replaced_and_said(student, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    edit_config(student, "runtime", device="cuda:0")
    held = found(student, HOLDS, quick=False)["test_logits from the weights"]
    assert "; on cpu in fp32 with threads: " in held
    assert held.endswith("recorded")


def test_a_method_that_takes_part_in_predictions_is_not_recomputed(student, monkeypatch):
    monkeypatch.setattr(LogitDistillation, "predict", lambda self, output: output.logits)
    assert "takes part in predictions" in found(student, NOT_CHECKED, quick=False)["logits from the weights"]


def test_quick_computes_no_logits(student, monkeypatch):
    monkeypatch.setattr("kdbench.verify.numbers.predict", None)
    assert found(student, NOT_CHECKED)["logits from the weights"] == "--quick"
    assert "logits from the weights" in found(student, quick=False)


def test_a_summary_from_before_there_were_seals_is_accepted(student):
    new = ("seal", "config_sha256", "metrics_sha256", "data_sha256", "teacher_weights_sha256")
    summary = {key: value for key, value in summary_of(student).items() if key not in new}
    (student / "summary.json").write_text(json.dumps(summary))
    assert found(student) == {}
    assert set(new) <= found(student, NOT_CHECKED).keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is missing"),
        (["."], r"no run under \.; give run directories"),
        ([".", "--trust", "os; evil"], "--trust is 'os; evil'; it may be the name of a module"),
        ([".", "--data-root", "nowhere"], "--data-root is nowhere, and there is no such folder"),
    ],
)
def test_what_cannot_be_verified_is_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        verify_runs(arguments)


def test_the_command_says_an_error_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdbench-verify", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as leaving:
        main_verify()
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"kdbench-verify: error: {tmp_path / 'nowhere'} is missing\n"
