"""Teachers whose weights were given: evaluated once, and stored like any run."""

import logging
from typing import Any

from kdbench import metrics
from kdbench.config import RunConfig
from kdbench.data.dataset import Dataset
from kdbench.errors import ConfigError
from kdbench.models import summarize
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import checkpoint_path, given_config, teacher_directory
from kdbench.rundir.summary import names
from kdbench.runner.results import Predictions, fidelity, write_result
from kdbench.system.logs import RunLog
from kdbench.teachers.store import build_teacher, load_checkpoint
from kdbench.train.evaluate import predict

log = logging.getLogger(__name__)

UNKNOWN: dict[str, Any] = names(
    recipe=None, seed=None, init_seed=None, data_seed=None, epochs=None, best_val_epoch=None, test_acc_final=None,
    train_seconds=None, images_per_second=None, peak_memory_bytes=None,
)  # fmt: skip
"""Keys of a summary that are null for given weights, whose training is unknown."""


def import_teacher(config: RunConfig, dataset: Dataset) -> RunDirectory:
    """Return the run directory of `teacher.checkpoint`, written first if it is not there.

    Args:
        config: resolved config of a run with given teacher weights.
        dataset: data set, to evaluate the weights on.

    Raises:
        ConfigError: the weights give logits that are not finite.
    """
    run, directory = given_config(config), teacher_directory(config)
    if directory.is_shared(config):
        return directory
    with directory.lock("the evaluation of teacher").held(wait=config.on_busy == "wait"):
        if directory.is_complete():
            return directory
        network = build_teacher(config, dataset.spec)
        remarks = load_checkpoint(network, config)
        predictions = Predictions(
            predict(network, dataset, dataset.val, config.runtime),
            predict(network, dataset, dataset.test, config.runtime),
        )
        if not bool(predictions.val.isfinite().all() and predictions.test.isfinite().all()):
            raise ConfigError(
                f"teacher.checkpoint={checkpoint_path(config)} gives logits that are not finite",
                code="not_finite",
                key="teacher.checkpoint",
            )
        directory.create()
        directory.write_config(run)
        accuracy = metrics.accuracy(predictions.val.numpy(), dataset.val.labels.cpu().numpy())
        run_log = RunLog(directory.log)
        run_log.open()
        try:
            for remark in remarks:
                log.info("teacher.checkpoint: %s", remark)
            log.info("%s: validation accuracy %.2f%%", checkpoint_path(config), 100 * accuracy)
        finally:
            run_log.close()
        model_summary = summarize(run.student, dataset.spec, "teacher", trained=False)
        training = UNKNOWN | names(teacher_test_acc=None, teacher_key=None) | fidelity(predictions.test, None)
        state = network.body.state_dict()
        write_result(directory, run, dataset, model_summary, state, {}, predictions, training)
    return directory
