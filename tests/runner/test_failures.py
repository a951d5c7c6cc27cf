"""failure.json: the error of a run that failed, and of no other."""

import json
import signal
from collections.abc import Callable

import pytest

from kdbench.config import RunConfig
from kdbench.report.build import build_report
from kdbench.rundir.unfinished import read_failure
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import resolve_run
from kdbench.system.signals import Interrupted
from tests.conftest import complete
from tests.loss_terms import nan_at
from tests.runner.test_nonfinite import with_kd_times
from tests.runner.trainers import at, raising, with_memory_for

Small = Callable[..., RunConfig]

pytestmark = pytest.mark.usefixtures("trained_teachers")


def test_a_diverged_run_records_its_error_until_it_is_continued(small: Small) -> None:
    config = small("method=logit", "recipe.epochs=3", "checkpoint.every_epochs=1")
    (result,) = run_with_retries([config], train=with_kd_times(nan_at(4)))
    assert result.error
    directory = resolve_run(config)[1]
    failure = read_failure(directory.path)
    assert failure is not None
    assert (failure.code, failure.epoch) == ("not_finite", 2)
    assert failure.message.startswith("epoch 2, step 2: ")
    assert directory.has_failed()
    assert complete(config).path == directory.path
    assert not directory.failure.exists()


def test_the_record_has_the_keys_that_the_summary_of_the_complete_run_has(small: Small) -> None:
    config = small("method=logit")
    run_with_retries([config], train=with_kd_times(nan_at(1)))
    failure = read_failure(resolve_run(config)[1].path)
    assert failure is not None
    summary = json.loads(complete(config).summary.read_text())
    known = {key: value for key, value in failure.run.items() if key != "environment"}
    assert {"group_key", "baseline_key", "role", "num_params", "recipe", "teacher_key"} <= known.keys()
    assert {key: summary[key] for key in known} == known


def test_a_report_names_the_run_that_diverged_beside_the_one_that_did_not(small: Small) -> None:
    good, bad = small("method=logit"), small("method=logit", "seed=1")
    complete(good)
    run_with_retries([bad], train=with_kd_times(nan_at(1)))
    directory = resolve_run(bad)[1]
    report = build_report([resolve_run(good)[1].path, directory.path])
    (failed,) = report.failed
    assert (failed.student, failed.teacher, failed.method, failed.seed) == ("resnet8", "resnet20", "logit", 1)


def test_an_interrupted_run_has_not_failed(small: Small) -> None:
    config = small("method=ce", "recipe.epochs=2")
    with pytest.raises(Interrupted):
        run_with_retries([config], train=at(("resnet8", "ce"), (0, 1), raising(Interrupted(signal.SIGINT))))
    assert not resolve_run(config)[1].has_failed()


def test_an_error_of_the_whole_group_is_recorded_for_its_run(small: Small) -> None:
    config = small("method=ce", "recipe.epochs=2")
    (result,) = run_with_retries([config], train=with_memory_for(0))
    assert result.error
    failure = read_failure(resolve_run(config)[1].path)
    assert failure is not None
    assert failure.code == "out_of_memory"
    assert not resolve_run(config)[1].lock().file.exists()
