#!/usr/bin/env python3
"""Compare the runs under two output roots bit for bit, to show that a change of the code alters no numbers.

    scripts/compare_runs.py BEFORE AFTER

Runs are matched by their run keys. Compared are the weights, the logits and labels, and metrics.csv without the
columns that measure time. Exit code: 0 all equal, 1 a difference or a run on one side only.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

TIMING = {"seconds", "images_per_second"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    before, after = runs_by_key(given.before), runs_by_key(given.after)
    different = 0
    for key in sorted(before.keys() | after.keys(), key=lambda key: (before.get(key) or after[key]).name):
        if key not in before or key not in after:
            found, where = (before.get(key) or after[key]).name, "before" if key in before else "after"
            differences = [f"only {where}"]
        else:
            found, differences = after[key].name, differences_of(before[key], after[key])
        different += bool(differences)
        print(
            f"{'DIFFERS' if differences else 'equal':<8} {found}" + (f": {', '.join(differences)}" * bool(differences))
        )
    print(f"{len(before.keys() & after.keys())} runs compared, {different} differ")
    sys.exit(different > 0)


def runs_by_key(root: Path) -> dict[str, Path]:
    """Return the complete runs below a folder by their run keys, the last part of the folder's name."""
    return {file.parent.name.rpartition("_")[2]: file.parent for file in sorted(root.rglob("runs/*/summary.json"))}


def differences_of(before: Path, after: Path) -> list[str]:
    """Return the names of the files whose numbers differ."""
    names = [
        name for name in ("best.safetensors", "logits.safetensors") if not same_tensors(before / name, after / name)
    ]
    return names + ([] if rows_of(before) == rows_of(after) else ["metrics.csv"])


def same_tensors(before: Path, after: Path) -> bool:
    """Return whether two safetensors files hold the same names and the same bits."""
    a, b = load_file(before), load_file(after)
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def rows_of(run: Path) -> list[dict[str, str]] | None:
    """Return the rows of metrics.csv as text, without the columns that measure time; None for given weights."""
    if not (run / "metrics.csv").is_file():
        return None
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
