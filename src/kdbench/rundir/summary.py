"""The summary of a complete run: summary.json as a typed class, with one reader and one writer. Imports no torch."""

import dataclasses
import datetime
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from kdbench.config.derived import KINDS, TRAIN
from kdbench.errors import ConfigError
from kdbench.rundir.access import READ, check_access, is_denied
from kdbench.rundir.files import sha256, write_json

SCHEMA_VERSION = 1
SUMMARY_FILE = "summary.json"


class Status(StrEnum):
    """Outcome of a run. A summary is written for complete ones alone; results and sweeps have the others too."""

    COMPLETE = "complete"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Another process holds it."""
    PRUNED = "pruned"
    """A search has ended it before its last epoch."""
    INTERRUPTED = "interrupted"
    REFUSED = "refused"
    """Its config cannot run."""
    NOT_STARTED = "not started"


GIVEN = "checkpoint"
"""Method of a teacher whose weights were given: how they were trained is unknown."""


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_fraction(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def is_section(value: Any) -> bool:
    return isinstance(value, dict)


def is_fractions(value: Any) -> bool:
    return isinstance(value, list) and all(a is None or is_fraction(a) for a in value)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_whole(size) and size > 0 for size in value)


def is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def is_time(value: Any) -> bool:
    """Return whether a value is a time in ISO 8601 with its offset from UTC, so that two of them can be compared."""
    try:
        return is_text(value) and datetime.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def key(allowed: Callable[[Any], bool], description: str, required: bool = False, absent: Any = None) -> Any:
    """Declare a key of summary.json: its check, its type in words, and whether no reader can do without it.

    A key that is absent or null is `absent`.
    """
    return field(default=absent, metadata={"allowed": allowed, "description": description, "required": required})


def text(**kwargs: Any) -> Any:
    return key(is_text, "a text", **kwargs)


def whole(**kwargs: Any) -> Any:
    return key(is_whole, "a whole number of at least 0", **kwargs)


def number() -> Any:
    return key(is_number, "a finite number")


def fraction(**kwargs: Any) -> Any:
    return key(is_fraction, "a number from 0 to 1", **kwargs)


def time() -> Any:
    return key(is_time, "a time with its offset from UTC, such as 2026-01-31T12:00:00+00:00")


def section() -> Any:
    return key(is_section, "a section")


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Settings and results of a complete run. Accuracies are fractions in [0, 1], from the saved logits."""

    schema_version: int | None = whole()
    run_key: str = text(required=True)
    group_key: str | None = text()
    """The same for runs that differ in their seeds alone."""
    baseline_key: str | None = text()
    """The same for runs that differ in method and teacher alone."""
    status: str | None = text()
    kind: str = key(KINDS.__contains__, f"one of {', '.join(KINDS)}", absent=TRAIN)
    """Kind of the run: train, compress or measure. The last two repeat student, method, teacher and seeds of the run
    that was trained."""
    parent_key: str | None = text()
    """Key of the run whose network this one starts from, compresses or measures."""
    parent_weights_sha256: str | None = text()
    student: str = text(required=True)
    teacher: str | None = text()
    method: str = text(required=True)
    role: str | None = text()
    """Role of the method in a comparison: baseline, distilled or control; null for given weights."""
    dataset: str | None = text()
    method_params: dict[str, Any] | None = section()
    recipe: dict[str, Any] | None = section()
    stem: str | None = text()
    precision: str | None = text()
    seed: int | None = whole()
    """Null for given weights, as is every other key of a training that is unknown."""
    init_seed: int | None = whole()
    data_seed: int | None = whole()
    logit_cache: bool | None = key(is_switch, "true or false")
    """True if the teacher's logits came from the logit cache; null without a teacher."""
    teacher_seed: int | None = whole()
    class_names: list[str] | None = key(is_texts, "a list of texts")
    input_shape: list[int] | None = key(is_shape, "three whole numbers")
    """C, H, W of an image."""
    num_train: int | None = whole()
    num_val: int | None = whole()
    num_test: int | None = whole()
    validation: bool = key(is_switch, "true or false", absent=True)
    """False if the validation images were trained on: the weights are those of the last epoch."""
    num_params: int | None = whole()
    macs: int | None = whole()
    """Multiply-accumulates of one image's forward pass."""
    inference_params: int | None = whole()
    """Parameters of student and method, where the method predicts (`Method.predict`); null where the student does, and
    where they are not known."""
    inference_macs: int | None = whole()
    """Multiply-accumulates of a prediction for one image, likewise."""
    compression: dict[str, Any] | None = section()
    """`steps`: how the network was compressed, in order, each with its name and settings; null where it was not."""
    nonzero_params: int | None = whole()
    """Parameters that are not zero, of compress and measure runs."""
    sparsity: float | None = fraction()
    """Share of zeros among the weights of convolutions and linear layers, likewise."""
    parent_test_acc: float | None = fraction()
    """Test accuracy of the network before it was compressed, of compress and measure runs."""
    parent_agreement: float | None = fraction()
    """Share of test images on which the network predicts the same class as before it was compressed."""
    parent_kl_t1: float | None = number()
    """Mean KL(before || after compression) in nats at temperature 1."""
    measurement: dict[str, Any] | None = section()
    """Size, latency, memory and energy, of measure runs (docs/run-directory.md)."""
    best_val_acc: float | None = fraction()
    """Null without validation, as is `best_val_epoch`: nothing may be selected by the fit to images trained on."""
    test_acc_best: float = fraction(required=True)
    """Test accuracy with the weights of the best validation epoch (the earliest of equals), without validation of the
    last epoch."""
    test_nll: float | None = number()
    test_ece: float | None = fraction()
    per_class_acc: list[float | None] | None = key(is_fractions, "a list of numbers from 0 to 1")
    epochs: int | None = whole()
    best_val_epoch: int | None = whole()
    test_acc_final: float | None = fraction()
    """Test accuracy with the weights of the last epoch."""
    teacher_test_acc: float | None = fraction()
    teacher_key: str | None = text()
    teacher_weights_sha256: str | None = text()
    agreement: float | None = fraction()
    """Share of test images on which student and teacher predict the same class."""
    kl_t1: float | None = number()
    """Mean KL(teacher || student) in nats at temperature 1."""
    kl_t4: float | None = number()
    started: str | None = time()
    """Time at which the training started, with its offset from UTC; a resumed run keeps the first."""
    train_seconds: float | None = number()
    images_per_second: float | None = number()
    lockstep: int | None = whole()
    """Number of runs that trained together; 1 means alone."""
    peak_memory_bytes: int | None = whole()
    skipped_steps: int | None = whole()
    overflowed_steps: int | None = whole()
    data_sha256: dict[str, Any] | None = section()
    config_sha256: str | None = text()
    metrics_sha256: str | None = text()
    weights_sha256: str | None = text()
    logits_sha256: str | None = text()
    environment: dict[str, Any] | None = section()
    checksum: str | None = text()
    """SHA-256 of everything else in the file, against accidents; no signature."""

    @property
    def device(self) -> str | None:
        """Name of the processor or GPU that the run was computed on."""
        return (self.environment or {}).get("device")

    @property
    def classes_and_shape(self) -> tuple[int, tuple[int, int, int]]:
        """Number of classes, and C, H, W of an image. Before they were recorded, all data had 10 and 3 x 32 x 32."""
        channels, height, width = self.input_shape or (3, 32, 32)
        return len(self.class_names or range(10)), (channels, height, width)

    @property
    def is_given(self) -> bool:
        """True if the weights were given and not trained here."""
        return self.method == GIVEN

    @property
    def seeds(self) -> tuple[int | None, int | None]:
        """Initialisation and data seed: what distinguishes the runs of a group."""
        init, data = self.init_seed, self.data_seed
        return (self.seed if init is None else init, self.seed if data is None else data)


KEYS = {f.name: f for f in dataclasses.fields(RunSummary)}
"""Every key of summary.json."""


def names(**values: Any) -> dict[str, Any]:
    """Return keys of summary.json with values. A name that is no key is a bug."""
    assert values.keys() <= KEYS.keys(), values.keys() - KEYS.keys()
    return values


class KeyNames:
    """Keys of summary.json as attributes: `KEY.seed` is "seed". An attribute that is no key is a bug."""

    def __getattr__(self, name: str) -> str:
        if name not in KEYS:
            raise AttributeError(f"summary.json has no key {name}")
        return name


KEY = KeyNames()
DATA = (KEY.dataset, KEY.validation, KEY.num_train, KEY.num_val, KEY.num_test)
"""Keys that say on what data a run was trained and measured."""


def checksum_of(content: Mapping[str, Any]) -> str:
    """Return the checksum of a summary's content without its own checksum."""
    others = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def write_summary(path: Path, summary: RunSummary) -> None:
    """Write summary.json into a run directory, with its checksum. Its presence means complete."""
    content = dataclasses.asdict(summary)
    write_json(path / SUMMARY_FILE, content | {"checksum": checksum_of(content)})


def read_summary(path: Path) -> RunSummary:
    """Return the summary of a complete run.

    Args:
        path: run directory.

    Raises:
        ConfigError: the file is missing, damaged, or was changed since it was written.
    """
    summary, matches = read_unverified(path)
    if not matches:
        raise ConfigError(
            f"{path / SUMMARY_FILE} was changed since it was written; restore it, or delete {path} to repeat the run",
            code="checksum",
            key="summary.json",
        )
    return summary


def read_unverified(path: Path) -> tuple[RunSummary, bool]:
    """Return the summary of a run, and whether its checksum matches or there is none.

    Args:
        path: run directory.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    file = path / SUMMARY_FILE
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        if is_denied(error):
            check_access(file, READ, "")
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(
            f"{file} cannot be read ({said}); delete {path} to repeat the run", code="damaged", key="summary.json"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} does not contain a JSON object; delete {path} to repeat the run",
            code="damaged",
            key="summary.json",
        )
    return from_content(content, file), content.get("checksum") in (None, checksum_of(content))


def from_content(content: Mapping[str, Any], file: Path) -> RunSummary:
    """Return a summary from the content of its file. Unknown keys are ignored, absent ones are null, or as declared.

    Raises:
        ConfigError: a required key is missing, or a value has the wrong type.
    """
    given: dict[str, Any] = {name: content.get(name) for name in KEYS}
    known: dict[str, Any] = {name: KEYS[name].default if value is None else value for name, value in given.items()}
    lacking = [name for name, f in KEYS.items() if f.metadata["required"] and known[name] is None]
    if lacking:
        raise ConfigError(
            f"{file} lacks {', '.join(lacking)}; restore it, or delete {file.parent} to repeat the run",
            code="damaged",
            key=lacking[0],
        )
    for name, value in known.items():
        if value is not None and not KEYS[name].metadata["allowed"](value):
            raise ConfigError(
                f"{file}: {name} is {value!r}; it must be {KEYS[name].metadata['description']}",
                code="damaged",
                key=name,
            )
    return RunSummary(**known)


def changed_file(path: Path, summary: RunSummary) -> str | None:
    """Return the name of a record of a complete run that is no longer the file it was, or None.

    Weights and logits are not compared: they may be large, or kept in a smaller form.

    Args:
        path: run directory.
        summary: of that run.
    """
    for recorded, name in ((summary.config_sha256, "config.yaml"), (summary.metrics_sha256, "metrics.csv")):
        file = path / name
        if recorded and file.is_file() and sha256(file) != recorded:
            return name
    return None
