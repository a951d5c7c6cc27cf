#!/usr/bin/env bash
# Training speed on this machine: images per second of a run's training steps, three runs each, on the embedded data.
#   scripts/speed.sh [KEY=VALUE ...]      the extra keys are added to every run, for example runtime.precision=bf16
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
measure() { # student, images an epoch
    for repetition in 1 2 3; do
        .venv/bin/kdbench student="$1" method=ce data=shapes data.num_train="$2" data.num_val=10 data.num_test=10 \
            recipe=smoke recipe.epochs=3 recipe.batch_size=128 output_root="$out/$repetition" "${@:3}" >/dev/null
    done
    .venv/bin/python - "$out"/*/runs/*_"$1"_ce_* <<'PYTHON'
import statistics
import sys
from pathlib import Path

from kdbench.rundir.summary import read_summary

runs = [read_summary(Path(path)) for path in sys.argv[1:]]
speeds = [run.images_per_second for run in runs]
print(f"{runs[0].student} {runs[0].precision}: median {statistics.median(speeds):.0f} images/s "
      f"(n={len(speeds)}, {min(speeds):.0f} to {max(speeds):.0f}) on {runs[0].device}, "
      f"{runs[0].environment['threads']} threads")
PYTHON
}
measure resnet8 12800 "$@"
measure resnet20 6400 "$@"
measure resnet18 640 "$@"
