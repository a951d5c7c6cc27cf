"""Trials of a search in its storage: the next to try, the processes that hold them, and their results.

A trial has the lock file of the process that drew it, which that process holds while it runs. Trials of dead processes
are taken over with their values: a run is resumed by its run key, so that no training is lost.
"""

import contextlib
import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import BusyError, ConfigError, RunError
from kdbench.rundir.lock import LEASE, Lock
from kdbench.runner.trials import without_warnings
from kdbench.search.options import Options
from kdbench.search.settings import GRID, SearchKeys, build_sampler, derived_seed
from kdbench.search.space import SUBJECT

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

OWNER, DEFAULT, REPEATED, ATTEMPTS, LOST = "owner", "default", "repeated", "attempts", "lost"
COUNTS, SAMPLER = "counts", "sampler"
"""Attributes of a trial: the lock of its process; it has default values; it repeats another; how many processes worked
on it; how often it lacked memory or lost its process; a failure that is a result; the sampler that drew it."""
MOST_REPEATS = 20
"""Draws of settings that were tried already, before one that was not is taken at random."""
MOST_SETTINGS = 20_000
"""Largest number of settings of a space that are listed to see which were not tried."""
POLL = 0.2
SLOW_PROBE = 1.0
"""Seconds after which the answer that a process lives is kept for `LEASE` seconds: it is on another host."""


@dataclass(frozen=True)
class HeldTrial:
    """A trial that this process holds: its arm, its number, and its setting."""

    arm: "Arm"
    number: int
    params: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"trial {self.number}" + (f" of {self.arm.label}" if self.arm.label else "")


class Members:
    """The processes of a search: each holds a lock file while it works, and one at a time draws trials."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.mutex = Lock(folder / f"search_{name}.lock", f"search {name}")
        self.alive_until: dict[str, float] = {}
        self.rename()

    def rename(self) -> None:
        """Give this process the name of a new lock file."""
        self.own = f"search_{self.name}_{secrets.token_hex(6)}.lock"
        self.presence = Lock(self.folder / self.own, f"process of search {self.name}")

    @contextmanager
    def present(self) -> Iterator[None]:
        """Hold the lock file of this process in the block."""
        self.presence.acquire(wait=True)
        try:
            yield
        finally:
            self.presence.release()

    def renew(self) -> None:
        """Take a new lock file where another process has taken over that of this one, as after a long suspension."""
        try:
            self.presence.check()
        except RunError:
            with contextlib.suppress(OSError):  # the file may be gone, and is another process's in any case
                self.presence.release()
            self.rename()
            self.presence.acquire(wait=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other processes from drawing trials in the block."""
        while True:
            try:
                self.mutex.acquire(wait=False)
                break
            except BusyError:
                time.sleep(POLL)
        try:
            yield
        finally:
            self.mutex.release()

    def is_alive(self, owner: str) -> bool:
        """Return True for a process of the search that lives. For one of another host this takes up to a minute."""
        started = time.monotonic()
        if owner == self.own or started < self.alive_until.get(owner, 0.0):
            return True
        lock = Lock(self.folder / owner, "process of a search")
        if not owner or not lock.file.exists():
            return False
        try:
            lock.acquire(wait=False)
        except BusyError:
            now = time.monotonic()
            if now - started > SLOW_PROBE:
                self.alive_until[owner] = now + LEASE
            return True
        lock.release()
        return False


class Arm:
    """One study of Optuna: the whole search, or one of the options that get equal trials.

    Args:
        study: the study.
        storage: its storage.
        options: space of the arm.
        keys: keys of the sweeper.
        label: option of the arm, such as `method=logit`; empty for the whole search.
    """

    def __init__(self, study: "Study", storage: "BaseStorage", options: Options, keys: SearchKeys, label: str) -> None:
        self.study = study
        self.storage = storage
        self.options = options
        self.keys = keys
        self.label = label
        self.settings = options.settings(MOST_SETTINGS)
        self.left_alone: set[int] = set()
        """Trials that this process could not finish: another process, or another command, repeats them."""

    def trials(self) -> "list[FrozenTrial]":
        """Return all trials but those that repeat another."""
        return [t for t in self.study.get_trials(deepcopy=False) if not t.user_attrs.get(REPEATED)]

    def finished(self) -> "list[FrozenTrial]":
        """Return the trials that count: complete, pruned, or failed with a result."""
        return [t for t in self.trials() if is_finished(t)]

    def running(self) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return [t for t in self.trials() if t.state == TrialState.RUNNING]

    def room(self) -> int:
        """Return how many more trials may be drawn. Read at once: another process may finish one in between."""
        from optuna.trial import TrialState

        used = [t for t in self.trials() if is_finished(t) or t.state == TrialState.RUNNING]
        return self.keys.n_trials - len(used)

    def enqueue_defaults(self) -> None:
        """Enqueue the default setting of each combination of options as first trials, where the space holds it.

        Those whose other options, such as a recipe, are the config's own are marked as default settings, and are first.
        """
        marked = [(combination, self.is_default(combination)) for combination in self.options.space.combinations()]
        for combination, is_default in sorted(marked, key=lambda pair: not pair[1])[: self.keys.n_trials]:
            params, outside = self.options.default_params(combination)
            if not outside:
                self.study.enqueue_trial(params, user_attrs={DEFAULT: True} if is_default else None)

    def is_default(self, combination: Mapping[str, Any]) -> bool:
        """Return True if options compose the config that those of the subject and of `per` compose alone."""
        compared = (*SUBJECT, *self.keys.groups)
        own = {key: value for key, value in combination.items() if key in compared}
        if own == combination:
            return True
        space = self.options.space
        left_out = [d.text(combination[d.key]) for d in space.choosing if d.key not in compared]
        chosen = space.chosen(combination)
        try:
            default = self.options.node(tuple(text for text in chosen if text not in left_out))
        except ConfigError:  # an option has no default
            return False
        return bool(default == self.options.config_of(combination))

    # All of the following is done while no other process draws trials

    def take_over(self, dead: Sequence[str], own: str) -> Iterator[HeldTrial]:
        """Take over the trials of dead processes.

        Args:
            dead: names of their locks.
            own: name of this process's lock.
        """
        from optuna.trial import TrialState

        for trial in self.running():
            owner = trial.user_attrs.get(OWNER)
            if owner is None:  # killed while it was drawn
                self.set(trial, {REPEATED: True})
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif (owner in dead or owner == "") and trial.number not in self.left_alone:
                self.set(trial, {OWNER: own, ATTEMPTS: trial.user_attrs.get(ATTEMPTS, 1) + 1})
                yield HeldTrial(self, trial.number, dict(trial.params))

    def draw(self, own: str) -> HeldTrial | None:
        """Draw a trial; None if every setting of the space was tried.

        Args:
            own: name of this process's lock.
        """
        from optuna.trial import TrialState

        trials = self.trials()
        drawn = [t for t in trials if t.state != TrialState.WAITING]
        known = {setting_key(t.params) for t in drawn}
        untried = None if self.settings is None else [s for s in self.settings if setting_key(s) not in known]
        if untried is not None and not untried:
            return None
        made = len(self.study.get_trials(deepcopy=False))
        for repeats in range(MOST_REPEATS + 1):
            seed = derived_seed(self.keys.sampler.get("seed", 0), self.study.study_name, made + repeats)
            waiting = len(drawn) < len(trials) and repeats == 0
            if untried and not waiting and self.keys.sampler["name"] == GRID:
                self.study.enqueue_trial(untried[0])
            elif untried and repeats == MOST_REPEATS:
                self.study.enqueue_trial(random.Random(seed).choice(untried))
            trial = self.ask(seed)
            if setting_key(trial.params) not in known or untried is None:
                break
            self.set_attrs(trial.number, {REPEATED: True})
            self.study.tell(trial.number, state=TrialState.FAIL)
        self.set_attrs(trial.number, {OWNER: own, SAMPLER: self.keys.sampler["name"]})
        return trial

    def ask(self, seed: int) -> HeldTrial:
        """Return a new trial with values for the keys that its options have."""
        with without_warnings():
            self.study.sampler = build_sampler(self.keys.sampler, seed)
            trial = self.study.ask()
            params = {d.key: d.suggest(trial) for d in self.options.space.choosing}
            for dimension in self.options.dimensions(params):
                params[dimension.key] = dimension.suggest(trial)
        return HeldTrial(self, trial.number, params)

    # Results of a trial

    def is_held(self, number: int, own: str) -> bool:
        """Return True if a trial is still to be finished by the process with this lock: no other one has taken it over.

        Args:
            number: number of the trial.
            own: name of the process's lock.
        """
        from optuna.trial import TrialState

        trial = self.study.get_trials(deepcopy=False)[number]
        return trial.state == TrialState.RUNNING and trial.user_attrs.get(OWNER) == own

    def set(self, trial: "FrozenTrial", attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            self.storage.set_trial_user_attr(trial._trial_id, name, value)

    def set_attrs(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial by its number."""
        self.set(self.study.get_trials(deepcopy=False)[number], attributes)

    def attributes(self, number: int) -> dict[str, Any]:
        """Return the attributes of a trial by its number."""
        return self.study.get_trials(deepcopy=False)[number].user_attrs

    def release(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Leave a trial to another process, or to the next command."""
        self.set_attrs(number, {**attributes, OWNER: ""})
        self.left_alone.add(number)


def setting_key(params: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return a setting in a form that is equal for equal settings."""
    return tuple(sorted((key, str(value)) for key, value in params.items()))


def is_finished(trial: "FrozenTrial") -> bool:
    """Return True for a trial that counts: it is complete, pruned, or failed with a result."""
    from optuna.trial import TrialState

    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or bool(trial.user_attrs.get(COUNTS))
