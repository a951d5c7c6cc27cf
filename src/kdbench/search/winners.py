"""Winners of a search: the best trial of each student, teacher and method, in best.yaml and as experiments."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from kdbench.config import RunConfig
from kdbench.config.options import groups
from kdbench.errors import ConfigError, without_passwords
from kdbench.report.search.read import BEST_FILE, TRIALS_FILE
from kdbench.rundir.files import write_text
from kdbench.rundir.summary import RunSummary, read_summary
from kdbench.search.search import Search
from kdbench.search.space import SUBJECT
from kdbench.search.study import NO_PART
from kdbench.search.trials import DEFAULT, SAMPLER
from kdbench.study.winners import CHOSEN_BY, Candidate, Winner, winner_of, yaml_of
from kdbench.sweep.overrides import parse

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclasses.dataclass(frozen=True)
class Best:
    """Winner of a student, teacher and method, with the overrides of its runs and the number of trials behind it."""

    winner: Winner
    overrides: tuple[str, ...]
    trials: int
    experiment: str = ""

    @property
    def name(self) -> str:
        source = f" from {self.winner.teacher}" if self.winner.teacher else ""
        return f"{self.winner.student} {self.winner.method}{source}"


def winners_of(search: Search, roots: Sequence[Path]) -> tuple[list[Best], list[str]]:
    """Return the best complete trial of each student, teacher and method, and the trials whose runs cannot be read.

    Args:
        search: the search.
        roots: see `folder_of_run`.
    """
    by_subject: dict[tuple[str, str | None, str], list[tuple[Candidate, tuple[str, ...]]]] = {}
    unread = []
    for arm in search.arms:
        for trial in arm.finished():
            run = folder_of_run(trial, roots)
            if run is None:  # pruned or diverged
                continue
            summary = summary_in(run)
            if summary is None:
                unread.append(label_of(arm.label, trial.number))
                continue
            overrides = arm.options.overrides(trial.params)
            pair = next((o.partition("=")[2] for o in overrides if o.startswith("pair=")), None)
            setting, is_default = varied_of(arm.options.searched(trial.params)), bool(trial.user_attrs.get(DEFAULT))
            found = Candidate(pair, setting, [summary], [run], is_default)
            subject = (summary.student, summary.teacher, summary.method)
            by_subject.setdefault(subject, []).append((found, overrides))
    return name_experiments([best_of(candidates) for candidates in by_subject.values()]), unread


def varied_of(searched: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides of searched keys that are a setting: not those that choose what competes."""
    return tuple(text for text in searched if text.partition("=")[0] not in SUBJECT)


def best_of(candidates: Sequence[tuple[Candidate, tuple[str, ...]]]) -> Best:
    """Return the winner of one subject.

    Args:
        candidates: each complete trial, with the overrides of its run.
    """
    by = CHOSEN_BY[0]
    distinct = {candidate.summaries[0].run_key: (candidate, own) for candidate, own in candidates}
    _, own = max(distinct.values(), key=lambda pair: pair[0].score(by))  # of equals the first, as `winner_of`
    return Best(winner_of([candidate for candidate, _ in distinct.values()], by), own, len(distinct))


def folder_of_run(trial: "FrozenTrial", roots: Sequence[Path]) -> Path | None:
    """Return the directory of a complete trial's run; None for a trial without a result.

    Args:
        trial: the trial, which has the name of that directory.
        roots: output roots in which it may lie, the one of the search first, wherever they are by now.
    """
    stored = trial.user_attrs.get("run")
    if not stored:
        return None
    folders = [root / "runs" / Path(stored).name for root in roots]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def summary_in(run: Path) -> RunSummary | None:
    """Return the summary of a complete run; None where it cannot be read, or has no validation accuracy."""
    try:
        summary = read_summary(run)
    except (OSError, ConfigError):
        return None
    return summary if summary.best_val_acc is not None else None


def name_experiments(best: Sequence[Best]) -> list[Best]:
    """Return winners with a name for the experiment of each: that of the method, where it is clear."""
    methods = [one.winner.method for one in best]
    result = []
    for one in best:
        own = one.winner
        several = methods.count(own.method) > 1
        parts = [own.student, own.method, own.teacher or ""] if several else [own.method]
        result.append(dataclasses.replace(one, experiment="_".join(["best", *filter(None, parts)])))
    return result


def samplers_of(search: Search) -> str:
    """Return the samplers that drew the trials of a search, of which a later command may choose another."""
    drawn = {str(t.user_attrs[SAMPLER]) for arm in search.arms for t in arm.trials() if SAMPLER in t.user_attrs}
    return ", ".join(sorted(drawn)) or str(search.keys.sampler["name"])


def write_best(folder: Path, search: Search, first: RunConfig, best: Sequence[Best]) -> None:
    """Write best.yaml, in the form of a study's selected.yaml, and an experiment for each winner."""
    header = (
        f"# Best settings of search {search.name}, chosen by {CHOSEN_BY[0]} on validation images, in per cent; not on\n"
        f"# test data. The seed that chose ({first.seed}) does not report: train the winners with others, and\n"
        "# give this file to kdbench-report --select, which leaves the trials out. A pruned trial is no candidate.\n"
        "# The keys are those of a study's selected.yaml (docs/studies.md); trials.csv has every trial.\n"
    )
    content = {
        "study": search.name,
        "stage": "search",
        "search": {
            "storage": without_passwords(search.url),
            "sampler": samplers_of(search),
            "pruner": search.keys.pruner["name"],
            "n_trials": search.keys.n_trials,
            "per": list(search.keys.groups),
            "trials": TRIALS_FILE,
        },
        "chosen_by": CHOSEN_BY[0],
        "selection_seeds": [first.seed],
        "final_seeds": [],
        "winners": [dataclasses.asdict(one.winner) for one in best],
    }
    write_text(folder / BEST_FILE, header + yaml_of(content))
    experiments = folder / "experiment"
    experiments.mkdir(exist_ok=True)
    for file in experiments.glob("best_*.yaml"):  # of methods that have another name now
        if file.stem not in {one.experiment for one in best}:
            file.unlink()
    for one in best:
        write_text(experiments / f"{one.experiment}.yaml", experiment_text(one, search, first))


def experiment_text(best: Best, search: Search, first: RunConfig) -> str:
    """Return an experiment with the settings of a winner, without its seeds and where its runs are."""
    based, chosen, keys = [], [], OmegaConf.create({})
    for text in best.overrides:
        read = parse(text)
        key = read.key_or_group
        if first_name(key) in (*NO_PART, "seed", "init_seed", "data_seed"):
            continue
        if key == "experiment":  # an experiment that this one continues; in its place it would be overridden
            based += [f"  - {name}" for name in names_of(read.value())]
        elif key in groups():
            chosen.append(f"  - override /{key}: {read.get_value_element_as_str()}")
        else:
            OmegaConf.update(keys, key, read.value(), force_add=True)
    defaults = [*based, *(["  - _self_"] if based else []), *chosen]
    lines = [
        "# @package _global_",
        f"# Best of {best.trials} complete trials of search {search.name}: {best.name}, validation accuracy "
        f"{best.winner.score:.2f} %.",
        f"# Chosen with seed {first.seed}, which does not report this setting: train it with other seeds.",
        *(["defaults:", *defaults] if defaults else []),
    ]
    return "\n".join([*lines, OmegaConf.to_yaml(keys) if len(keys) else ""])


def names_of(value: Any) -> list[str]:
    """Return the options that a value of a group names: one, several in a list, or none."""
    return [str(name) for name in (value if isinstance(value, list) else [value]) if name is not None]


def first_name(key: str) -> str:
    """Return the section or group of a key."""
    return key.partition("@")[0].partition(".")[0].partition("/")[0]


def label_of(arm: str, number: int) -> str:
    """Return a trial for people: its arm, where there are several, and its number."""
    return f"{arm} {number}".strip()
