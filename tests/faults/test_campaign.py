"""The fault campaign: KDBENCH_FAULTS faults, 16 by default, drawn with the seed KDBENCH_FAULTS_SEED."""

import json
import os
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, Counts

FAULTS, SEED = int(os.environ.get("KDBENCH_FAULTS", "16")), int(os.environ.get("KDBENCH_FAULTS_SEED", "0"))
RECORD = os.environ.get("KDBENCH_FAULTS_RECORD")


@pytest.mark.slow
def test_faults_lose_no_run_and_change_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = Campaign(tmp_path, SEED).run(FAULTS, keep)
    with capsys.disabled():
        print(f"\n{json.dumps(summarize(counts), indent=2)}")
    assert not counts.losses, "\n".join(counts.losses)


def keep(counts: Counts) -> None:
    """Write the counts so far into the record, if one is wanted, beside what it holds."""
    if RECORD:
        file = Path(RECORD)
        kept = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(kept | {"campaign": summarize(counts)}, indent=2) + "\n")


def summarize(counts: Counts) -> dict[str, object]:
    """Return the counts as JSON."""
    return {
        "seed": SEED,
        "faults": sum(counts.faults.values()),
        "losses": counts.losses,
        "times everything was read": counts.checks,
        "runs compared": counts.runs_compared,
        "by kind": dict(sorted(counts.faults.items())),
    }
