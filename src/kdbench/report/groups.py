"""Groups of runs that differ in their seeds alone, and how they are named."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from kdbench.errors import ConfigError
from kdbench.report.runs import rows_of
from kdbench.rundir.summary import DATA, KEY, SCHEMA_VERSION

BASELINE, DISTILLED, CONTROL = "baseline", "distilled", "control"
"""Roles of methods; given weights have none."""
COMPARED = (DISTILLED, CONTROL)
"""Roles that have a gain over the baseline."""
SIDDO, DIDDO = "SIDDO", "DIDDO"
"""Same initialisation, different data order; different initialisation, different data order (arXiv 2510.12615)."""

PROTOCOL = (*DATA, KEY.schema_version)
"""Keys that all runs of one report share: numbers of different data sets or splits cannot be compared, nor those with
and without validation."""
WITHOUT_VALIDATION = "trained without validation images held out; accuracy of the last epoch"
TEST_IMAGES = f"{KEY.data_sha256}.test"
"""Column with the hash of the test images: folders of the same numbers of images may hold different ones."""
STUDENT = (*PROTOCOL, KEY.student, KEY.stem, KEY.recipe, KEY.epochs, KEY.precision, KEY.num_params)
"""Keys that a run shares with its baseline."""
METHOD = (KEY.role, KEY.method, KEY.method_params, KEY.teacher)
TEACHER = (KEY.teacher_seed, KEY.teacher_key)
IMPLIED = {f"{KEY.recipe}.{KEY.epochs}": KEY.epochs, KEY.teacher_seed: KEY.teacher_key}
"""Keys that need not be named where another one differs."""


def key_text(value: Any) -> str:
    """Return text that is equal for equal values, and sorts."""
    return json.dumps(value, sort_keys=True, default=str)


def columns_of(columns: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return the columns of some summary keys, sections as all their SECTION.KEY, in the order of the keys."""
    order = list(wanted)
    found = [column for column in columns if column.partition(".")[0] in order]
    return sorted(found, key=lambda column: order.index(column.partition(".")[0]))


def percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * float(fraction)


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs that are equal in everything but their seeds."""

    runs: pd.DataFrame
    """Rows of the table of runs, in the order of their seeds."""
    setting: str = ""
    """Keys in which it differs from other groups of its student, teacher and method, with their values."""
    seed_control: str = ""
    """`SIDDO` or `DIDDO` for baseline runs that are controls of the functional view, and no group's baseline."""

    @cached_property
    def shared(self) -> Any:
        """First row, for what the runs have in common."""
        return self.runs.iloc[0]

    @cached_property
    def rows(self) -> list[Any]:
        """Runs as named tuples."""
        return rows_of(self.runs)

    @cached_property
    def seeds(self) -> list[tuple[int | None, int | None]]:
        """Initialisation and data seed of each run."""
        return self.runs.seeds.tolist()

    @cached_property
    def accuracies(self) -> list[float]:
        """Test accuracy at the best validation epoch, per cent, of each run; without validation at the last one."""
        return percents(self.runs.test_acc_best)

    @property
    def name(self) -> str:
        """Title without seeds."""
        source = f" from {self.shared.teacher}" if self.shared.teacher else ""
        setting = f", {self.setting}" if self.setting else ""
        return f"{self.shared.student} {self.shared.method}{source}{setting}"


def percents(fractions: "pd.Series[Any]") -> list[float]:
    """Return the known fractions in per cent."""
    return [100 * float(fraction) for fraction in fractions if fraction is not None]


def remark_without_validation(runs: pd.DataFrame) -> list[str]:
    """Remark on runs whose validation images were trained on."""
    validated = set(runs.validation)
    if validated <= {True}:
        return []
    return [f"{'groups with validation=False were' if True in validated else 'all runs were'} {WITHOUT_VALIDATION}"]


def check_alike(runs: pd.DataFrame) -> None:
    """Check that runs may stand in one report.

    Raises:
        ConfigError: they are of different data sets, splits or protocol versions.
    """
    unknown = set(runs.schema_version) - {None, SCHEMA_VERSION}
    if unknown:
        raise ConfigError(
            f"runs have schema_version {', '.join(sorted(map(str, unknown)))}, this version reads {SCHEMA_VERSION}; "
            "leave them out, or give --allow-mixed to read them as if it were the same",
            code="mismatch",
            key="schema_version",
        )
    differing = differing_keys(runs)
    if differing:
        described = "; ".join(f"{key}: {values}" for key, values in differing.items())
        raise ConfigError(
            f"these runs cannot be compared, they differ in {described}; give the paths of runs that belong together, "
            "or --allow-mixed to report them together, each compared only with runs of the same data",
            code="mismatch",
            key=next(iter(differing)),
        )


def differing_keys(runs: pd.DataFrame) -> dict[str, str]:
    """Return the keys of the protocol in which runs differ, with their values as text."""
    found = {}
    for key in PROTOCOL:
        values = {key_text(value): value for value in runs[key] if value is not None}
        if len(values) > 1:
            found[key] = " and ".join(str(value) for _, value in sorted(values.items()))
    names = {key_text(names): names for names in runs.class_names if names}
    if len(names) > 1 and not found:
        found[KEY.class_names] = describe_names(*(value for _, value in sorted(names.items())[:2]))
    hashes = sorted({str(value)[:12] for value in runs.get(TEST_IMAGES, ()) if value is not None})
    if len(hashes) > 1 and not found:
        found[KEY.data_sha256] = " and ".join(hashes) + " (test images)"
    return found


def describe_names(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Return two different lists of class names as text: their numbers, or the first class that differs."""
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} names"
    index = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"class {index} is {ours[index]!r} and {theirs[index]!r}"


def group_runs(runs: pd.DataFrame) -> list[RunGroup]:
    """Return groups of runs that are equal in all but their seeds, sorted by student's size, role, method and teacher.

    Besides the group key, what the summary says is compared: a summary may lack the key.
    """
    identity = columns_of(runs.columns, (*STUDENT, *METHOD, *TEACHER, KEY.group_key))
    identities = pd.Series([key_text(row) for row in runs[identity].to_dict("records")], index=runs.index)
    found = [RunGroup(sort_by_seeds(members)) for _, members in runs.groupby(identities, sort=False)]
    groups = split_seed_controls(found)
    settings = columns_of(runs.columns, (*STUDENT, *METHOD, *TEACHER))
    groups.sort(key=lambda group: sort_key(group, settings))
    return with_settings(groups)


def split_seed_controls(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return groups, with the runs of a baseline whose seeds make them controls of the functional view apart.

    Such a run has two different seeds that no compared run has, and an order of the images that neither a compared run
    nor another run of its baseline has: `SIDDO` if it shares an initialisation seed with one of these, else `DIDDO`. As
    replicates they would count twice. Crossed seeds, which share orders, stay in the baseline, and so does everything
    where nothing is compared or no other run is left.
    """
    held = {pair for group in groups if group.shared.role in COMPARED for pair in group.seeds}
    return [part for group in groups for part in split_baseline(group, held)]


def split_baseline(group: RunGroup, held: set[tuple[int | None, int | None]]) -> list[RunGroup]:
    """Return a group in parts: the baseline itself, then its controls; see `split_seed_controls`.

    Args:
        group: any group.
        held: seeds of the compared runs.
    """
    own = {pair for pair in group.seeds if pair in held or pair[0] == pair[1]}
    if group.shared.role != BASELINE or not held.intersection(own):
        return [group]
    inits, orders = ({pair[which] for pair in held | own} for which in (0, 1))
    kinds = ["" if pair in own or pair[1] in orders else SIDDO if pair[0] in inits else DIDDO for pair in group.seeds]
    parts = [(kind, [found == kind for found in kinds]) for kind in ("", SIDDO, DIDDO) if kind in kinds]
    return [replace(group, runs=group.runs[chosen], seed_control=kind) for kind, chosen in parts]


def sort_by_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    def key(index: Any) -> list[int]:
        return [-1 if seed is None else seed for seed in runs.seeds[index]]

    return runs.loc[sorted(runs.index, key=key)]


def size_of(run: Any, key: str) -> int | None:
    """Return the size with which a run predicts: that of its student, and of its method where that takes part.

    Args:
        run: row of the summaries.
        key: num_params or macs.
    """
    of_inference = {KEY.num_params: KEY.inference_params, KEY.macs: KEY.inference_macs}
    return getattr(run, of_inference[key]) or getattr(run, key)


def sort_key(group: RunGroup, settings: Sequence[str]) -> tuple[Any, ...]:
    """Return a key that sorts small students first, and baselines before what is compared with them."""
    shared = group.shared
    return (
        shared.num_params or 0, shared.student, shared.role in COMPARED, shared.method, shared.teacher or "",
        key_text(shared.teacher_seed), key_text(shared[list(settings)].to_dict()),
    )  # fmt: skip


def with_settings(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return the groups with their settings: the method's keys that differ among its groups, and all other keys that
    differ among the groups of its student, teacher and method."""
    if not groups:
        return []
    columns = columns_of(groups[0].runs.columns, (KEY.method_params, *STUDENT, *TEACHER))
    params, protocol = columns_of(columns, (KEY.method_params,)), columns_of(columns, PROTOCOL)
    values = [{column: key_text(group.shared[column]) for column in columns} for group in groups]
    by_method, by_arm = defaultdict[Any, list[dict[str, str]]](list), defaultdict[Any, list[dict[str, str]]](list)
    for group, own in zip(groups, values, strict=True):
        by_method[group.shared.method].append(own)
        by_arm[arm_of(group)].append(own)
    named = []
    for group in groups:
        varying = varying_columns(values, protocol)
        varying |= varying_columns(by_method[group.shared.method], params)
        varying |= varying_columns(by_arm[arm_of(group)], columns)
        varying -= {implied for key, implied in IMPLIED.items() if key in varying}
        settings = [f"{c.rpartition('.')[2]}={group.shared[c]}" for c in columns if c in varying]
        settings += [group.seed_control] if group.seed_control else []
        named.append(replace(group, setting=" ".join(settings)))
    return with_distinct_names(named)


def arm_of(group: RunGroup) -> tuple[str, str | None, str]:
    return group.shared.student, group.shared.teacher, group.shared.method


def varying_columns(values: Sequence[Mapping[str, str]], columns: Sequence[str]) -> set[str]:
    return {column for column in columns if len({own[column] for own in values}) > 1}


def with_distinct_names(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return the groups, numbered where no key of the summary distinguishes them."""
    total, seen, named = Counter(group.name for group in groups), Counter[str](), []
    for group in groups:
        seen[group.name] += 1
        number = f"variant={seen[group.name]}" if total[group.name] > 1 else ""
        named.append(replace(group, setting=f"{group.setting} {number}".strip()))
    return named
