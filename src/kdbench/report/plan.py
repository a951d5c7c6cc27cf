"""plan.yaml: what a study intends to test, registered before the first run that reports exists."""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdbench.errors import ConfigError
from kdbench.report.design import RULE

PLAN_FILE = "plan.yaml"
PLAN_SCHEMA = 1
"""Version of the layout of plan.yaml."""
RULES = {
    "auto": RULE,
    "blocks": "seeds as blocks over all arms",
    "paired": "paired t-test over the seeds of both arms",
    "welch": "Welch's t-test",
}
"""Primary analyses in words, by the value of --analysis."""


@dataclass(frozen=True, kw_only=True)
class PlannedGain:
    """Hypothesis that a method changes the accuracy of a student, against the same student without it."""

    student: str
    teacher: str | None
    teacher_seed: int | str | None
    """Seed of the teacher; pooled: one value for each of several teachers."""
    method: str
    setting: str
    """Settings in words: those of the stage, or the winner of a stage that chooses."""
    method_params: Mapping[str, Any] | None
    """Settings of the method; None for the winner of a stage."""
    recipe: Mapping[str, Any]
    """Keys of the recipe in which this hypothesis differs from others."""
    stem: str | None
    seeds: Sequence[int]
    baseline: str
    """The runs that it is compared with, in words."""
    baseline_seeds: Sequence[int]

    @property
    def name(self) -> str:
        """The hypothesis in words."""
        return name_gain(self.student, self.teacher, self.method, self.setting)


@dataclass(frozen=True, kw_only=True)
class PlannedInteraction:
    """Hypothesis that one student gains more than another one from the same teacher by the same method."""

    method: str
    teacher: str | None
    teacher_seed: int | str | None
    students: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Content of plan.yaml."""

    study: str
    question: str
    changes: Mapping[str, Any]
    """Settings and overrides of the command line that registered it."""
    stages: Sequence[str]
    """Stages whose runs report."""
    gains: Sequence[PlannedGain]
    interactions: Sequence[PlannedInteraction]
    tests: Mapping[str, Any]
    """Primary analysis (`analysis`) and its `rule` in words, `correction`, `level`."""
    margin: float
    """Margin of equivalence, points."""
    stopping: Mapping[str, Any]
    """Seeds of each stage (`seeds`), and the `rule` in words."""
    selection: Mapping[str, Any] | None
    """Source of the settings: `stage`, `seeds`, `chosen_by`, and the `winners` where they were known."""
    data: Mapping[str, Any]
    recipe: Mapping[str, Any]
    """Keys of the recipe that all hypotheses share."""
    version: str
    git_revision: str | None
    registered: str
    """Time of the registration, with its offset from UTC."""

    @property
    def analysis(self) -> str:
        """Primary analysis as --analysis names it."""
        return str(self.tests["analysis"])

    @property
    def time(self) -> datetime.datetime:
        """Time of the registration."""
        return datetime.datetime.fromisoformat(self.registered)

    @property
    def intent(self) -> dict[str, Any]:
        """Content without time and version: equal for the same plan at another time."""
        later = ("version", "git_revision", "registered")
        content = {name: value for name, value in as_content(self).items() if name not in later}
        selection = content["selection"]
        if selection:
            content["selection"] = {name: value for name, value in selection.items() if name != "winners"}
        return content


def name_gain(student: str, teacher: str | None, method: str, setting: str) -> str:
    """Return a gain in words."""
    source = f" from {teacher}" if teacher else ""
    return f"{student}{source} by {method}{f' ({setting})' if setting else ''}"


def as_content(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data: what its hash is computed of."""
    content: dict[str, Any] = json.loads(json.dumps({"schema": PLAN_SCHEMA} | dataclasses.asdict(plan)))
    return content


def hash_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a plan's content without the hash itself."""
    others = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def read_plan(path: Path) -> Plan:
    """Return a registered plan from its file.

    Raises:
        ConfigError: it cannot be read, was changed since it was registered, or is of another version.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        schema, recorded = content["schema"], content["sha256"]
        intact = hash_of(content) == recorded
    except OSError as error:
        raise ConfigError(
            f"--plan is {path}, which cannot be read ({error.strerror or error}); give the {PLAN_FILE} that "
            "kdbench-study --register wrote",
            code="not_found",
            key="--plan",
        ) from None
    except Exception as error:  # whatever YAML of another shape raises
        raise damaged(path, error) from None
    if not intact:
        raise ConfigError(
            f"--plan: {path} was changed since it was registered: the hash in it is not that of its content; restore "
            "the registered file",
            code="checksum",
            key="--plan",
        )
    if schema != PLAN_SCHEMA:
        raise ConfigError(
            f"--plan: {path} has schema {schema!r}, this version reads {PLAN_SCHEMA}; report it with the version of "
            f"kdbench that registered it, {content.get('version')}",
            code="mismatch",
            key="--plan",
        )
    try:
        return plan_from(content)
    except Exception as error:  # keys that lack, or values of another shape
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> ConfigError:
    described = " ".join(f"{type(error).__name__}: {error}".split())
    return ConfigError(
        f"--plan is {path}, which is damaged or no plan of kdbench-study --register ({described}); restore the "
        "registered file",
        code="damaged",
        key="--plan",
    )


def plan_from(content: Mapping[str, Any]) -> Plan:
    """Return a plan from the content of its file.

    Raises:
        TypeError, KeyError, ValueError: keys lack, are unknown, or have values that are not allowed.
    """
    values = {name: value for name, value in content.items() if name not in ("schema", "sha256")}
    values["gains"] = [PlannedGain(**gain) for gain in values["gains"]]
    values["interactions"] = [PlannedInteraction(**interaction) for interaction in values["interactions"]]
    plan = Plan(**values)
    if plan.time.tzinfo is None:
        raise ValueError(f"registered is {plan.registered}, without an offset from UTC")
    if plan.analysis not in RULES:
        raise ValueError(f"tests.analysis is {plan.analysis}; it may be {', '.join(RULES)}")
    if not plan.margin > 0:
        raise ValueError(f"margin is {plan.margin}; it must be above 0")
    return plan
