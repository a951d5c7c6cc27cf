"""Results of a search: trials.csv, the Pareto front, and what is printed."""

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.config import RunConfig
from kdbench.errors import RunError
from kdbench.report.search.read import BEST_FILE, DIVERGED, RESULTS, TRIALS_FILE
from kdbench.rundir.directory import roots_of
from kdbench.rundir.files import atomic_path
from kdbench.rundir.summary import KEY, Status
from kdbench.search.search import Search, is_of_storage, objectives_text
from kdbench.search.trials import ATTEMPTS, DEFAULT, Arm
from kdbench.search.winners import Best, first_name, folder_of_run, label_of, summary_in, winners_of, write_best
from kdbench.study.winners import Winner
from kdbench.sweep.overrides import PLAIN, override

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FRONT_FILE = "front.csv"
NEEDED = ("trust", "runtime")
"""First names of keys that final runs need as the trials did, and that no setting has."""
FIRST = (
    "arm", "number", "status", "default", "student", "teacher", "method", "role",
    "val_acc", "seconds", "params", "macs",
)  # fmt: skip
LAST = ("epochs", "attempts", "run_key", "run", "error")
RECORDED = ("student", "teacher", "method", "role", "run_key", "error", "status")
"""Columns that are attributes of a trial."""
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
        rows = [trial_row(arm, trial, roots_of(first)) for arm in search.arms for trial in arm.trials()
                if trial.user_attrs]  # fmt: skip
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
        winners, unread = winners_of(search, roots_of(first)) if "val_acc" in search.objectives else ([], [])
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
    if unread:
        print(
            f"complete trials that are no candidates, since their runs have no readable summary.json below "
            f"{' or '.join(map(str, roots_of(first)))}: {', '.join(unread)}",
            flush=True,
        )
    if winners:
        print_commands(commands_of_finals(search, folder, winners, first, config_dir), first.seed)


def trial_row(arm: Arm, trial: "FrozenTrial", roots: Sequence[Path]) -> Row:
    """Return a row of trials.csv. Accuracies are in per cent.

    Args:
        arm: study of the trial.
        trial: the trial.
        roots: see `folder_of_run`.
    """
    attributes = trial.user_attrs
    run = folder_of_run(trial, roots)
    scores = dict(attributes.get("scores") or {})
    reached = max(trial.intermediate_values, default=None)
    if reached is None and run and (summary := summary_in(run)):
        reached = summary.epochs
    if "val_acc" not in scores and trial.intermediate_values:  # pruned: the best epoch so far
        scores["val_acc"] = max(trial.intermediate_values.values())
    if "val_acc" in scores:
        scores["val_acc"] = round(100 * scores["val_acc"], 6)
    scores |= {name: round(scores[name]) for name in ("params", "macs") if name in scores}
    return {
        **trial.params,  # student, teacher and method of a run are its own: plain training has no teacher
        **dict.fromkeys(RECORDED),
        **{name: attributes[name] for name in RECORDED if name in attributes},
        **scores,
        "arm": arm.label,
        "number": trial.number,
        "default": bool(attributes.get(DEFAULT)),
        "setting": " ".join(arm.options.searched(trial.params)),
        "run": run,
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


# Several objectives


def pareto_front(rows: Sequence[Row], search: Search) -> list[Row]:
    """Return the complete trials that no other is at least as good as in every objective and better in one."""
    directions = [direction.name for direction in search.arms[0].study.directions]
    able = [row for row in rows if row["status"] == Status.COMPLETE]

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
            reached = objectives_text(search.objectives, values)
            print(f"  {label_of(row['arm'], row['number'])}: {reached}  {row['setting']}")
    for one in best:
        tried = len({row[KEY.run_key] for row in rows if same_subject(row, one.winner)})
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


def commands_of_finals(
    search: Search, folder: Path, best: Sequence[Best], first: RunConfig, config_dir: str | None
) -> list[list[str]]:
    """Return the commands that train the winners with other seeds, and report them. Arguments: see `write_results`."""
    # Hydra takes one folder by its flag; code beside the user's is found through that flag alone.
    place = str(folder.absolute())
    results = (
        f"hydra.searchpath=[file://{place}]"
        if PLAIN.fullmatch(place)  # for fewer quotes
        else override("hydra.searchpath", [f"file://{place}"])
    )
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


def same_subject(row: Row, winner: Winner) -> bool:
    subject = (winner.student, winner.teacher, winner.method)
    return (row["student"], row["teacher"], row["method"]) == subject and row["status"] in RESULTS


def gain_text(rows: Sequence[Row], best: Best) -> str:
    """Return by how much a winner is better than the default setting of its method, where that was tried."""
    defaults = [row for row in rows if row["default"] and same_subject(row, best.winner)]
    if not defaults:
        return ""
    row = defaults[0]
    if row["status"] == Status.PRUNED:
        return " (the default setting was pruned)"
    if row["status"] == DIVERGED:
        return " (the default setting diverged)"
    return f" ({best.winner.score - row['val_acc']:+.2f} points over the default setting)"
