"""Copy finished runs in their small form: metrics, summary, and test logits in half precision.

    python scripts/keep_results.py outputs/runs --out results/lab/runs

Of a run that failed, failure.json is kept.
Every table of a report can be made from it, at about 0.2 MB a run of ten classes. Teachers of these runs keep their
weights and logits as they are, so that students can be trained with the same teachers. With many classes logits are
large: --without-logits keeps metrics and summaries alone; a report then has no flips and no agreement of baselines.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from kdbench.report.runs import LOGITS, METRICS, read_runs
from kdbench.rundir.summary import SUMMARY_FILE
from kdbench.rundir.unfinished import FAILURE_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without-logits", action="store_true", help="keep metrics and summaries alone")
    options = parser.parse_args()
    found = read_runs(options.paths)
    runs = found.runs
    for failed in found.failed:
        keep(Path(failed.path), options.out / Path(failed.path).name, (FAILURE_FILE,))
    is_teacher = runs.run_key.isin(runs.teacher_key)
    for run, whole in zip(runs.path, is_teacher, strict=True):
        if options.without_logits:
            keep(run, options.out / run.name, (METRICS, SUMMARY_FILE))
        elif whole:
            keep(run, options.out / run.name, (METRICS, SUMMARY_FILE, LOGITS, "best.safetensors"))
        else:
            keep(run, options.out / run.name, (METRICS, SUMMARY_FILE))
            keep_small_logits(run, options.out / run.name)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{len(runs)} runs in {options.out}, {size / 1e6:.1f} MB")


def keep(run: Path, folder: Path, names: Sequence[str]) -> None:
    """Copy some files of a run directory, as far as they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)


def keep_small_logits(run: Path, folder: Path) -> None:
    """Write the test logits of a run in half precision, with their labels."""
    if (run / LOGITS).is_file():
        tensors = load_file(run / LOGITS)
        labels = tensors["test_labels"]
        small = {
            "test_logits": half_precision(tensors["test_logits"]),
            "test_labels": labels.astype(np.uint8 if labels.max() < 256 else np.int32),
        }
        save_file(small, folder / LOGITS)


def half_precision(logits: NDArray[np.floating]) -> NDArray[np.float16]:
    """Return logits [N, C] in half precision with the same predicted classes.

    Where rounding makes another logit equal to the largest one, that other is moved one step down.
    """
    small = logits.astype(np.float16)
    is_best = np.arange(logits.shape[1]) == logits.argmax(axis=1)[:, None]
    best = small[is_best][:, None]
    return np.where(~is_best & (small >= best), np.nextafter(best, np.float16(-np.inf)), small)


if __name__ == "__main__":
    main()
