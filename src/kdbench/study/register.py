"""A plan before the data: what a study will test, written with a hash before the first run that reports exists."""

import dataclasses
import datetime
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdbench import __version__
from kdbench.config import RunConfig
from kdbench.errors import ConfigError, first_line
from kdbench.report.gains import POOLED
from kdbench.report.plan import (
    PLAN_FILE,
    RULES,
    Plan,
    PlannedGain,
    PlannedInteraction,
    as_content,
    hash_of,
    read_plan,
)
from kdbench.report.statistics import ALPHA
from kdbench.rundir.files import write_text
from kdbench.runner.environment import git_state
from kdbench.runner.run import resolve_run
from kdbench.study.plan import StudyPlan
from kdbench.study.stages import BASELINE_METHOD, StageConfig, grid_overrides
from kdbench.study.winners import yaml_of
from kdbench.sweep.overrides import key_of, override
from kdbench.sweep.plan import PlannedRun

SEEDS = ("teacher.seed", "init_seed", "data_seed")
"""Overrides of a stage that make no other setting."""
STOPPING = "each stage is trained with these seeds and no others, and the report is made once, when all runs are done"
CORRECTION = "Holm's method within the primary family of gains, and within that of interactions"
HEADER = "# Registered before the first run that reports. Not to be edited: sha256 is computed from the content.\n"


@dataclass(frozen=True)
class Registration:
    """Result of `register`."""

    file: Path
    plan: Plan
    is_new: bool
    """False if the same plan was registered before."""


def register(study: StudyPlan, analysis: str, margin: float) -> Registration:
    """Write plan.yaml into the folder of a study, unless the same plan is there already.

    Args:
        study: plan of the runs.
        analysis: primary analysis, as `kdbench-report --analysis` names it.
        margin: margin of equivalence, points.

    Raises:
        ConfigError: a run that reports exists, another plan is registered, or there is nothing to register.
    """
    file, plan = study.folder / PLAN_FILE, plan_of(study, analysis, margin)
    if file.is_file():
        check_same(read_plan(file), plan, file)
        return Registration(file, read_plan(file), is_new=False)
    check_no_final_run(study)
    content = as_content(plan)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, HEADER + yaml_of(content | {"sha256": hash_of(content)}))
    return Registration(file, plan, is_new=True)


def plan_of(study: StudyPlan, analysis: str, margin: float) -> Plan:
    """Return what a study will test, from its stages and the command line.

    Raises:
        ConfigError: it tests nothing, or a run that it needs is refused.
    """
    titles = reporting_stages(study)
    gains = with_pooled([gain for title in titles for gain in gains_of(study, title)])
    if not gains:
        raise ConfigError(
            f"study={study.study.name} distils no student in a stage that reports, so there is nothing to register; "
            "give a stage without choose pairs and methods, or winners_of",
            code="nothing_to_register",
            key="--register",
        )
    common = common_items([gain.recipe for gain in gains])
    gains = [replaced_recipe(gain, common) for gain in gains]
    stages = study.study.config.stages
    git = git_state()
    return Plan(
        study=study.study.name,
        question=study.study.config.question.strip(),
        changes=study.study.changes,
        stages=titles,
        gains=gains,
        interactions=interactions_of(gains),
        tests={"analysis": analysis, "rule": RULES[analysis], "correction": CORRECTION, "level": ALPHA},
        margin=margin,
        stopping={"seeds": {title: stages[title].seeds for title in titles}, "rule": STOPPING},
        selection=selection_of(study),
        data=data_of(study, titles),
        recipe=common,
        version=__version__,
        git_revision=None if git["git_revision"] is None else str(git["git_revision"]),
        registered=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    )


def reporting_stages(study: StudyPlan) -> list[str]:
    """Return the stages whose runs report: those that neither choose nor train teachers alone."""
    stages = {title: study.stage(title) for title in study.study.stages}
    return [title for title, stage in stages.items() if not stage.choose and (stage.students or stage.pairs)]


def check_no_final_run(study: StudyPlan) -> None:
    """Check that no run of a reporting stage exists.

    Raises:
        ConfigError: one is complete or was started.
    """
    runs = {run.key: run for title in reporting_stages(study) for run in final_runs(study, title)}
    found = [run for run in runs.values() if run.directory.path.exists()]
    if found:
        state = "complete" if found[0].directory.is_complete() else "started"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigError(
            f"a plan is registered before the first run that reports, and {found[0].directory.path} is {state}{more}; "
            "give another output_root or other final_seeds, so that no result is known yet",
            code="too_late",
            key="--register",
        )


def final_runs(study: StudyPlan, title: str) -> list[PlannedRun]:
    """Return the runs of a reporting stage that are planned and not refused, without its teachers."""
    stage = study.stage(title)
    teachers = {run.key for sweep in study.sweeps[title] for run in sweep.runs if trains_teacher(run, stage)}
    return [run for run in study.runs_of(title) if not run.error and run.key not in teachers]


def trains_teacher(run: PlannedRun, stage: StageConfig) -> bool:
    """Return whether a run of a stage trains one of its teachers and none of its students."""
    return not run.error and run.config.student.name in set(stage.teachers) - set(stage.students)


def check_same(registered: Plan, plan: Plan, file: Path) -> None:
    """Check that a plan is the registered one.

    Raises:
        ConfigError: it is another one.
    """
    differing = differences(registered, plan)
    if differing:
        raise ConfigError(
            f"another plan is registered in {file}: it differs in {', '.join(differing)}, and stays; give the command "
            "line that registered it, or register the new plan under another output_root",
            code="registered",
            key="--register",
        )


def differences(registered: Plan, plan: Plan) -> list[str]:
    """Return the keys in which two plans differ, but for when and by which version they were made."""
    old, new = registered.intent, plan.intent
    return [key for key in old if old[key] != new[key]]


def gains_of(study: StudyPlan, title: str) -> list[PlannedGain]:
    """Return the hypotheses of a stage: each pair by each method with each of its settings.

    Raises:
        ConfigError: a run of one of them is refused.
    """
    stage = study.stage(title)
    gains = []
    for method, grid in methods_of(study, stage).items():
        pairs, first_seed = override("pair", *stage.pairs), override("seed", stage.seeds[0])
        sweep = study.study.sweep(stage, pairs, override("method", method), *grid_overrides(grid), first_seed)
        own = {*(grid or {}), *map(key_of, stage.overrides)}
        for overrides in study.study.expand(sweep):
            run = study.plan_run(overrides)
            if run.error:
                raise run.error
            setting = " ".join(text for text in overrides if key_of(text) in own - set(SEEDS))
            gain = planned_gain(study, title, resolve_run(run.config)[0], setting)
            gains += [gain] if gain not in gains else []
    return gains


def methods_of(study: StudyPlan, stage: StageConfig) -> Mapping[str, Any]:
    """Return the methods of a stage with their grids; those of winners have none."""
    if not stage.pairs:
        return {}
    if stage.winners_of is None:
        return stage.methods
    return dict.fromkeys(stage.winning_methods or study.stage(stage.winners_of).methods)


def planned_gain(study: StudyPlan, title: str, config: RunConfig, setting: str) -> PlannedGain:
    """Return the hypothesis of a stage that a run is one seed of."""
    stage, teacher = study.stage(title), config.teacher
    varied: set[str] = set()
    if stage.winners_of:
        selection = study.stage(stage.winners_of)
        grids = [selection.methods.get(config.method.name), selection.baseline]
        varied = {key.removeprefix("recipe.") for grid in grids for key in grid or {}}
        setting = f"the winner of stage {stage.winners_of} {setting}".strip()
    recipe = {key: value for key, value in config.recipe.settings().items() if key not in varied}
    winner = study.study.selects_baseline(study.stage(stage.winners_of)) if stage.winners_of else False
    return PlannedGain(
        student=config.student.name,
        teacher=teacher.model.name if teacher else None,
        teacher_seed=teacher.seed if teacher and not teacher.checkpoint else None,
        method=config.method.name,
        setting=setting,
        method_params=None if stage.winners_of else as_json(dataclasses.asdict(config.method.params)),
        recipe=as_json(recipe),
        stem=config.student.stem,
        seeds=stage.seeds,
        baseline=f"{config.student.name} by {BASELINE_METHOD}"
        + (f", the winner of stage {stage.winners_of}" if winner else ""),
        baseline_seeds=baseline_seeds(study, title, config.student.name),
    )


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as their summary has them: plain data of JSON."""
    content: dict[str, Any] = json.loads(json.dumps(dict(values)))
    return content


def baseline_seeds(study: StudyPlan, title: str, student: str) -> list[int]:
    """Return the seeds with which a student is trained without a teacher: in the same stage, else in another one."""
    own = study.stage(title)
    others = [study.stage(other) for other in reporting_stages(study) if other != title]
    alike = [stage for stage in others if settings_of(stage) in ([], settings_of(own))]
    alike.sort(key=lambda stage: settings_of(stage) != settings_of(own))
    found = [stage.seeds for stage in (own, *alike) if student in stage.students]
    return sorted(set(found[0] if found else []))


def settings_of(stage: StageConfig) -> list[str]:
    """Return the overrides of a stage that change a run without a teacher by more than its seeds."""
    return [text for text in stage.overrides if not key_of(text).startswith(("teacher", "method", *SEEDS))]


def with_pooled(gains: Sequence[PlannedGain]) -> list[PlannedGain]:
    """Return the hypotheses, and after them one for each set that differs in the seed of the teacher alone."""
    together: dict[str, list[PlannedGain]] = {}
    for gain in gains:
        identity = {name: value for name, value in vars(gain).items() if name not in ("teacher_seed", "seeds")}
        together.setdefault(json.dumps(identity, sort_keys=True), []).append(gain)
    pooled = [
        PlannedGain(**vars(members[0]) | {"teacher_seed": POOLED})
        for members in together.values()
        if len({gain.teacher_seed for gain in members}) > 1
    ]
    return [*gains, *pooled]


def interactions_of(gains: Iterable[PlannedGain]) -> list[PlannedInteraction]:
    """Return a hypothesis for each two students that learn from the same teacher by the same method."""
    students: dict[tuple[Any, ...], dict[str, None]] = {}
    for gain in gains:
        students.setdefault((gain.method, gain.teacher, gain.teacher_seed), {})[gain.student] = None
    return [
        PlannedInteraction(method=method, teacher=teacher, teacher_seed=seed, students=list(pair))
        for (method, teacher, seed), names in students.items()
        for pair in itertools.combinations(names, 2)
    ]


def common_items(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the items that all recipes share."""
    first, *others = recipes
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def replaced_recipe(gain: PlannedGain, common: Mapping[str, Any]) -> PlannedGain:
    """Return a hypothesis with those keys of its recipe alone that not all share."""
    own = {key: value for key, value in gain.recipe.items() if key not in common}
    return PlannedGain(**vars(gain) | {"recipe": own})


def selection_of(study: StudyPlan) -> dict[str, Any] | None:
    """Return the source of the settings; with the winners where they are chosen already."""
    choosing = [title for title, stage in study.study.config.stages.items() if stage.choose]
    used = [title for title in choosing if any(study.stage(t).winners_of == title for t in study.study.stages)]
    if not used:
        return None
    stage = study.stage(used[0])
    shown = ("student", "teacher", "method", "overrides")
    winners = [{name: getattr(winner, name) for name in shown} for winner in study.winners.get(used[0], [])]
    return {"stage": used[0], "seeds": stage.seeds, "chosen_by": stage.choose, "winners": winners or None}


def data_of(study: StudyPlan, titles: Sequence[str]) -> dict[str, Any]:
    """Return data set and split of the runs that report, by the names of their summaries."""
    runs = [run for title in titles for run in final_runs(study, title)]
    config = resolve_run(runs[0].config if runs else study.study.compose_example())[0].data
    params = config.params
    return {
        "dataset": config.name,
        "num_train": params.num_train,
        "num_val": params.num_val,
        "num_test": params.num_test,
        "validation": params.validation,
    }


def find_plan(study: StudyPlan) -> Path | None:
    """Return the plan that a study was registered with: its own, or that of the same study with other settings.

    Other settings, such as other seeds, have a folder of their own; other overrides make another study.
    """
    own = study.folder / PLAN_FILE
    if own.is_file():
        return own
    for file in sorted(study.folder.parent.glob(f"*/{PLAN_FILE}")):
        try:
            content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
            same = (content["study"], content["changes"]["overrides"])
        except Exception:  # damaged, so of no known study; its own study reports the damage
            continue
        if same == (study.study.name, study.study.changes["overrides"]):
            return file
    return None


def describe_registration(study: StudyPlan) -> str:
    """Return in one line whether a study is registered, for --dry-run, which shows refused runs and goes on."""
    file = find_plan(study)
    if file is None:
        return "not registered; --register writes the plan before the first run that reports"
    registered = read_plan(file)
    text = f"registered on {registered.time:%Y-%m-%d at %H:%M %Z}: {file}"
    try:
        differing = differences(registered, plan_of(study, registered.analysis, registered.margin))
    except ConfigError as error:
        return f"{text}; this command line cannot be compared with it: {first_line(error)}"
    return f"{text}; this command line differs in {', '.join(differing)}" if differing else text
