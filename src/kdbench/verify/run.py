"""One run directory, verified."""

from pathlib import Path

from kdbench.runs import RunDirectory, stored_summary
from kdbench.verify.findings import Findings, Line
from kdbench.verify.material import Options, Run, read_parts
from kdbench.verify.numbers import check_data, check_model, check_predictions, check_quality, check_training
from kdbench.verify.record import check_files, check_record, check_seal
from kdbench.verify.teacher import check_teacher

UNCHECKABLE = ("peak_memory_bytes", "environment")


def verify(path: Path, options: Options) -> list[Line]:
    """A line for each thing that holds, that fails, or that could not be checked.

    A run without summary.json is unfinished: there is nothing to verify yet, and nothing wrong with it.
    """
    found = Findings({})
    if not (path / "summary.json").is_file():
        found.not_checked("run", "it is unfinished: there is no summary.json")
        return found.lines
    with found.checking("summary.json"):
        found.summary = stored_summary(path)
        run = Run(RunDirectory(path, str(found.summary.get("run_key"))), found.summary)
        check_files(run, found)
        check_seal(run, found)
        read_parts(run, options, found)
        check_record(run, found)
        check_model(run, found)
        check_data(run, found)
        check_predictions(run, found, options.quick)
        check_quality(run, found)
        check_training(run, found)
        check_teacher(run, found)
        found.not_checked(", ".join(UNCHECKABLE), "they cannot be computed again; the seal alone speaks for them")
    return found.lines
