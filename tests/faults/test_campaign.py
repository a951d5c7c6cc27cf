"""The fault campaign: 40 faults, or as many as KDBENCH_FAULTS says, drawn from KDBENCH_FAULTS_SEED."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign


@pytest.mark.slow
def test_no_run_is_lost_and_none_comes_out_otherwise(tmp_path, capsys):
    faults, seed = (int(os.environ.get(name, default)) for name, default in WANTED)
    counts = Campaign(tmp_path, seed).carry_out(faults)
    record = asdict(counts) | {"faults": dict(sorted(counts.faults.items())), "seed": seed}
    with capsys.disabled():
        print(f"\n{sum(counts.faults.values())} faults, {len(counts.losses)} losses: {json.dumps(record['faults'])}")
    if file := os.environ.get("KDBENCH_FAULTS_RECORD"):
        keep(Path(file), record)
    assert not counts.losses, "\n".join(counts.losses)


WANTED = (("KDBENCH_FAULTS", "40"), ("KDBENCH_FAULTS_SEED", "0"))


def keep(file: Path, record: dict) -> None:
    kept = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(kept | {"campaign": record}, indent=2) + "\n")
