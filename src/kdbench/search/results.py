"""Results of a search: trials.csv, best.yaml, an experiment for each winner, and what is printed."""

import csv
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from kdbench.config import RunConfig
from kdbench.config.options import groups
from kdbench.errors import ConfigError, RunError, without_passwords
from kdbench.report.search.read import BEST_FILE, COMPLETE, TRIALS_FILE
from kdbench.rundir.files import atomic_path, write_text
from kdbench.rundir.summary import RunSummary, read_summary
from kdbench.search.search import Search, is_of_storage, shown
from kdbench.search.study import NO_PART
from kdbench.search.trials import ATTEMPTS, DEFAULT, SAMPLER, Arm
from kdbench.study.winners import CHOSEN_BY, Candidate, Winner, winner_of, yaml_of
from kdbench.sweep.overrides import override, parse

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FRONT_FILE = "front.csv"
SUBJECT = ("student", "teacher", "method", "pair")
"""Groups that say what competes with what; other options, such as a recipe, are part of a setting."""
NEEDED = ("trust", "runtime")
"""First names of keys that final runs need as the trials did, and that no setting has."""
FIRST = (
    "arm", "number", "status", "default", "student", "teacher", "method", "role",
    "val_acc", "seconds", "params", "macs",
)  # fmt: skip
LAST = ("epochs", "attempts", "run_key", "run", "error")
MOST_SHOWN = 10
Row = dict[str, Any]


def write_results(search: Search, folder: Path, first: RunConfig, config_dir: str | None) -> None:
    """Write the files of a search and print its best trials; what cannot be read any more is left out.

    Args:
        search: the search, finished or not.
        folder: OUTPUT_ROOT/searches/NAME.
        first: config of one of its runs, for its seed.
        config_dir: folder of further options that the command named.

    Raises:
        RunError: the files cannot be written.
    """
    try:
        rows = [trial_row(arm, trial) for arm in search.arms for trial in arm.trials() if trial.user_attrs]
    except Exception as error:
        if is_of_storage(error):  # reported by whatever used it first
            return
        raise
    rows = [row for row in rows if row["status"]]
    if not rows:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / TRIALS_FILE, rows, search)
        winners = winners_of(search) if "val_acc" in search.objectives else []
        if winners:
            write_best(folder, search, first, winners)
        front = pareto_front(rows, search) if len(search.objectives) > 1 else []
        if front:
            write_rows(folder / FRONT_FILE, front, search)
    except OSError as error:
        raise RunError(
            f"the results of search {search.name} cannot be written to {folder}: {error}",
            code="not_writable",
            key="output_root",
        ) from error
    show(search, folder, rows, front, winners)
    if winners:
        print_commands(following(search, folder, winners, first, config_dir), first.seed)


def trial_row(arm: Arm, trial: "FrozenTrial") -> Row:
    """Return a row of trials.csv. Accuracies are in per cent."""
    attributes = trial.user_attrs
    scores = dict(attributes.get("scores") or {})
    reached = max(trial.intermediate_values, default=None)
    if reached is None and (summary := summary_in(str(attributes.get("run") or ""))):
        reached = summary.epochs
    if "val_acc" not in scores and trial.intermediate_values:  # pruned: the best epoch so far
        scores["val_acc"] = max(trial.intermediate_values.values())
    if "val_acc" in scores:
        scores["val_acc"] = round(100 * scores["val_acc"], 6)
    scores |= {name: round(scores[name]) for name in ("params", "macs") if name in scores}
    names = ("student", "teacher", "method", "role", "run_key", "run", "error", "status")
    return {
        "arm": arm.label,
        "number": trial.number,
        "default": bool(attributes.get(DEFAULT)),
        **{name: attributes.get(name) for name in names},
        **scores,
        **trial.params,
        "epochs": reached,
        "attempts": attributes.get(ATTEMPTS, 1),
    }


def write_rows(file: Path, rows: Sequence[Row], search: Search) -> None:
    """Write rows as CSV: what every trial has, then the searched keys, then the run."""
    keys = dict.fromkeys(d.key for arm in search.arms for d in arm.options.space.dimensions)
    columns = [*FIRST, *(key for key in keys if key not in FIRST), *LAST]
    with atomic_path(file) as temporary, temporary.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


# Winners


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


def winners_of(search: Search) -> list[Best]:
    """Return the best complete trial of each student, teacher and method."""
    by_subject: dict[tuple[str, str | None, str], list[tuple[Candidate, tuple[str, ...]]]] = {}
    for arm in search.arms:
        for trial in arm.finished():
            run = str(trial.user_attrs.get("run") or "")
            summary = summary_in(run)
            if summary is None:
                continue
            overrides = arm.options.overrides(trial.params)
            pair = next((o.partition("=")[2] for o in overrides if o.startswith("pair=")), None)
            found = Candidate(pair, varied_of(arm.options.searched(trial.params)), [summary], [Path(run)])
            subject = (summary.student, summary.teacher, summary.method)
            by_subject.setdefault(subject, []).append((found, overrides))
    return named([best_of(candidates) for candidates in by_subject.values()])


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
    return Best(winner_of([candidate for candidate, _ in distinct.values()], by), own, len(candidates))


def summary_in(run: str) -> RunSummary | None:
    """Return the summary of a trial's run; None without one."""
    if not run:
        return None
    try:
        summary = read_summary(Path(run))
    except (OSError, ConfigError):
        return None
    return summary if summary.best_val_acc is not None else None


def named(best: Sequence[Best]) -> list[Best]:
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


# Several objectives


def pareto_front(rows: Sequence[Row], search: Search) -> list[Row]:
    """Return the complete trials that no other is at least as good as in every objective and better in one."""
    directions = [direction.name for direction in search.arms[0].study.directions]
    able = [row for row in rows if row["status"] == COMPLETE]

    def costs(row: Row) -> tuple[float, ...]:
        return tuple(
            -row[name] if direction == "MAXIMIZE" else row[name]
            for name, direction in zip(search.objectives, directions, strict=True)
        )

    front = []
    for row in able:
        own = costs(row)
        others = [costs(other) for other in able]
        if not any(all(a <= b for a, b in zip(theirs, own, strict=True)) and theirs != own for theirs in others):
            front.append(row)
    return sorted(front, key=costs)


# What is printed


def show(search: Search, folder: Path, rows: Sequence[Row], front: Sequence[Row], best: Sequence[Best]) -> None:
    """Print the best trials, and how many there were."""
    counts = {
        status: sum(row["status"] == status for row in rows) for status in dict.fromkeys(r["status"] for r in rows)
    }
    print(f"\nsearch {search.name}: {', '.join(f'{n} {status}' for status, n in counts.items())}")
    if front:
        print(f"Pareto front of {' and '.join(search.objectives)}, {len(front)} trial{'' if len(front) == 1 else 's'}:")
        for row in front[:MOST_SHOWN]:
            values = [row[name] / 100 if name == "val_acc" else row[name] for name in search.objectives]
            print(f"  {label_of(row)}: {shown(search.objectives, values)}  {setting_of(row, search)}")
    for one in best:
        tried = sum(same_subject(row, one.winner) for row in rows)
        print(
            f"{one.name}: validation accuracy {one.winner.score:.2f}%{gain_text(rows, one)}, "
            f"best of {tried} trial{'' if tried == 1 else 's'}"
            f"  {' '.join(one.winner.overrides)}"
        )
    print(f"files: {folder}")


def print_commands(commands: Sequence[Sequence[str]], seed: int) -> None:
    """Print the commands that follow a search, which used a seed."""
    print(f"The seed that chose these settings ({seed}) does not report them. To report them with others:")
    print(*(f"  {shlex.join(command)}" for command in commands), sep="\n", flush=True)


def following(
    search: Search, folder: Path, best: Sequence[Best], first: RunConfig, config_dir: str | None
) -> list[list[str]]:
    """Return the commands that train the winners with other seeds, and report them. Arguments: see `write_results`."""
    # Hydra takes one folder by its flag; code beside the user's is found through that flag alone.
    results = override("hydra.searchpath", [f"file://{folder.absolute()}"])
    folders = [config_dir, results] if config_dir else [str(folder)]
    given = [one.text for one in search.arms[0].options.space.fixed if first_name(one.key) in NEEDED]
    train = [
        "kdbench", "-m", "--config-dir", *folders, f"experiment={','.join(one.experiment for one in best)}",
        f"seed={','.join(str(seed) for seed in range(first.seed + 1, first.seed + 4))}", *given,
        override("output_root", first.output_root),
        *([override("shared_roots", list(first.shared_roots))] if first.shared_roots else []),
    ]  # fmt: skip
    report = [
        "kdbench-report",
        str(folder.parent.parent / "runs"),
        "--select",
        str(folder / BEST_FILE),
        "--out",
        "report",
    ]
    return [train, report]


def label_of(row: Mapping[str, Any]) -> str:
    return f"{row['arm']} {row['number']}".strip()


def setting_of(row: Row, search: Search) -> str:
    """Return the searched keys of a trial with their values."""
    keys = dict.fromkeys(d.key for arm in search.arms for d in arm.options.space.dimensions)
    return " ".join(f"{key}={row[key]}" for key in keys if key in row)


def same_subject(row: Row, winner: Winner) -> bool:
    subject = (winner.student, winner.teacher, winner.method)
    return (row["student"], row["teacher"], row["method"]) == subject and row["status"] not in ("refused", "failed")


def gain_text(rows: Sequence[Row], best: Best) -> str:
    """Return by how much a winner is better than the default setting of its method, where that was tried."""
    defaults = [row for row in rows if row["default"] and same_subject(row, best.winner)]
    if not defaults:
        return ""
    row = defaults[0]
    if row["status"] != COMPLETE:
        return (
            f" (the default setting was {row['status']})"
            if row["status"] == "pruned"
            else " (the default setting diverged)"
        )
    return f" ({best.winner.score - row['val_acc']:+.2f} points over the default setting)"
