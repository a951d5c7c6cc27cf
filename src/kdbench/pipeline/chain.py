"""Plan and execution of a chain: a run per step, each found by its key."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.config import RunConfig, compose
from kdbench.config.derived import COMPRESS, MEASURE, TRAIN, CompressConfig, MeasureConfig, ParentConfig
from kdbench.config.sections import TeacherConfig
from kdbench.errors import ConfigError
from kdbench.pipeline.steps import DISTIL, FINETUNE, Chain
from kdbench.rundir.identity import group_key, identity_of, run_key
from kdbench.rundir.related import LONGEST_NAME, RelatedRun, tuned_name
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import RunResult, resolve_run
from kdbench.sweep.overrides import override
from kdbench.system.device import device_name, resolve_runtime

log = logging.getLogger(__name__)

Composer = Callable[[Sequence[str], Path | None], RunConfig]


@dataclass(frozen=True)
class Link:
    """A run of a chain, finished or planned."""

    config: RunConfig
    key: str
    group: str

    @classmethod
    def of(cls, run: RelatedRun) -> "Link":
        """Return the link that a finished run is."""
        parent = run.as_parent()
        return cls(run.config, parent.run, parent.group)

    def as_parent(self) -> ParentConfig:
        return ParentConfig(self.key, self.group, self.config.steps)


def link_of(config: RunConfig) -> Link:
    """Return the link of a planned run, resolved as far as that is possible before its parent is finished."""
    config = resolve_run(config)[0]
    return Link(config, run_key(config), group_key(identity_of(config), config))


def plan_chain(root: Link, chain: Chain, config_dir: Path | None = None, composer: Composer = compose) -> list[Link]:
    """Return the runs of a chain in their order. Starts and writes nothing.

    Args:
        root: run that the chain begins with.
        chain: its steps.
        config_dir: folder of the user's own options.
        composer: function that composes a run.

    Raises:
        ConfigError: a run cannot be composed.
    """
    links, current = list[Link](), root
    for step in chain.steps:
        if step == DISTIL:
            config = distil_config(root, current, chain, config_dir, composer)
        elif step == FINETUNE:
            config = finetune_config(root, current, chain, config_dir, composer)
        else:
            config = compress_config(current, chain.compressions[step], frame_of(root, chain, config_dir, composer))
        current = link_of(config)
        links.append(current)
    return links


def execute_chain(links: Sequence[Link]) -> list[RunResult]:
    """Complete the runs of a chain, one after the other, up to the first that fails.

    Raises:
        Interrupted: a stop was requested; the same call continues.
    """
    results = []
    for link in links:
        (result,) = run_with_retries([link.config])
        results.append(result)
        if result.error:
            break
    return results


# Configs of the steps


def frame_of(root: Link, chain: Chain, config_dir: Path | None, composer: Composer) -> RunConfig:
    """Return a run with the settings of the command line that every run of a chain has, such as its runtime."""
    own = root.config
    shared = composer(["student=resnet8", "teacher=none", "method=ce", *only_shared(chain.overrides)], config_dir)
    data = own.data
    given = {text.partition("=")[0] for text in chain.overrides}
    for name in ("root", "download"):
        if f"data.{name}" in given and hasattr(data.params, name):
            keys = dataclasses.replace(data.params, **{name: getattr(shared.data.params, name)})
            data = dataclasses.replace(data, params=keys)
    return dataclasses.replace(
        shared, data=data, output_root=own.output_root, report=None, trust=own.trust, overwrite=shared.overwrite
    )


def only_shared(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that runs of every kind have.

    Raises:
        ConfigError: one sets what a chain sets itself.
    """
    fixed = ("data", "student", "teacher", "pair", "experiment", "output_root", "report", "parent", "kind")
    for text in overrides:
        key = text.partition("=")[0].lstrip("+")
        if key in fixed or (key.startswith("data.") and key not in ("data.root", "data.download")):
            remedy = "give distil.student=NAME" if key == "student" else f"the run that is compressed sets {key} itself"
            raise ConfigError(f"{text}: {remedy}", code="set_by_chain", key=key)
    sections = ("runtime", "checkpoint", "data")
    keys = ("on_busy", "overwrite")
    return [text for text in overrides if (key := text.partition("=")[0]) in keys or key.split(".")[0] in sections]


def compress_config(parent: Link, compress: CompressConfig, frame: RunConfig) -> RunConfig:
    """Return the run that compresses a network.

    Args:
        parent: run of the network.
        compress: the compression.
        frame: settings that every run of the chain has.
    """
    name = f"{parent.config.student.name}-{compress.name}"[:LONGEST_NAME]
    student = dataclasses.replace(parent.config.student, name=name, weights=None, weights_hash=None)
    return dataclasses.replace(
        parent.config,
        kind=COMPRESS,
        student=student,
        data=frame.data,
        runtime=dataclasses.replace(frame.runtime, precision="fp32"),
        checkpoint=frame.checkpoint,
        output_root=frame.output_root,
        on_busy=frame.on_busy,
        overwrite=frame.overwrite,
        report=None,
        parent=parent.as_parent(),
        compress=compress,
        measure=None,
        trust=frame.trust,
    )


def measure_config(parent: Link, measure: MeasureConfig, frame: RunConfig) -> RunConfig:
    """Return the run that measures a network. Arguments: see `compress_config`."""
    config = compress_config(parent, CompressConfig("measured", type(None), None), frame)
    student = dataclasses.replace(parent.config.student, weights=None, weights_hash=None)
    return dataclasses.replace(config, kind=MEASURE, student=student, compress=None, measure=measure)


def measure_configs(
    parents: Sequence[Link],
    measure: MeasureConfig,
    overrides: Sequence[str] = (),
    config_dir: Path | None = None,
    composer: Composer = compose,
) -> list[RunConfig]:
    """Return the runs that measure several networks in turn, on this machine.

    Args:
        parents: runs of the networks.
        measure: settings of the measurement.
        overrides: of every run, such as `runtime.device=cpu`.
        config_dir: folder of the user's own options.
        composer: function that composes a run.
    """
    together = sorted({parent.key for parent in parents})
    configs = []
    for parent in parents:
        frame = frame_of(parent, Chain((), {}, {}, tuple(overrides)), config_dir, composer)
        frame = dataclasses.replace(frame, runtime=dataclasses.replace(frame.runtime, threads=measure.threads))
        device = device_name(resolve_runtime(frame.runtime).device)
        settings = dataclasses.replace(measure, device=device, together=together)
        configs.append(measure_config(parent, settings, frame))
    return configs


def training_config(
    root: Link, step: str, chain: Chain, own: Sequence[str], config_dir: Path | None, composer: Composer
) -> RunConfig:
    """Return an ordinary run on the data of a chain's first run, by its recipe with the changes of the command line.

    Args:
        root: run that the chain begins with.
        step: name of the step.
        chain: the chain.
        own: overrides of the step before those of the command line.
        config_dir: folder of the user's own options.
        composer: function that composes a run.
    """
    frame = frame_of(root, chain, config_dir, composer)
    given = [*chain.overrides, *chain.trainings[step]]
    texts = [text for text in given if not text.startswith("data.")]
    composed = composer([*own, *texts], config_dir)
    keys = {text.partition("=")[0].lstrip("+") for text in given}
    recipe = composed.recipe
    if "recipe" not in keys:
        if root.config.method.name == "checkpoint":
            raise ConfigError(
                f"how {root.config.student.name} was trained is unknown, since its weights were given; give {step} a "
                f"recipe: {step}.recipe=lab",
                code="missing_value",
                key=f"{step}.recipe",
            )
        changed = {key.partition(".")[2] for key in keys if key.startswith("recipe.")}
        recipe = dataclasses.replace(root.config.recipe, **{name: getattr(recipe, name) for name in changed})
    seeds = composed if keys & {"seed", "init_seed", "data_seed"} else root.config
    return dataclasses.replace(
        composed,
        data=frame.data,
        recipe=recipe,
        output_root=frame.output_root,
        trust=frame.trust,
        seed=seeds.seed,
        init_seed=seeds.init_seed,
        data_seed=seeds.data_seed,
    )


def finetune_config(root: Link, current: Link, chain: Chain, config_dir: Path | None, composer: Composer) -> RunConfig:
    """Return the run that trains a network further; the teacher of a method that needs one is the chain's first run."""
    own = ["student=resnet8", "teacher=none", "method=ce"]
    texts = [*chain.overrides, *chain.trainings[FINETUNE]]
    if any(text.startswith("method=") and text != "method=ce" for text in texts):
        own[1] = override("teacher.run", root.key)
    config = training_config(root, FINETUNE, chain, own, config_dir, composer)
    name = tuned_name(current.config.student.name)
    student = dataclasses.replace(current.config.student, name=name, weights=None, weights_hash=None)
    return dataclasses.replace(
        config, kind=TRAIN, student=student, parent=current.as_parent(), teacher=taught_by(root, config.teacher)
    )


def distil_config(root: Link, current: Link, chain: Chain, config_dir: Path | None, composer: Composer) -> RunConfig:
    """Return the run that distils a network into another one.

    Raises:
        ConfigError: the other one is not named.
    """
    texts = [*chain.overrides, *chain.trainings[DISTIL]]
    if not any(text.startswith("student=") for text in texts):
        raise ConfigError(
            "the step distil needs the network into which is distilled: give distil.student=NAME, such as "
            "distil.student=resnet8",
            code="missing_value",
            key="distil.student",
        )
    config = training_config(
        root, DISTIL, chain, [override("teacher.run", current.key), "method=logit"], config_dir, composer
    )
    return dataclasses.replace(config, teacher=taught_by(current, config.teacher))


def taught_by(link: Link, teacher: TeacherConfig | None) -> TeacherConfig | None:
    """Return the teacher of a run as a run of a chain, planned or finished; None where the method needs none."""
    if teacher is None:
        return None
    model = dataclasses.replace(link.config.student, weights=None, weights_hash=None)
    return dataclasses.replace(
        teacher, model=model, run=link.as_parent(), seed=link.config.seed, recipe=link.config.recipe
    )
