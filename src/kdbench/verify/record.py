"""Checks of the record itself: files, seal, hashes, keys, and what the summary says again of its config."""

from typing import Any

from kdbench.runs import SCHEMA_VERSION, baseline_key, group_key, identity, key_of, seal_fits, sha256, stored_summary
from kdbench.summary import restated
from kdbench.teachers import UNKNOWN_OF_GIVEN_WEIGHTS, key_of_given, key_of_teacher, teacher_run
from kdbench.verify.findings import Findings, NotChecked, needed
from kdbench.verify.material import Run, teacher_folder, there


def check_record(run: Run, found: Findings) -> None:
    check_hashes(run, found)
    check_keys(run, found)
    check_restated(run, found)


def check_seal(run: Run, found: Findings) -> None:
    if not seal_fits(run.summary) and "seal" not in run.summary:
        found.fails("seal", "summary.json is of a version that seals it, and the seal is gone")
    elif "seal" not in run.summary:
        found.not_checked("seal", "there is none: written before summaries were sealed")
    elif seal_fits(run.summary):
        found.holds("seal")
    else:
        found.fails("seal", "summary.json was changed since it was written")


def check_files(run: Run, found: Findings) -> None:
    files = run.directory
    expected = [files.config, files.logits, files.weights, files.log, *([] if run.is_given else [files.metrics])]
    lacking = ", ".join(file.name for file in expected if not file.is_file())
    if not lacking:
        found.holds("files")
    elif run.is_small:
        found.not_checked("files", f"{lacking}: not kept in a run's small form")
    else:
        found.fails("files", f"there is no {lacking}")


def check_hashes(run: Run, found: Findings) -> None:
    files = run.directory
    for name, file in (
        ("config", files.config), ("metrics", files.metrics), ("weights", files.weights), ("logits", files.logits),
    ):  # fmt: skip
        with found.checking(f"{name}_sha256"):
            if name == "metrics" and run.is_given:
                continue
            there(file)
            if name == "logits" and run.is_half:
                raise NotChecked("in half precision: cannot be compared by hash")
            found.same(f"{name}_sha256", sha256(file), f"of {file.name}")


def check_keys(run: Run, found: Findings) -> None:
    """The run's key and its relatives follow from the config, and the folder is named by it."""
    folder, recorded = run.directory.path.name, run.summary.get("run_key")
    if folder.endswith(f"_{recorded}"):
        found.holds("folder", "named by its run_key")
    else:
        found.fails("folder", f"it is called {folder}, and ends in no {recorded}, the run_key recorded")
    with found.checking("run_key"):
        config = needed(run.config, "config.yaml")
        taught_by = key_of_its_teacher(run) if config.teacher else None
        whole = identity(config, taught_by)
        key = key_of_given(config, config.method.params.sha256) if run.is_given else key_of(whole)
        expected = {"run_key": key, "group_key": group_key(whole), "baseline_key": baseline_key(whole)}
        for name, value in (expected | {"teacher_key": taught_by}).items():
            found.same(name, value, "from config.yaml")


def key_of_its_teacher(run: Run) -> str:
    assert run.config is not None
    assert run.config.teacher is not None
    if run.config.teacher.checkpoint is None:
        return key_of_teacher(run.config)
    # The file may be gone since; the run that stands for it knows its hash.
    params = stored_summary(teacher_folder(run)).get("method_params")
    return key_of_given(teacher_run(run.config), str(params.get("sha256")) if isinstance(params, dict) else "")


def check_restated(run: Run, found: Findings) -> None:
    with found.checking("restated of config.yaml"):
        config = needed(run.config, "config.yaml")
        expected: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "status": "complete",
            "epochs": config.recipe.epochs,
            **restated(config),
        }
        if run.is_given:
            expected |= dict.fromkeys(expected.keys() & set(UNKNOWN_OF_GIVEN_WEIGHTS))
        group = Findings(run.summary)
        for key, value in expected.items():
            group.same(key, value, "in config.yaml")
        found.together("restated of config.yaml", group)
