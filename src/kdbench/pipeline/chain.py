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
from kdbench.pipeline.steps import DISTIL, FINETUNE, SHARED, TRAININGS, Chain, is_within
from kdbench.rundir.identity import group_key, identity_of, run_key
from kdbench.rundir.related import LONGEST_NAME, RelatedRun, tuned_name
from kdbench.runner.compressing import check_order
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import RunResult, resolve_run
from kdbench.sweep.overrides import key_of, override
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
    check_overrides(chain)
    check_start(root, chain)
    links, current = list[Link](), root
    for step in chain.steps:
        if step == DISTIL:
            config = distil_config(root, current, chain, config_dir, composer)
        elif step == FINETUNE:
            config = finetune_config(root, current, chain, config_dir, composer)
        else:
            config = compress_config(current, chain.compressions[step], frame_of(root, chain, config_dir, composer))
        if step in TRAININGS and len(links) < len(chain.steps) - 1:
            check_own_predictions(config, step)
        current = link_of(config)
        links.append(current)
    return links


def check_start(root: Link, chain: Chain) -> None:
    """Check that a chain can begin with a run.

    Raises:
        ConfigError: its first step cannot follow what was done to the network of the run.
    """
    first, before = chain.steps[0], root.config.compress
    if first in chain.compressions:
        check_order(before, root.config.student, chain.compressions[first])
    elif first == FINETUNE and before and not before.target.trainable:
        raise ConfigError(
            f"{root.config.student.name}: finetune cannot follow {before.name}, whose weights are rounded; give the "
            "run before it",
            code="wrong_order",
            key="chain",
        )


def check_own_predictions(config: RunConfig, step: str) -> None:
    """Check that the network of a training predicts alone, where another step follows.

    Raises:
        ConfigError: its method takes part in predictions.
    """
    if config.method.target.predicts():
        raise ConfigError(
            f"{step}.method={config.method.name} predicts with a part of the method, and no step can follow; use "
            "another method, or end the chain with it",
            code="method_predicts",
            key=f"{step}.method",
        )


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


OF_CHAIN = ("data", "teacher", "student", "pair", "experiment", "output_root", "report", "parent", "kind", "trust")
"""Keys and sections that a chain sets itself."""


def only_shared(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that runs of every kind have."""
    return [text for text in overrides if is_within(key_of(text), SHARED)]


def check_overrides(chain: Chain) -> None:
    """Check that each override of a command line changes something.

    Raises:
        ConfigError: one sets what the chain sets itself, or a key of trainings where there is none.
    """
    for step, texts in chain.trainings.items():
        for text in texts:
            key = key_of(text)
            own = ("teacher.cache", "student") if step == DISTIL else ("teacher.cache",)
            allowed = (*own, *(name for name in SHARED if not name.startswith("data")))
            if is_within(key, OF_CHAIN) and not is_within(key, allowed):
                raise ConfigError(
                    f"{step}.{text}: the chain sets {key} itself, by the run with which it begins and its steps",
                    code="set_by_chain",
                    key=f"{step}.{key}",
                )
    for text in chain.overrides:
        key = key_of(text)
        if is_within(key, SHARED) and (chain.trainings or key != "runtime.precision"):
            continue
        if is_within(key, OF_CHAIN):
            remedy = "give distil.student=NAME" if key == "student" else f"the chain sets {key} itself"
            raise ConfigError(f"{text}: {remedy}", code="set_by_chain", key=key)
        if not chain.trainings:
            settings = [f"{name}.{f}" for name, one in chain.compressions.items() for f in one.step if f != "name"]
            raise ConfigError(
                f"{text} has no effect: {chain.title} trains nothing; settings of its steps: {', '.join(settings)}",
                code="unused_key",
                key=key,
            )


def derived_config(parent: Link, kind: str, frame: RunConfig) -> RunConfig:
    """Return a run without a training that begins with another run.

    Args:
        parent: the other run.
        kind: compress or measure.
        frame: settings that every run of the command has.
    """
    return dataclasses.replace(
        parent.config,
        kind=kind,
        student=dataclasses.replace(parent.config.student, weights=None, weights_hash=None),
        data=frame.data,
        runtime=dataclasses.replace(frame.runtime, precision="fp32"),
        checkpoint=frame.checkpoint,
        output_root=frame.output_root,
        on_busy=frame.on_busy,
        overwrite=frame.overwrite,
        report=None,
        trackers=frame.trackers,
        parent=parent.as_parent(),
        compress=None,
        measure=None,
        trust=frame.trust,
    )


def compress_config(parent: Link, compress: CompressConfig, frame: RunConfig) -> RunConfig:
    """Return the run that compresses a network by a compression. Other arguments: see `derived_config`."""
    config = derived_config(parent, COMPRESS, frame)
    name = f"{config.student.name}-{compress.name}"[:LONGEST_NAME]
    return dataclasses.replace(config, compress=compress, student=dataclasses.replace(config.student, name=name))


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
        configs.append(dataclasses.replace(derived_config(parent, MEASURE, frame), measure=settings))
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
    runtime = composed.runtime
    if not keys & {"runtime", "runtime.precision"}:
        runtime = dataclasses.replace(runtime, precision=root.config.runtime.precision)
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
    return dataclasses.replace(
        composed,
        data=frame.data,
        recipe=recipe,
        runtime=runtime,
        output_root=frame.output_root,
        trust=frame.trust,
        seed=composed.seed if "seed" in keys else root.config.seed,
        init_seed=composed.init_seed if keys & {"seed", "init_seed"} else root.config.init_seed,
        data_seed=composed.data_seed if keys & {"seed", "data_seed"} else root.config.data_seed,
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
        config, kind=TRAIN, student=student, parent=current.as_parent(), teacher=as_teacher(root, config.teacher)
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
    own = [override("teacher.run", current.key), "method=logit"]
    config = training_config(root, DISTIL, chain, own, config_dir, composer)
    if config.teacher is None:
        raise ConfigError(
            f"distil.method={config.method.name} takes no teacher, so that nothing would be distilled; use another, "
            "such as logit",
            code="no_teacher",
            key="distil.method",
        )
    return dataclasses.replace(config, teacher=as_teacher(current, config.teacher))


def as_teacher(link: Link, teacher: TeacherConfig | None) -> TeacherConfig | None:
    """Return the teacher of a run as a run of a chain, planned or finished; None where the method needs none."""
    if teacher is None:
        return None
    model = dataclasses.replace(link.config.student, weights=None, weights_hash=None)
    return dataclasses.replace(
        teacher, model=model, run=link.as_parent(), seed=link.config.seed, recipe=link.config.recipe
    )
