"""The fault campaign: 24 faults, or as many as KDBENCH_FAULTS says, drawn from KDBENCH_FAULTS_SEED."""

import json
import os
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, Counts

FAULTS, SEED = int(os.environ.get("KDBENCH_FAULTS", "24")), int(os.environ.get("KDBENCH_FAULTS_SEED", "0"))
RECORD = os.environ.get("KDBENCH_FAULTS_RECORD")


@pytest.mark.slow
def test_no_run_is_lost_and_none_comes_out_otherwise(tmp_path, capsys):
    counts = Campaign(tmp_path, SEED).carry_out(FAULTS, keep)
    with capsys.disabled():
        print(f"\n{json.dumps(described(counts), indent=2)}")
    assert not counts.losses, "\n".join(counts.losses)


def keep(counts: Counts) -> None:
    """Write the counts so far into the record, if one is asked for, beside what it holds."""
    if RECORD:
        file = Path(RECORD)
        kept = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(kept | {"campaign": described(counts)}, indent=2) + "\n")


def described(counts: Counts) -> dict[str, object]:
    return {
        "seed": SEED,
        "faults": sum(counts.faults.values()),
        "losses": counts.losses,
        "times everything was read": counts.checks,
        "runs compared": counts.runs_compared,
        "by kind": dict(sorted(counts.faults.items())),
    }
