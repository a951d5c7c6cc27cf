"""From run directories to a report's tables, verdict and remarks: everything but the files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.config.derived import TRAIN
from kdbench.report import statistics as st
from kdbench.report.choices import choices_table, describe_choices, remark_untuned
from kdbench.report.class_gains import class_gains_table, remark_classes
from kdbench.report.columns import GROUPS, RUNS, row
from kdbench.report.comparability import remark_comparability
from kdbench.report.components import components_table
from kdbench.report.deployment.build import Deployment, compute_deployment
from kdbench.report.design import Analysis
from kdbench.report.estimates import PlacedDesign, place_gains
from kdbench.report.failures import FailedRun, with_failures
from kdbench.report.fidelity import Fidelity, compute_fidelity
from kdbench.report.flipped import FlippedImage, ImageReader, find_flipped
from kdbench.report.followed import check_followed
from kdbench.report.functional.build import Functional, compute_functional
from kdbench.report.gains import Gain, compute_gains, gains_table, group_by
from kdbench.report.groups import (
    RunGroup,
    check_alike,
    differing_keys,
    group_runs,
    percent,
    percents,
    remark_without_validation,
    size_of,
)
from kdbench.report.interactions import interactions_table, match_capacity, match_students
from kdbench.report.plan import Plan
from kdbench.report.primary import (
    Count,
    add_primary_to_gains,
    add_primary_to_interactions,
    capacity_table,
    count_verdict,
)
from kdbench.report.runs import FoundRuns, display_path, only_trained, read_runs, rows_of
from kdbench.report.search.build import SearchPart, compute_search
from kdbench.report.search.read import FoundSearch
from kdbench.report.select import Selection, with_selection
from kdbench.report.verdict import describe_selection, judge_failures, sentence, verdict
from kdbench.rundir.summary import KEY


@dataclass(frozen=True, eq=False)
class Report:
    """Content of a report, before it is written."""

    runs: pd.DataFrame
    groups: list[RunGroup]
    gains: list[Gain]
    runs_table: pd.DataFrame
    groups_table: pd.DataFrame
    gains_table: pd.DataFrame
    interactions_table: pd.DataFrame
    capacity_table: pd.DataFrame
    fidelity: Fidelity
    functional: Functional
    std: float
    """Standard deviation within groups, pooled over them, points."""
    margin: float
    placed: PlacedDesign
    """Blocks of the primary analysis."""
    verdict: list[str]
    remarks: list[str]
    damaged: list[str]
    failed: list[FailedRun] = field(default_factory=list)
    """Runs that ended in an error, such as a diverged loss."""
    choices: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row for each choice of a setting by a study: its margin, its noise, and the winner's optimism."""
    components: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Parts of the spread over seeds: first weights, order of the images, teacher."""
    class_gains: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Gain of each class with its interval."""
    flipped: list[FlippedImage] = field(default_factory=list)
    """Test images that most pairs of runs classify differently."""
    deployment: Deployment = field(default_factory=Deployment)
    """Networks that were compressed and measured."""
    search: SearchPart = field(default_factory=SearchPart)
    """Search of settings, and how much of the gains it explains."""
    analysis: Analysis = Analysis.AUTO
    """Choice of the primary analysis: by the rule, or as declared."""
    selection: Selection | None = None
    plan: list[str] = field(default_factory=list)
    """Sentences on how far the plan that was registered before the data was followed."""
    changes: list[str] = field(default_factory=list)
    """Differences from an earlier report, and why."""


def build_report(
    paths: Sequence[Path],
    selection: Selection | None = None,
    margin: float = 0.1,
    allow_mixed: bool = False,
    analysis: Analysis = Analysis.AUTO,
    images: ImageReader | None = None,
    data_root: Path | None = None,
    plan: Plan | None = None,
    search: FoundSearch | None = None,
) -> Report:
    """Read runs and compute the report.

    Args:
        paths: run directories, or folders that hold them.
        selection: choice of a study; its winners are reported, and the runs that chose are left out.
        margin: margin of equivalence, points, above 0.
        allow_mixed: accept runs of different data sets or splits, each compared only with runs of the same data.
        analysis: primary analysis, by the rule of `kdbench.report.design` or as declared.
        images: reader of test images, for pictures of those that flip; None: no pictures.
        data_root: folder with the data, for the reader.
        plan: plan that a study registered.
        search: search of settings whose winners are reported.

    Raises:
        ConfigError: there are no runs, or they do not belong together.
    """
    everything = read_runs(paths)
    found = only_trained(everything)
    runs = with_selection(found.runs, selection)
    if not allow_mixed:
        check_alike(runs)
        check_deployed(everything.runs, runs)
    groups = group_runs(runs)
    deployment = compute_deployment(everything.runs, groups)
    gains = compute_gains(groups)
    std = st.pooled_std([group.accuracies for group in groups])
    placed = place_gains(gains, analysis)
    table = add_primary_to_gains(gains_table(gains, std, margin), gains, placed, margin)
    pairs, unmatched = match_students(gains)
    interactions = add_primary_to_interactions(interactions_table(pairs, std), pairs, placed)
    capacity = capacity_table(match_capacity(gains), placed)
    fidelity = compute_fidelity(runs, groups, gains)
    functional = compute_functional(runs, groups)
    flipped, without_pictures = find_flipped(gains, runs, images, data_root)
    components, incomplete = components_table(groups)
    searched = compute_search(search, runs, gains, selection, found.runs)
    choices = choices_table(selection, found.runs, groups)
    counts = count_verdict(gains, placed), count_with_failures(found, selection, analysis)
    limits = [*judge_failures(found.failed, *counts), *map(sentence, remark_untuned(selection, runs))]
    return Report(
        runs=runs,
        groups=groups,
        gains=gains,
        runs_table=pd.DataFrame([run_row(r, g) for g in groups for r in g.rows], columns=RUNS),
        groups_table=pd.DataFrame([group_row(group) for group in groups], columns=GROUPS),
        gains_table=table,
        interactions_table=interactions,
        capacity_table=capacity,
        fidelity=fidelity,
        functional=functional,
        std=std,
        margin=margin,
        placed=placed,
        verdict=[
            *(remark_untrained(runs) or verdict(gains, table, interactions, capacity, placed, margin, limits)),
            *describe_selection(selection, runs),
            *describe_choices(choices),
        ],
        remarks=[
            *found.remarks,
            *remark_without_validation(runs),
            *remark_mixed(runs),
            *remark_repeated_seeds(groups),
            *remark_without_baseline(gains),
            *remark_pooled(gains),
            *remark_untested(table),
            *unmatched,
            *fidelity.remarks,
            *functional.remarks,
            *deployment.remarks,
            *searched.remarks,
            *without_pictures,
            *remark_tuned(runs),
            *remark_comparability(groups, gains, table),
            *incomplete,
            *remark_classes(groups),
        ],
        damaged=found.damaged,
        class_gains=class_gains_table(gains),
        flipped=flipped,
        deployment=deployment,
        search=searched,
        failed=everything.failed,
        choices=choices,
        components=components,
        analysis=analysis,
        selection=selection,
        plan=check_followed(plan, gains, interactions, selection, analysis, margin) if plan else [],
    )


def check_deployed(everything: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Check that runs that compressed or measured belong to the trained runs of the report.

    Raises:
        ConfigError: they are of different data sets or splits.
    """
    is_deployed = everything.kind != TRAIN
    if is_deployed.any():
        # Runs that compressed or measured do not record whether validation images were held out.
        checked = everything[is_deployed | everything.run_key.isin(runs.run_key)]
        check_alike(checked.assign(**{KEY.validation: True}))


def count_with_failures(found: FoundRuns, selection: Selection | None, analysis: Analysis) -> Count | None:
    """Return the counts of the verdict with failed runs at chance accuracy; None if none of them counts."""
    runs = with_failures(found.runs, found.failed)
    if runs is None:
        return None
    gains = compute_gains(group_runs(with_selection(runs, selection)))
    return count_verdict(gains, place_gains(gains, analysis))


def remark_mixed(runs: pd.DataFrame) -> list[str]:
    """Remark that runs of several data sets or splits stand together, as --allow-mixed allows."""
    differing = differing_keys(runs)
    if not differing:
        return []
    described = "; ".join(f"{key}: {values}" for key, values in differing.items())
    return [
        f"MIXED ({described}): each group is compared only with groups of the same data, but one standard deviation is "
        "pooled over all of them, and so every number of seeds and every detectable difference here is of little use"
    ]


def remark_untrained(runs: pd.DataFrame) -> list[str]:
    """Return the first sentence of a report on networks that were compressed or measured without their trained runs."""
    return [] if len(runs) else ["No trained run is here: the report is about compressed and measured networks alone."]


def remark_repeated_seeds(groups: Sequence[RunGroup]) -> list[str]:
    """Remark on groups with several runs of the same seeds, which are no independent samples."""
    return [
        f"{group.name}: several runs have the same seeds; they are no independent samples"
        for group in groups
        if len(set(group.seeds)) < len(group.seeds)
    ]


def remark_without_baseline(gains: Sequence[Gain]) -> list[str]:
    """Remark on gains that cannot be computed, or whose baseline is one of several; a line for each reason."""
    unusual = [gain for gain in gains if gain.remark and not gain.is_pooled]
    by_reason = group_by(unusual, lambda gain: gain.remark)
    return [f"{reason}: {'; '.join(gain.group.name for gain in of)}" for reason, of in by_reason]


def remark_pooled(gains: Sequence[Gain]) -> list[str]:
    """Remark on gains over several teachers that runs are missing from."""
    unusual = [gain for gain in gains if gain.is_pooled and ";" in gain.remark]
    by_reason = group_by(unusual, lambda gain: gain.remark.partition("; ")[2])
    return [f"teachers pooled: {reason} ({'; '.join(gain.group.name for gain in of)})" for reason, of in by_reason]


def remark_untested(gains: pd.DataFrame) -> list[str]:
    """Remark how many gains are without a test, and why."""
    untested = gains[gains.delta.notna() & gains.p_welch.isna()]
    counts = untested.remarks.value_counts(sort=False)
    return [f"{n} gain{'s' if n > 1 else ''}: {reason}" for reason, n in counts.items() if reason]


def remark_tuned(runs: pd.DataFrame) -> list[str]:
    """Remark on students whose baseline has a selected recipe too."""
    tuned = sorted({run.student for run in rows_of(runs) if run.tuned})
    if not tuned:
        return []
    return [f"the recipe of the baseline of {', '.join(tuned)} was selected too: gains are over that baseline"]


def group_row(group: RunGroup) -> dict[str, Any]:
    """Return a row of groups.csv."""
    shared, best, last = group.shared, group.accuracies, percents(group.runs.test_acc_final)
    return row(
        student=shared.student, teacher=shared.teacher, method=shared.method, role=shared.role, setting=group.setting,
        teacher_seed=shared.teacher_seed, params=size_of(shared, KEY.num_params),
        macs=size_of(shared, KEY.macs), n=len(best),
        mean=float(np.mean(best)), std=st.std(best),
        mean_last=float(np.mean(last)) if last else None, std_last=st.std(last),
    )  # fmt: skip


def run_row(run: Any, group: RunGroup) -> dict[str, Any]:
    """Return a row of runs.csv."""
    return row(
        run_key=run.run_key, student=run.student, teacher=run.teacher, method=run.method, role=run.role,
        setting=group.setting, seed=run.seed, init_seed=run.init_seed, data_seed=run.data_seed,
        teacher_seed=run.teacher_seed, epochs=run.epochs, best_val_epoch=run.best_val_epoch,
        best_val_acc=percent(run.best_val_acc), test_acc_best=percent(run.test_acc_best),
        test_acc_final=percent(run.test_acc_final), nll=run.test_nll, ece=percent(run.test_ece),
        agreement=percent(run.agreement), kl_t1=run.kl_t1, kl_t4=run.kl_t4, params=size_of(run, KEY.num_params),
        macs=size_of(run, KEY.macs),
        precision=run.precision, train_seconds=run.train_seconds, images_per_second=run.images_per_second,
        device=run.device, path=display_path(run.path),
    )  # fmt: skip
