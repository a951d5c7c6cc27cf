"""Whole runs of seconds, in this process."""

import dataclasses
import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from kdbench import checked, metrics
from kdbench import summary as summary_module
from kdbench.config import parse
from kdbench.data import load
from kdbench.errors import BusyError, ConfigError, RunError
from kdbench.methods.logit import LogitDistillation
from kdbench.parts import prepare
from kdbench.run import execute, located
from kdbench.runs import read_summary, sealed, sha256
from kdbench.train.learner import Learner
from tests.conftest import killed_after

CONTRACT = {"config.yaml", "metrics.csv", "summary.json", "logits.safetensors", "best.safetensors", "train.log"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from tests.conftest import NARROW, SMALL, composed

    root = tmp_path_factory.mktemp("out")
    config = composed(*SMALL, *NARROW, f"output_root={root}", "recipe.epochs=3", "seed=5")
    return config, execute(config)


def test_run_directory_holds_the_contract_and_nothing_else(finished):
    _, run = finished
    assert {file.name for file in run.path.iterdir()} == CONTRACT


def test_summary_has_every_key_of_the_contract(finished):
    summary = finished[1].read_summary()
    expected = """schema_version run_key status student teacher method dataset method_params recipe stem precision seed
        init_seed data_seed teacher_seed num_train num_val num_test epochs num_params macs best_val_acc best_val_epoch
        test_acc_best test_acc_final test_nll test_ece per_class_acc teacher_test_acc teacher_key agreement kl_t1 kl_t4
        train_seconds images_per_second peak_memory_bytes environment data_sha256 config_sha256 metrics_sha256
        weights_sha256 logits_sha256 teacher_weights_sha256 seal"""
    assert set(expected.split()) <= set(summary)
    assert (summary["student"], summary["teacher"], summary["method"]) == ("resnet8", "resnet20", "logit")
    assert (summary["seed"], summary["init_seed"], summary["data_seed"], summary["teacher_seed"]) == (5, 5, 5, 0)
    assert (summary["status"], summary["schema_version"], summary["epochs"]) == ("complete", 1, 3)
    assert summary["method_params"] == {"alpha": 0.5, "ce_weight": None, "kd_weight": None, "temperature": 4.0}
    assert summary["environment"]["torch"] == torch.__version__.split("+")[0]


def test_summary_says_of_which_files_and_data_it_is(finished):
    config, run = finished
    summary = run.read_summary()
    dataset = load(config.data, "cpu")
    assert summary["data_sha256"] == {name: getattr(dataset, name).sha256 for name in ("train", "val", "test")}
    assert len(set(summary["data_sha256"].values())) == 3
    for name in ("config", "metrics", "weights", "logits"):
        assert summary[f"{name}_sha256"] == sha256(getattr(run, name))
    (teacher,) = run.path.parent.glob(f"*_{summary['teacher_key']}")
    assert summary["teacher_weights_sha256"] == sha256(teacher / "best.safetensors")
    assert read_summary(teacher)["teacher_weights_sha256"] is None


def test_a_summary_that_was_edited_is_refused_until_it_is_sealed_again(finished, tmp_path):
    summary = finished[1].read_summary()
    edited = summary | {"test_acc_best": 0.99}
    (tmp_path / "summary.json").write_text(json.dumps(edited))
    with pytest.raises(ConfigError, match=r"summary.json was changed since it was written; restore it, or delete"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({key: value for key, value in edited.items() if key != "seal"}))
    with pytest.raises(ConfigError, match=r"summary.json was changed since it was written"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(sealed(edited)))
    assert read_summary(tmp_path) == sealed(edited)


def test_a_summary_from_before_there_were_seals_is_taken_as_it_is(finished, tmp_path):
    old = {key: value for key, value in finished[1].read_summary().items() if key not in ("seal", "config_sha256")}
    (tmp_path / "summary.json").write_text(json.dumps(old))
    assert read_summary(tmp_path) == old


def test_environment_says_whether_the_checkout_was_changed(tmp_path, monkeypatch):
    file = tmp_path / "summary.py"
    file.write_text("")
    monkeypatch.setattr(summary_module, "__file__", str(file))

    def git(*arguments):
        names = ("-c", "user.name=A", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *names, *arguments], check=True, capture_output=True)

    assert summary_module.git_state() == {"git_revision": None, "git_dirty": None}
    git("init")
    git("add", "summary.py")
    git("commit", "-m", "first")
    (tmp_path / "untracked").write_text("")
    assert summary_module.git_state()["git_dirty"] is False
    file.write_text("changed")
    assert summary_module.git_state()["git_dirty"] is True


def test_numbers_of_the_summary_come_from_the_saved_logits(finished):
    _, run = finished
    summary, logits = run.read_summary(), {k: v.numpy() for k, v in load_file(run.logits).items()}
    teacher = run.path.parent / f"shapes_resnet20_ce_seed0_{summary['teacher_key']}"
    taught = load_file(teacher / "logits.safetensors")["test_logits"].numpy()
    assert logits["test_logits"].dtype == np.float32
    assert logits["test_labels"].dtype == np.int64
    assert summary["test_acc_best"] == metrics.accuracy(logits["test_logits"], logits["test_labels"])
    assert summary["best_val_acc"] == metrics.accuracy(logits["val_logits"], logits["val_labels"])
    assert summary["agreement"] == metrics.agreement(logits["test_logits"], taught)
    assert summary["kl_t4"] == metrics.kl_divergence(taught, logits["test_logits"], 4.0)
    assert summary["teacher_test_acc"] == metrics.accuracy(taught, logits["test_labels"])


def test_metrics_have_a_row_per_epoch_and_name_the_best(finished):
    _, run = finished
    table, summary = pd.read_csv(run.metrics), run.read_summary()
    assert list(table.columns) == [
        "epoch", "lr", "train_loss", "ce", "kd", "train_acc", "val_loss", "val_acc", "grad_norm", "images_per_second",
        "seconds",
    ]  # fmt: skip
    assert table.epoch.tolist() == [1, 2, 3]
    assert summary["best_val_epoch"] == int(table.epoch[table.val_acc.idxmax()])  # the earliest of equals
    assert summary["best_val_acc"] == table.val_acc.max()
    assert np.allclose(table.train_loss, 0.5 * table.ce + 0.5 * table.kd)
    assert summary["images_per_second"] == pytest.approx(table.images_per_second[1:].median())


def test_saved_weights_give_the_saved_logits(finished):
    from kdbench.models import build
    from kdbench.train.evaluate import predict

    run = finished[1]
    recorded = parse(OmegaConf.load(run.config))
    network = build(recorded.student, 10)
    network.body.load_state_dict(load_file(run.weights))
    dataset = load(recorded.data, "cpu")
    logits = predict(network.to(memory_format=torch.channels_last), dataset, dataset.test, recorded.runtime)
    assert torch.equal(logits, load_file(run.logits)["test_logits"])


def test_recorded_config_is_resolved_and_reads_back(finished):
    _, run = finished
    recorded = parse(OmegaConf.load(run.config))
    assert recorded.runtime.device == "cpu"
    assert isinstance(recorded.runtime.threads, int)
    assert execute(recorded) == run


def test_train_log_tells_the_epochs(finished):
    text = finished[1].log.read_text()
    assert "epoch 3/3: loss" in text
    assert "images/s" in text


def test_seed_alone_changes_nothing_once_the_others_are_given(small):
    config = small("method=ce", "init_seed=1", "data_seed=1")
    first = execute(config)
    assert execute(dataclasses.replace(config, seed=7)) == first


@pytest.fixture(scope="module")
def undisturbed(teachers_once, tmp_path_factory):
    """A run by its overrides, carried out once for all that ask, beside teachers that are trained already."""
    from tests.conftest import NARROW, SMALL, composed

    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(teachers_once / "runs", root / "runs")
    return lambda *overrides: execute(composed(*SMALL, *NARROW, *overrides, f"output_root={root}"))


@pytest.mark.parametrize(("method", "step"), [("ce", 0), ("feature", 1), pytest.param("ce", 2, marks=pytest.mark.slow)])
def test_killed_run_resumes_to_the_same_numbers(small, undisturbed, trained_teachers, method, step):
    settings = (f"method={method}", "recipe.epochs=3", "checkpoint.every_minutes=0")
    whole = undisturbed(*settings)
    config = small(*settings)
    with killed_after(epoch=2, step=step, epochs=3):
        execute(config)
    resumed = execute(config)
    within = f" and {step} steps" if step else ""
    assert f"resuming from last.ckpt after 2 of 3 epochs{within}\n" in resumed.log.read_text()
    assert not resumed.checkpoint.exists()
    timing = ["images_per_second", "seconds"]
    pd.testing.assert_frame_equal(
        pd.read_csv(resumed.metrics).drop(columns=timing), pd.read_csv(whole.metrics).drop(columns=timing)
    )
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert resumed.logits.read_bytes() == whole.logits.read_bytes()


def test_damaged_checkpoint_is_said_and_the_run_begins_anew(small):
    config = small("method=ce", "checkpoint.keep_last=true")
    run = execute(config)
    assert run.checkpoint.is_file()
    weights = run.weights.read_bytes()
    run.summary.unlink()
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:1000])
    assert execute(config).weights.read_bytes() == weights
    assert "last.ckpt is damaged or no checkpoint (its content is not what its checksum says)" in run.log.read_text()
    assert "no checkpoint is readable; starting over" in run.log.read_text()


def test_loss_that_is_not_finite_stops_before_the_step(small, trained_teachers, monkeypatch):
    forward = LogitDistillation.forward
    steps = []

    def bad_at_second_step(self, *arguments, **options):
        terms = forward(self, *arguments, **options)
        steps.append(1)
        return {name: term * torch.nan if name == "kd" and len(steps) == 2 else term for name, term in terms.items()}

    monkeypatch.setattr(LogitDistillation, "forward", bad_at_second_step)
    config = small("method=logit")
    with pytest.raises(RunError, match="epoch 1, step 2: kd is nan"):
        execute(config)
    assert len(steps) == 2


def test_finished_run_is_skipped_and_overwrite_repeats_it_but_not_its_teacher(small, trained_teachers):
    config = small("method=logit")
    run = execute(config)
    (teacher,) = run.path.parent.glob(f"*resnet20_ce*_{run.read_summary()['teacher_key']}")
    stamps = [file.stat().st_mtime_ns for file in (run.summary, teacher / "summary.json")]
    execute(config)
    assert [f.stat().st_mtime_ns for f in (run.summary, teacher / "summary.json")] == stamps
    assert execute(dataclasses.replace(config, overwrite=True)) == run
    assert run.summary.stat().st_mtime_ns > stamps[0]
    assert (teacher / "summary.json").stat().st_mtime_ns == stamps[1]


def test_teacher_is_not_part_of_a_run_that_needs_none(small):
    a, b = (execute(small("method=ce", f"teacher={name}")) for name in ("resnet20", "none"))
    assert a == b
    assert json.loads(a.summary.read_text())["teacher"] is None


def test_last_and_best_epoch_are_tested_apart(small, monkeypatch):
    end_epoch = Learner.end_epoch

    def best_is_the_first(self, dataset):
        row = end_epoch(self, dataset)
        if self.epoch == 1:
            self.best["val_acc"] = 2.0
        return row

    monkeypatch.setattr(Learner, "end_epoch", best_is_the_first)
    monkeypatch.setattr("kdbench.job.predict", lambda student, *_: torch.eye(10)[predictions(student)])
    seen = []

    def predictions(student):
        """Labels that tell one set of weights from another."""
        seen.append(float(student.body.fc.weight.detach().sum()))
        return torch.full((60,), len(seen) % 10)

    summary = execute(small("method=ce", "recipe.epochs=3")).read_summary()
    assert summary["best_val_epoch"] == 1
    assert len(seen) == 2
    assert seen[0] != seen[1]
    assert summary["test_acc_final"] == 0.1  # of the first prediction, the last weights'
    assert summary["test_acc_best"] == 0.1


def test_random_state_goes_on_where_it_was(small):
    """Each learner has its own, whatever others draw, in its checkpoint too."""

    def learner(seed=5):
        parts = prepare(config := small("method=ce"))
        return Learner(parts.student, parts.method, config.recipe, located(config)[0].runtime, seed)

    def drawn(learner):
        with learner.drawing():
            return torch.rand(3)

    one, other = learner(), learner()
    first, second = drawn(one), drawn(one)
    assert torch.equal(drawn(other), first)
    torch.rand(7)
    resumed = learner(seed=6)
    resumed.load_state_dict(other.state_dict())
    assert torch.equal(drawn(resumed), second)
    assert not torch.equal(drawn(learner(seed=6)), first)


def test_repro_profile_takes_only_kernels_that_repeat_and_the_cpus_all_do(small, monkeypatch):
    step, only = Learner.step, []

    def watched(self, terms):
        only.append(torch.are_deterministic_algorithms_enabled())
        step(self, terms)

    monkeypatch.setattr(Learner, "step", watched)
    roots = [f"output_root={small().output_root}/{n}" for n in range(3)]
    profiles = ("repro", "repro", "fast")
    runs = [execute(small("method=ce", f"runtime.profile={p}", root)) for p, root in zip(profiles, roots, strict=True)]
    assert only == [True] * 4 + [False] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert len({run.weights.read_bytes() for run in runs}) == 1
    assert [run.read_summary()["environment"]["profile"] for run in runs] == list(profiles)


def test_run_that_was_begun_keeps_its_threads_and_memory_format(small):
    config = small("method=ce", "runtime.threads=1", "checkpoint.keep_last=true")
    run = execute(config)
    run.summary.unlink()
    again = execute(small("method=ce", "runtime.threads=2", "runtime.channels_last=false"))
    recorded = parse(OmegaConf.load(again.config)).runtime
    assert (recorded.threads, recorded.channels_last) == (1, True)


def test_gain_is_against_the_undistilled_student_that_is_equal_in_all_else(small, trained_teachers):
    from kdbench.report.table import runs_table

    runs = [
        execute(small(f"method={method}", f"student.widths=[{width},8,16,32]"))
        for width in (4, 8)
        for method in ("ce", "logit")
    ]
    summaries = [run.read_summary() for run in runs]
    lines = runs_table([run.path for run in runs]).splitlines()[1:]
    for ce, logit in ((0, 1), (2, 3)):
        gain = 100 * (summaries[logit]["test_acc_best"] - summaries[ce]["test_acc_best"])
        assert lines[logit].split()[5] == f"{gain:+.2f}"
    assert summaries[0]["baseline_key"] == summaries[1]["baseline_key"] != summaries[2]["baseline_key"]


def test_group_key_is_the_same_for_other_seeds_only(small, trained_teachers):
    keys = [execute(small(*o)).read_summary()["group_key"] for o in (("seed=0",), ("seed=1",), ("method.alpha=0.3",))]
    assert keys[0] == keys[1] != keys[2]


def test_complete_run_is_skipped_without_its_weights_unless_they_are_to_teach(small):
    config = small("method=ce", "student=resnet20")
    run = execute(config)
    written = run.summary.stat().st_mtime_ns
    run.weights.unlink()
    assert execute(config).summary.stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match=r"best\.safetensors.*delete .* to have this teacher made again"):
        execute(small("method=logit"))


def nan_at(steps, monkeypatch):
    """Have the KD term of these steps of a run be no number."""
    forward, count = LogitDistillation.forward, []

    def bad(self, *arguments, **options):
        terms = forward(self, *arguments, **options)
        count.append(1)
        return {name: term * torch.nan if len(count) in steps else term for name, term in terms.items()}

    monkeypatch.setattr(LogitDistillation, "forward", bad)


def test_what_a_bad_step_saw_is_kept(small, trained_teachers, monkeypatch):
    nan_at([4], monkeypatch)
    config = small("method=logit", "recipe.epochs=3", "checkpoint.every_epochs=1")
    with pytest.raises(RunError, match=r"epoch 2, step 2: .* What the step saw: .*nonfinite\.json"):
        execute(config)
    directory = located(config)[1]
    seen = json.loads(directory.bad_numbers.read_text())
    batch = list(prepare(config).batches.epoch(1))[1]
    assert (seen["epoch"], seen["step"], seen["terms"]["kd"]) == (2, 2, "nan")
    assert (seen["indices"], seen["views"]) == (batch.indices.tolist(), batch.views.tolist())
    assert all(float(norm) > 0 for name, norm in seen["weight_norms"].items() if "conv" in name)
    assert checked.read_facts(directory.checkpoint)["epoch"] == 1  # the last good one
    monkeypatch.undo()
    assert not execute(config).bad_numbers.exists()


def test_bad_steps_may_be_skipped_and_are_counted(small, trained_teachers, monkeypatch):
    nan_at([2, 3], monkeypatch)
    run = execute(small("method=logit", "recipe.epochs=3", "recipe.on_nonfinite=skip"))
    summary = run.read_summary()
    assert summary["skipped_steps"] == 2
    assert np.isfinite(pd.read_csv(run.metrics).to_numpy()).all()
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(run.weights).values())


def test_skipped_step_leaves_the_running_statistics_as_they_were(small, monkeypatch):
    from kdbench.data import Batches

    parts = prepare(config := small("method=ce", "recipe.on_nonfinite=skip"))
    assert isinstance(parts.batches, Batches)
    learner = Learner(parts.student, parts.method, config.recipe, located(config)[0].runtime)
    learner.begin_epoch()
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    batch = next(parts.batches.epoch(0))
    learner.step(learner.losses(batch._replace(images=batch.images * torch.nan), None))
    after = learner.student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    learner.step(learner.losses(batch, None))
    assert not torch.equal(learner.student.state_dict()["body.bn1.running_mean"], before["body.bn1.running_mean"])


def test_stopping_at_bad_steps_is_no_part_of_a_key_and_skipping_them_is(small):
    keys = [
        located(small("method=ce", *more))[1].key
        for more in ((), ("recipe.nonfinite_limit=5",), ("recipe.on_nonfinite=skip",))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_room_is_asked_for_before_anything_is_written(small, monkeypatch):
    from kdbench import limits

    monkeypatch.setattr(limits.shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    config = small("method=ce", "student.widths=[16,16,32,64]")
    with pytest.raises(RunError, match=r"no room for this run: about 4 MB needed and 2 MB free in .*; make some"):
        execute(config)
    assert not located(config)[1].path.exists()


@pytest.mark.parametrize("name", ["", "best.safetensors", "train.log"])
def test_run_does_not_write_through_links(small, tmp_path, name):
    config, outside = small("method=ce"), tmp_path / "outside"
    directory = located(config)[1]
    outside.mkdir()
    if name:
        directory.path.mkdir(parents=True)
        (directory.path / name).symlink_to(outside / name)
    else:
        directory.path.parent.mkdir(parents=True)
        directory.path.symlink_to(outside)
    with pytest.raises(ConfigError, match=r"is a link to .*outside.*; a run's files lie in its own folder: remove it"):
        execute(config)
    assert not list(outside.iterdir())


def test_run_that_another_process_has_is_left_to_it_if_so_wished(small):
    config = small("method=ce", "on_busy=skip")
    directory = located(config)[1]
    with (
        directory.locked("this run", "wait"),
        pytest.raises(BusyError, match=r"has this run of resnet8 \(.*on_busy=skip"),
    ):
        execute(config)
    assert execute(config).is_complete()


def test_memory_that_is_not_there_is_said_with_what_lowers_the_need(small, monkeypatch):
    def greedy(*arguments):
        torch.empty(10**16)

    monkeypatch.setattr("kdbench.run.fit", greedy)
    with pytest.raises(RunError, match=r"on cpu; 4\d{16} bytes more were asked for\. Lower recipe\.batch_size \(32\)"):
        execute(small("method=ce"))


def test_torn_last_line_of_a_log_gets_its_end(small):
    config = small("method=ce", "checkpoint.every_minutes=0")
    with killed_after(epoch=1):
        execute(config)
    log = located(config)[1].log
    log.write_text(log.read_text() + "2026-01-01 00:00:00 epoch 1/")
    assert "epoch 1/\n" in execute(config).log.read_text()


@pytest.mark.parametrize("damage", ["edited", "deleted"])
def test_metrics_of_a_run_that_goes_on_are_those_of_its_checkpoint(small, damage):
    config = small("method=ce", "checkpoint.keep_last=true")
    run = execute(config)
    metrics_csv = run.metrics.read_bytes()
    run.summary.unlink()
    run.metrics.write_bytes(metrics_csv.replace(b"2.", b"9.")) if damage == "edited" else run.metrics.unlink()
    assert execute(config).metrics.read_bytes() == metrics_csv
    assert run.read_summary()["metrics_sha256"] == sha256(run.metrics)


def test_checkpoints_of_a_run_whose_process_died_after_its_summary_are_removed(small):
    config = small("method=ce")
    run = execute(config)
    for file in run.checkpoints():
        file.touch()
    assert execute(config) == run
    assert not any(file.exists() for file in run.checkpoints())


@pytest.mark.parametrize("skip", [False, True])
def test_under_gradient_scaling_no_bad_step_is_taken_though_its_gradients_are_finite(small, skip):
    """The processor's own scaler stands for a GPU's."""
    parts = prepare(config := small("method=ce", f"recipe.on_nonfinite={'skip' if skip else 'stop'}"))
    learner = Learner(parts.student, parts.method, config.recipe, located(config)[0].runtime)
    learner.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0)
    learner.begin_epoch()
    learner.sums.ends_at_once = False  # as on a device that runs ahead of the host
    first, second, *_ = parts.batches.epoch(0)
    before = {name: value.clone() for name, value in learner.student.named_parameters()}

    def moved():
        return not all(torch.equal(value, before[name]) for name, value in learner.student.named_parameters())

    terms = learner.losses(first, None)
    learner.step(terms | {"odd": torch.tensor(torch.inf)})
    assert not moved()
    terms = learner.losses(second, None)
    learner.step(terms | {"odd": torch.tensor(1.0)})
    assert moved() == skip


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv"])
def test_complete_run_whose_records_were_changed_is_not_taken_for_done(small, name):
    config = small("method=ce")
    run = execute(config)
    content = (run.path / name).read_bytes()
    (run.path / name).write_bytes(content.replace(b"0.1", b"0.2", 1))
    with pytest.raises(ConfigError, match=rf"{name} was changed since the run was finished; put it back, or delete"):
        execute(config)
    (run.path / name).write_bytes(content)
    assert execute(config) == run


def test_files_are_readable_to_whom_the_users_mask_lets_read(finished):
    modes = {file.name: file.stat().st_mode & 0o777 for file in finished[1].path.iterdir()}
    assert set(modes.values()) == {modes["train.log"]}
