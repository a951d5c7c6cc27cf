"""Copy finished runs in their small form: metrics, summary, and test logits in half precision.

    python scripts/keep_results.py outputs/runs --out results/lab/runs

Every table of a report can be made from it, at about 0.2 MB a run. Teachers of these runs keep their weights and
logits as they are, so that students can be trained with the same teachers.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from kdbench.report.runs import LOGITS, METRICS, read_runs
from kdbench.rundir.summary import SUMMARY_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = read_runs(options.paths).runs
    is_teacher = runs.run_key.isin(runs.teacher_key)
    for run, whole in zip(runs.path, is_teacher, strict=True):
        keep(run, options.out / run.name, whole)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{len(runs)} runs in {options.out}, {size / 1e6:.1f} MB")


def keep(run: Path, folder: Path, whole: bool) -> None:
    """Copy a run directory.

    Args:
        run: run directory.
        folder: folder to write to.
        whole: keep weights, and logits in full precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (METRICS, SUMMARY_FILE, *((LOGITS, "best.safetensors") if whole else ())):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    if not whole and (run / LOGITS).is_file():
        tensors = load_file(run / LOGITS)
        small = {
            "test_logits": tensors["test_logits"].astype(np.float16),
            "test_labels": tensors["test_labels"].astype(np.uint8),
        }
        save_file(small, folder / LOGITS)


if __name__ == "__main__":
    main()
