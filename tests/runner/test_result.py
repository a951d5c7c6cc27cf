"""What a finished run leaves: its files, and a summary that follows from them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from kdbench import metrics
from kdbench.config import RunConfig, parse
from kdbench.data import Batches, load
from kdbench.models import build
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.identity import baseline_key, group_key, run_identity
from kdbench.rundir.summary import RunSummary, read_summary
from kdbench.runner.policy import run_with_retries
from kdbench.train.evaluate import predict
from kdbench.train.learner import Learner
from kdbench.train.loop import fit
from tests.conftest import NARROW, SMALL, complete, composed_once
from tests.networks import SPEC

CONTRACT = {"config.yaml", "metrics.csv", "summary.json", "logits.safetensors", "best.safetensors", "train.log"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = tmp_path_factory.mktemp("out")
    return composed_once(*SMALL, *NARROW, f"output_root={root}", "recipe.epochs=3", "seed=5")


@pytest.fixture(scope="module")
def run(config: RunConfig) -> RunDirectory:
    """A finished run, whose teacher was trained first."""
    return complete(config)


@pytest.fixture(scope="module")
def summary(run: RunDirectory) -> RunSummary:
    return run.read_summary()


@pytest.fixture(scope="module")
def teacher(run: RunDirectory, summary: RunSummary) -> RunDirectory:
    (path,) = run.path.parent.glob(f"shapes_resnet20_ce_seed0_{summary.teacher_key}")
    assert summary.teacher_key
    return RunDirectory(path, summary.teacher_key)


def test_a_run_directory_holds_the_files_of_the_contract_and_no_others(run: RunDirectory) -> None:
    assert {file.name for file in run.path.iterdir()} == CONTRACT


def test_every_file_has_the_mode_that_the_user_set(run: RunDirectory) -> None:
    modes = {file.name: file.stat().st_mode & 0o777 for file in run.path.iterdir()}
    assert set(modes.values()) == {modes["train.log"]}


def test_the_summary_repeats_the_config(config: RunConfig, summary: RunSummary) -> None:
    assert (summary.status, summary.schema_version, summary.epochs, summary.dataset) == ("complete", 1, 3, "shapes")
    assert (summary.student, summary.teacher, summary.method) == ("resnet8", "resnet20", "logit")
    assert (summary.role, summary.logit_cache, summary.lockstep) == ("distilled", False, 1)
    assert (summary.seed, summary.init_seed, summary.data_seed, summary.teacher_seed) == (5, 5, 5, 0)
    assert (summary.num_train, summary.num_val, summary.num_test, summary.precision) == (64, 50, 60, "fp32")
    assert summary.method_params == {"alpha": 0.5, "ce_weight": None, "kd_weight": None, "temperature": 4.0}
    assert summary.recipe
    assert summary.recipe["lr"] == config.recipe.lr
    assert summary.environment
    assert summary.environment["torch"] == torch.__version__.split("+")[0]


def test_the_summary_has_a_value_for_every_key_of_a_trained_student(summary: RunSummary) -> None:
    absent = {name for name, value in vars(summary).items() if value is None}
    # An argument of other architectures, sizes of methods that predict, and keys of runs that begin with another one.
    assert absent == {
        "stem", "inference_params", "inference_macs", "parent_key", "parent_weights_sha256", "compression",
        "nonzero_params", "sparsity", "parent_test_acc", "parent_agreement", "parent_kl_t1", "measurement",
    }  # fmt: skip


def test_the_summary_has_the_hash_of_each_file_and_split(
    config: RunConfig, run: RunDirectory, summary: RunSummary, teacher: RunDirectory
) -> None:
    dataset = load(config.data, "cpu")
    assert summary.data_sha256 == {name: getattr(dataset, name).sha256 for name in ("train", "val", "test")}
    assert len(set(summary.data_sha256.values())) == 3
    assert [summary.config_sha256, summary.metrics_sha256] == [sha256(run.config), sha256(run.metrics)]
    assert [summary.weights_sha256, summary.logits_sha256] == [sha256(run.weights), sha256(run.logits)]
    assert summary.teacher_weights_sha256 == sha256(teacher.weights)
    assert read_summary(teacher.path).teacher_weights_sha256 is None


def test_the_summary_has_the_keys_of_run_group_and_baseline(
    config: RunConfig, run: RunDirectory, summary: RunSummary, teacher: RunDirectory
) -> None:
    identity = run_identity(config, teacher.key)
    assert (summary.run_key, summary.teacher_key) == (run.key, teacher.key)
    assert (summary.group_key, summary.baseline_key) == (group_key(identity, config), baseline_key(identity))


def test_numbers_of_the_summary_follow_from_the_saved_logits(
    run: RunDirectory, summary: RunSummary, teacher: RunDirectory
) -> None:
    logits = {name: tensor.numpy() for name, tensor in load_file(run.logits).items()}
    test, labels = logits["test_logits"], logits["test_labels"]
    teacher_logits = load_file(teacher.logits)["test_logits"].numpy()
    assert (test.dtype, labels.dtype) == (np.float32, np.int64)
    assert summary.test_acc_best == metrics.accuracy(test, labels)
    assert summary.best_val_acc == metrics.accuracy(logits["val_logits"], logits["val_labels"])
    assert summary.agreement == metrics.agreement(test, teacher_logits)
    assert summary.kl_t4 == metrics.kl_divergence(teacher_logits, test, 4.0)
    assert summary.teacher_test_acc == metrics.accuracy(teacher_logits, labels)


def test_metrics_have_a_row_per_epoch_and_lead_to_the_best(run: RunDirectory, summary: RunSummary) -> None:
    table = pd.read_csv(run.metrics)
    assert list(table.columns) == [
        "epoch", "lr", "train_loss", "ce", "kd", "train_acc", "val_loss", "val_acc", "grad_norm", "images_per_second",
        "seconds",
    ]  # fmt: skip
    assert table.epoch.tolist() == [1, 2, 3]
    assert summary.best_val_epoch == int(table.epoch[table.val_acc.idxmax()])  # the earliest of equals
    assert summary.best_val_acc == table.val_acc.max()
    assert np.allclose(table.train_loss, 0.5 * table.ce + 0.5 * table.kd)
    assert summary.images_per_second == pytest.approx(table.images_per_second[1:].median())
    assert summary.train_seconds == pytest.approx(table.seconds.sum())


def test_saved_weights_give_the_saved_logits(run: RunDirectory) -> None:
    recorded = parse(OmegaConf.load(run.config))
    network = build(recorded.student, SPEC)
    network.body.load_state_dict(load_file(run.weights))
    dataset = load(recorded.data, "cpu")
    logits = predict(network.to(memory_format=torch.channels_last), dataset, dataset.test, recorded.runtime)
    assert torch.equal(logits, load_file(run.logits)["test_logits"])


def test_the_recorded_config_is_resolved_and_is_the_same_run(run: RunDirectory) -> None:
    recorded = parse(OmegaConf.load(run.config))
    assert recorded.runtime.device == "cpu"
    assert isinstance(recorded.runtime.threads, int)
    assert recorded.teacher
    assert recorded.teacher.cache == "off"
    assert complete(recorded) == run


def test_the_log_has_a_line_per_epoch(run: RunDirectory) -> None:
    text = run.log.read_text()
    for epoch in (1, 2, 3):
        assert f"epoch {epoch}/3: loss" in text
    assert "images/s" in text


def test_the_test_set_is_evaluated_with_the_last_and_with_the_best_weights(
    config: RunConfig, run: RunDirectory
) -> None:
    last: list[float] = []

    def best_predicts_one_class(learners: Sequence[Learner], batches: Batches, epochs: int) -> None:
        fit(learners, batches, epochs)
        (learner,) = learners
        dataset = batches.dataset
        logits = predict(learner.student, dataset, dataset.test, learner.runtime)
        last.append(metrics.accuracy(logits.numpy(), dataset.test.labels.numpy()))
        assert learner.best
        weights = learner.best["weights"]
        weights["fc.weight"].zero_()
        weights["fc.bias"].copy_(torch.arange(10.0) == 7)
        learner.best["epoch"] = 1

    root = f"output_root={run.path.parents[1]}/two"
    other = composed_once(*SMALL, *NARROW, root, "method=ce", "recipe.epochs=2")
    (result,) = run_with_retries([other], train=best_predicts_one_class)
    assert result.directory, result.error
    found, labels = result.directory.read_summary(), load_file(result.directory.logits)["test_labels"]
    assert found.best_val_epoch == 1
    assert found.test_acc_final == last[0]
    assert found.test_acc_best == float((labels == 7).double().mean())
    assert load_file(result.directory.weights)["fc.bias"].argmax() == 7
