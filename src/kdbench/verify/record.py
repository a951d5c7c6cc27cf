"""Checks of the record itself: files, checksum, hashes, keys, and what the summary restates of its config."""

from kdbench.config.derived import MEASURE, TRAIN
from kdbench.rundir import identity
from kdbench.rundir.files import hash_of, sha256
from kdbench.rundir.summary import SCHEMA_VERSION, Status, names, read_unverified
from kdbench.runner.compressing import NO_TRAINING
from kdbench.runner.imported import UNKNOWN
from kdbench.runner.results import restated
from kdbench.verify.artifacts import Artifacts, existing, find_teacher
from kdbench.verify.checks import Checks, NotChecked, needed

CHECKSUM = "checksum of summary.json"


def check_record(run: Artifacts, checks: Checks) -> None:
    """Check hashes, keys and restated settings."""
    check_hashes(run, checks)
    check_keys(run, checks)
    check_restated(run, checks)


def check_checksum(run: Artifacts, checks: Checks, matches: bool) -> None:
    """Check that the summary has its checksum, and that it matches.

    Args:
        run: the run.
        checks: its lines.
        matches: whether the checksum matches, or there is none.
    """
    if not matches:
        checks.failed(CHECKSUM, "the file was changed since it was written")
    elif run.summary.checksum is not None:
        checks.passed(CHECKSUM)
    elif run.summary.config_sha256 is not None:
        checks.failed(CHECKSUM, "there is none, though the version that wrote the file adds one")
    else:
        checks.not_checked(CHECKSUM, "the file was written by a version without checksums")


def check_files(run: Artifacts, checks: Checks) -> None:
    """Check that every file of a complete run is there."""
    files = run.directory
    expected = [files.config, files.logits, files.log]
    expected += [files.weights] if run.summary.kind != MEASURE else []
    expected += [files.metrics] if run.is_trained else []
    missing = ", ".join(file.name for file in expected if not file.is_file())
    if not missing:
        checks.passed("files")
    elif run.is_small:
        checks.not_checked("files", f"{missing}: not kept in a run's small form")
    else:
        checks.failed("files", f"there is no {missing}")


def check_hashes(run: Artifacts, checks: Checks) -> None:
    """Check that each file has the hash that was recorded."""
    files = run.directory
    recorded = names(
        config_sha256=files.config,
        metrics_sha256=files.metrics,
        weights_sha256=files.weights,
        logits_sha256=files.logits,
    )
    for name, file in recorded.items():
        if (file == files.metrics and not run.is_trained) or (file == files.weights and run.summary.kind == MEASURE):
            continue
        with checks.checking(name):
            existing(file)
            if file == files.logits and run.is_half:
                raise NotChecked("in half precision: cannot be compared by hash")
            checks.same(f"of {file.name}", **{name: sha256(file)})


def check_keys(run: Artifacts, checks: Checks) -> None:
    """Check that the run's keys follow from its config, and that the folder has the run's key in its name."""
    folder, recorded = run.directory.path.name, run.summary.run_key
    if folder.endswith(f"_{recorded}"):
        checks.passed("folder", "its name ends with the run key")
    else:
        checks.failed("folder", f"its name is {folder}, which does not end with {recorded}, the recorded run key")
    with checks.checking("keys"):
        config = needed(run.config, "config.yaml")
        teacher_key = run.summary.teacher_key if config.kind != TRAIN else None
        teacher_key = key_of_teacher(run) if config.teacher and config.kind == TRAIN else teacher_key
        content = identity.run_identity(config, teacher_key)
        given, params = run.is_given and config.kind == TRAIN, config.method.params
        checks.same(
            "from config.yaml",
            run_key=identity.given_key(config, params.sha256, params.key) if given else hash_of(content),
            group_key=identity.group_key(content, config),
            baseline_key=identity.baseline_key(content),
            teacher_key=teacher_key,
        )


def key_of_teacher(run: Artifacts) -> str:
    """Return the key of the teacher's run, from the config."""
    assert run.config is not None
    assert run.config.teacher is not None
    if run.config.teacher.run or run.config.teacher.checkpoint is None:
        return identity.teacher_key(run.config)
    # The file may no longer exist; the run that stands for it recorded its hash.
    summary, _ = read_unverified(find_teacher(run))
    recorded = (summary.method_params or {}).get("sha256")
    return identity.given_key(identity.teacher_config(run.config), str(recorded), run.config.teacher.checkpoint_key)


def check_restated(run: Artifacts, checks: Checks) -> None:
    """Check that the summary restates its config; the role is the one that the method's class declares."""
    with checks.checking("restated settings"):
        config = needed(run.config, "config.yaml")
        expected = names(schema_version=SCHEMA_VERSION, status=Status.COMPLETE.value, epochs=config.recipe.epochs)
        expected |= restated(config)
        if run.is_given:
            expected |= dict.fromkeys(expected.keys() & set(UNKNOWN))
        if config.kind != TRAIN:
            expected |= dict.fromkeys(expected.keys() & set(NO_TRAINING))
        group = Checks(checks.recorded)
        group.same("in config.yaml", **expected)
        checks.add_group("restated settings", group)
