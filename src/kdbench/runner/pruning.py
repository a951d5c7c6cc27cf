"""Reports of a run's epochs to the search that it is a trial of, and its end where the search prunes it."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from kdbench.config import RunConfig
from kdbench.config.sections import TrialConfig
from kdbench.errors import PrunedError, first_line
from kdbench.runner.trials import build_pruner, open_storage, without_warnings
from kdbench.train.learner import Learner, nothing

if TYPE_CHECKING:
    from optuna.trial import Trial

log = logging.getLogger(__name__)


class Saving(Protocol):
    """The run's checkpoints."""

    def save(self) -> None: ...


def after_epoch(config: RunConfig, learner: Learner, checkpoints: Saving) -> Callable[[], None]:
    """Return what a run calls after each epoch: nothing, unless it is a trial of a search that prunes."""
    return TrialReporter(config.trial, learner, checkpoints).report if config.trial else nothing


class TrialReporter:
    """Reporter of validation accuracies, one an epoch. A storage that cannot be reached costs one line, and no run.

    Args:
        config: the trial.
        learner: learner of the run.
        checkpoints: where the state of a pruned run is kept.
    """

    def __init__(self, config: TrialConfig, learner: Learner, checkpoints: Saving) -> None:
        self.config = config
        self.learner = learner
        self.checkpoints = checkpoints
        self.trial: Trial | None = None
        self.reported: set[int] = set()
        self.reachable = True

    def report(self) -> None:
        """Report the epochs that were not reported yet.

        Raises:
            PrunedError: the search ends the run; its checkpoint is written.
        """
        learner = self.learner
        if not self.reachable or not self.should_prune() or learner.epoch >= learner.recipe.epochs:
            return
        self.checkpoints.save()
        raise PrunedError(
            f"pruned ({self.config.pruner['name']}) after epoch {learner.epoch} of {learner.recipe.epochs} with a "
            f"validation accuracy of {100 * learner.rows[-1]['val_acc']:.2f}%; a command without the search continues "
            "the run",
            code="pruned",
            key="hydra.sweeper.pruner",
        )

    def should_prune(self) -> bool:
        """Report, and return whether the search would end the run now."""
        try:
            with without_warnings():
                trial = self.trial = self.trial or self.find()
                for row in self.learner.rows:
                    epoch = int(row["epoch"])
                    if epoch not in self.reported:
                        trial.report(row["val_acc"], epoch)
                        self.reported.add(epoch)
                return trial.should_prune()
        except Exception as error:  # of the storage, which is another program's; the training goes on
            log.info("the search cannot be reported to, and does not prune this run any more: %s", first_line(error))
            self.reachable = False
            return False

    def find(self) -> "Trial":
        """Return the trial in the storage, with the epochs that an earlier process has reported."""
        import optuna

        config = self.config
        study = optuna.load_study(
            study_name=config.study,
            storage=open_storage(config.storage),
            sampler=optuna.samplers.RandomSampler(),  # draws nothing: the settings are the run's own
            pruner=build_pruner(config.pruner, self.learner.recipe.epochs),
        )
        frozen = study.get_trials(deepcopy=False)[config.number]
        self.reported = set(frozen.intermediate_values)
        return optuna.trial.Trial(study, frozen._trial_id)
