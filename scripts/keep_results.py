"""Copy finished runs in their small form: metrics, summary, and test logits in half precision.

    python scripts/keep_results.py outputs/runs --out results/lab/runs

What every table of a report is made of, at about 0.2 MB a run. Runs that taught others keep their weights and logits as
they are, so that students can be trained from the same teachers.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from kdbench.report.runs import Run, find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    runs = find(given.paths).runs
    teachers = {run["teacher_key"] for run in runs}
    for run in runs:
        keep(run, given.out / run.path.name, is_teacher=run["run_key"] in teachers)
    size = sum(file.stat().st_size for file in given.out.rglob("*") if file.is_file())
    print(f"{len(runs)} runs in {given.out}, {size / 1e6:.1f} MB")


def keep(run: Run, folder: Path, is_teacher: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = ["metrics.csv", "summary.json"]
    if is_teacher:
        whole += ["logits.safetensors", "best.safetensors"]
    for name in whole:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, folder / name)
    if not is_teacher and run.logits.is_file():
        tensors = load_file(run.logits)
        small = {
            "test_logits": tensors["test_logits"].astype(np.float16),
            "test_labels": tensors["test_labels"].astype(np.uint8),
        }
        save_file(small, folder / "logits.safetensors")


if __name__ == "__main__":
    main()
