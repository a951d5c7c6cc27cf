"""Runs of a study that begin with those of earlier stages: chains of compressions, and measurements."""

import dataclasses
from collections.abc import Sequence

from kdbench.errors import ConfigError
from kdbench.pipeline.chain import Link, link_of, measure_configs, plan_chain
from kdbench.pipeline.steps import TRAININGS, compose_measurement, read_chain
from kdbench.study.progress import is_done
from kdbench.study.stages import ChainConfig, Study
from kdbench.sweep.overrides import key_of, override
from kdbench.sweep.plan import PlannedRun


@dataclasses.dataclass
class DerivedRuns:
    """Planned runs of one command of kdbench-compress or kdbench-measure."""

    command: list[str]
    levels: list[list[PlannedRun]]
    """Runs that can be executed at once, those before them first."""


def plan_chains(study: Study, title: str, chain: ChainConfig, parents: Sequence[PlannedRun]) -> DerivedRuns:
    """Return the runs of a chain for each of its parents.

    Args:
        study: the study.
        title: name of the chain.
        chain: the chain.
        parents: runs of the stages that it begins with.

    Raises:
        ConfigError: the chain is not possible.
    """
    texts = [override("chain", list(chain.steps)), *chain.settings]
    trains = bool({*chain.steps} & {*TRAININGS})  # compressions are evaluated in float32 whatever the study says
    shared = [text for text in study.shared_overrides() if trains or key_of(text) != "runtime.precision"]
    steps = read_chain([*shared, *texts], study.config_dir)
    chosen = [run for run in parents if not run.error and run.config.student.name in (chain.networks or [name_of(run)])]
    if not chosen:
        raise ConfigError(
            f"study={study.name}: chains.{title} has no run to begin with: no student of {', '.join(chain.of)} is one "
            f"of {', '.join(chain.networks) or 'those that can run'}",
            code="mismatch",
            key=f"chains.{title}.networks",
        )
    levels: list[list[PlannedRun]] = [[] for _ in steps.steps]
    for run in chosen:
        links = plan_chain(link_of(run.config), steps, study.config_dir, study.composer)
        for level, link in zip(levels, links, strict=True):
            level.append(planned(link, title))
    command = ["kdbench-compress", *own_options(study), *folders(chosen), *shared, *texts]
    return DerivedRuns(command, levels)


def plan_measurement(
    study: Study, settings: Sequence[str], parents: Sequence[PlannedRun], only_done: bool
) -> DerivedRuns:
    """Return the runs that measure networks in turn.

    Args:
        study: the study.
        settings: settings of the measurement.
        parents: runs of the networks.
        only_done: leave out the runs that are not complete, once all of them were tried.
    """
    chosen = [run for run in parents if not run.error and (is_done(run) or not only_done)]
    if not chosen:
        return DerivedRuns(["kdbench-measure"], [])
    links = [link_of(run.config) for run in chosen]
    measure = compose_measurement(settings, study.config_dir)
    configs = measure_configs(links, measure, study.shared_overrides(), study.config_dir, study.composer)
    runs = [planned(link_of(config), "measurement") for config in configs]
    shared = [text for text in study.shared_overrides() if key_of(text) == "runtime.device"]
    return DerivedRuns(["kdbench-measure", *own_options(study), *folders(chosen), *shared, *settings], [runs])


def own_options(study: Study) -> list[str]:
    """Return the flag that names the user's own folder of options, if there is one."""
    return ["--config-dir", str(study.config_dir)] if study.config_dir else []


def planned(link: Link, title: str) -> PlannedRun:
    """Return a run of a chain as a run of the study."""
    config = link.config
    kind = override("kind", config.kind)
    parent = override("parent", config.parent.run) if config.parent else kind
    return PlannedRun((kind, parent), f"{title}: {config.title}", composed=config, key=link.key)


def folders(runs: Sequence[PlannedRun]) -> list[str]:
    """Return the run directories of planned runs."""
    return [str(run.directory.path) for run in runs]


def name_of(run: PlannedRun) -> str:
    """Return the name of a run's student."""
    return run.config.student.name
