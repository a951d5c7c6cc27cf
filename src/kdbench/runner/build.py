"""Construction of a run's parts before it trains: data, batches, student and method, each with its own seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdbench.config import RecipeConfig, RunConfig
from kdbench.config.sections import EXACT
from kdbench.data import Batches, Dataset, load
from kdbench.data.batches import plain_batches
from kdbench.data.policies import MAX_PIXELS
from kdbench.data.source import DataSpec
from kdbench.errors import ConfigError
from kdbench.methods.base import Method, MethodContext
from kdbench.models import ModelSummary, Network, build, load_pretrained, summarize, weights
from kdbench.rundir.identity import model_identity, teacher_directory
from kdbench.rundir.related import found_related
from kdbench.runner.dry_step import check_first_step
from kdbench.runner.method import build_method, described
from kdbench.runner.processes import check_one_process, check_processes
from kdbench.system.device import place
from kdbench.system.guard import Guard
from kdbench.system.random import host_seeded, seeded
from kdbench.system.signals import raise_if_requested
from kdbench.teachers.store import check_checkpoint
from kdbench.train.evaluate import evaluation_batch
from kdbench.train.learner import Learner


@dataclass(frozen=True)
class Parts:
    """Data, batches, student and method of a run, on its device."""

    dataset: Dataset
    batches: Batches
    student: Network
    model_summary: ModelSummary
    """Summary of the student's architecture."""
    method: Method
    method_name: str
    remarks: tuple[str, ...] = ()
    """Lines for the user about student and method."""
    parent_sha256: str | None = None
    """Hash of the parent's weights, from which the student starts."""


def build_parts(config: RunConfig) -> Parts:
    """Load the data and build student and method.

    Args:
        config: resolved config.

    Raises:
        ConfigError: a part cannot be built.
    """
    dataset, model_summary, method = check_parts(config)
    remarks = model_summary.remarks + method.remarks
    # A seed of its own: students with the same seed start from the same weights, whatever the method draws.
    torch.manual_seed(derived_seed(config.init_seed, "student"))
    with host_seeded(derived_seed(config.init_seed, "student")):
        student = build(config.student, dataset.spec, method.requires.student_stages)
        if config.student.weights:
            loaded = load_pretrained(student.body, config.student, dataset.spec.num_classes)
            remarks += tuple(f"student.weights: {remark}" for remark in loaded)
    parent_sha256 = load_parent(student, config) if config.parent else None
    batches = Batches(dataset, config.recipe, config.data_seed, config.runtime.channels_last)
    student, method = place(student, config.runtime), place(method, config.runtime)
    return Parts(dataset, batches, student, model_summary, method, config.method.name, remarks, parent_sha256)


def load_parent(student: Network, config: RunConfig) -> str | None:
    """Load the weights of a run's parent into its student, and return their hash.

    Raises:
        ConfigError: the parent is not finished, or its network cannot be trained.
    """
    assert config.parent is not None
    parent = found_related(config, config.parent, "parent")
    state, _ = weights.read_student(parent.directory.weights)
    weights.load_into(student, state, f"parent: {parent.directory.weights}")
    return parent.summary.weights_sha256


def check_parts(config: RunConfig) -> tuple[Dataset, ModelSummary, Method]:
    """Load the data and build the method; networks are summarized without being built.

    Raises:
        ConfigError: a part cannot be built.
    """
    dataset = load(config.data, config.runtime.device)
    check_policy(config.recipe, config, dataset, "")
    if config.teacher and config.teacher.is_trained:
        check_policy(config.teacher.recipe, config, dataset, "teacher.")
    check_checkpoint(config, dataset.spec)
    student = summarize(config.student, dataset.spec, "student")
    check_batches(student, config, dataset, config.recipe, "")
    check_processes(len(dataset.train), config.recipe, config.runtime.parallel, "")
    check_one_process(student, config)
    check_memory_format(student, config, dataset.spec, "student", config.student.name)
    if config.student.weights:
        check_first_weights(config, dataset.spec)
    if config.runtime.compile and (student.host_random or student.changing):
        raise ConfigError(
            f"runtime.compile=true and student={config.student.name} draws random numbers from Python or NumPy, or "
            "counts in attributes, which compiled code does not repeat; use runtime.compile=false",
            code="not_compilable",
            key="runtime.compile",
        )
    teacher = None
    if config.teacher:
        trained = config.teacher.is_trained
        teacher = summarize(config.teacher.model, dataset.spec, "teacher", trained)
        check_batches(teacher, config, dataset, config.teacher.recipe if trained else None, "teacher.")
        if trained:
            if not teacher_directory(config).is_complete():
                check_processes(len(dataset.train), config.teacher.recipe, EXACT, "teacher.")
            check_memory_format(teacher, config, dataset.spec, "teacher", config.teacher.model.name)
        if config.teacher.mean is not None and len(config.teacher.mean) != dataset.spec.input_shape[0]:
            raise ConfigError(
                f"teacher.mean has {len(config.teacher.mean)} numbers, and images have {dataset.spec.input_shape[0]} "
                "channels; give one number per channel",
                code="mismatch",
                key="teacher.mean",
            )
        if teacher.evaluation_random:
            raise ConfigError(
                f"teacher={config.teacher.model.name} draws random numbers in evaluation mode, so its outputs do not "
                "repeat; a teacher must compute the same each time",
                code="not_repeatable",
                key="teacher",
            )
    context = context_of(config, dataset, student, teacher)
    torch.manual_seed(derived_seed(config.init_seed, "method"))
    method = build_method(config, context)
    check_batch_parts(config, method)
    check_stages(student, method.requires.student_stages, "student")
    for stage in method.requires.student_stages:
        if stage in student.without_gradient:
            path = f"student.stages.{stage}"
            raise ConfigError(f"{path}: {student.without_gradient[stage]}", code="unusable_stage", key=path)
    functions = [s for s in method.requires.student_stages if student.sources[s].kind == "operation"]
    if config.runtime.compile and functions:
        raise ConfigError(
            f"runtime.compile=true and student.stages.{functions[0]} is the output of a function, "
            f"{student.sources[functions[0]].path}, which compiled code does not show; name a module, or use "
            "runtime.compile=false",
            code="not_compilable",
            key="runtime.compile",
        )
    if teacher:
        check_stages(teacher, method.requires.teacher_network_stages, "teacher")
    check_first_step(config, context)
    return dataset, student, method


def check_first_weights(config: RunConfig, spec: DataSpec) -> None:
    """Check that the student's first weights fit, once per process, architecture and file.

    Raises:
        ConfigError: they do not.
    """
    case = repr((model_identity(config.student), spec))
    if case not in _fitting:
        with seeded(0):
            load_pretrained(build(config.student, spec).body, config.student, spec.num_classes)
        _fitting.add(case)


_fitting: set[str] = set()
"""Architectures with first weights that this process has loaded."""


def check_batches(
    model: ModelSummary, config: RunConfig, dataset: Dataset, recipe: RecipeConfig | None, prefix: str
) -> None:
    """Check that a network can process every batch, where one image is left alone in the last one.

    Args:
        model: summary of the network.
        config: resolved config.
        dataset: its data.
        recipe: recipe by which the network is trained, or None.
        prefix: text before the keys of the recipe.

    Raises:
        ConfigError: it cannot.
    """
    if recipe and len(dataset.train) % recipe.batch_size == 1 and "train" in model.one_image:
        raise ConfigError(
            f"{prefix}recipe.batch_size is {recipe.batch_size}, which leaves one of data.num_train="
            f"{len(dataset.train)} images alone in the last batch, where {model.one_image['train']}; change one "
            "of the two",
            code="single_image_batch",
            key=f"{prefix}recipe.batch_size",
        )
    size = evaluation_batch(config.runtime.device, dataset.spec.input_shape)
    for name, split in (("num_val", dataset.val), ("num_test", dataset.test)):
        if len(split) % size == 1 and "eval" in model.one_image:
            raise ConfigError(
                f"data.{name} is {len(split)}, which leaves one image alone in the last batch of {size}, where "
                f"{model.one_image['eval']}; change it by one",
                code="single_image_batch",
                key=f"data.{name}",
            )


def check_memory_format(model: ModelSummary, config: RunConfig, spec: DataSpec, key: str, name: str) -> None:
    """Check that a network can be trained in channels-last memory on the CPU.

    The gradient of a 1x1 convolution with a stride and few input channels writes beyond its memory there, in float32
    and with images larger than 32 x 32 (oneDNN 3.12, issue 6035); the process may crash.

    Args:
        model: summary of the network.
        config: resolved config.
        spec: shape of the images.
        key: place of the network in the config.
        name: name of its option.

    Raises:
        ConfigError: it has such a convolution.
    """
    on_cpu = config.runtime.device == "cpu" and config.runtime.channels_last
    if on_cpu and model.narrow_convolution and max(spec.input_shape[1:]) > 32:
        raise ConfigError(
            f"{key}={name} has a 1x1 convolution with a stride and under 16 channels, "
            f"{model.narrow_convolution}, which the CPU's library trains wrongly with runtime.channels_last=true and "
            "images of more than 32 pixels; use runtime.channels_last=false",
            code="unsafe_convolution",
            key="runtime.channels_last",
        )


def check_policy(recipe: RecipeConfig, config: RunConfig, dataset: Dataset, prefix: str) -> None:
    """Check that the policy of a recipe can be applied to the images.

    Args:
        recipe: recipe by which a network is trained.
        config: resolved config.
        dataset: its data.
        prefix: text before the keys of the recipe.

    Raises:
        ConfigError: it is for images of three channels and of at most `MAX_PIXELS`, and these are others.
    """
    channels = dataset.spec.input_shape[0]
    if recipe.policy and channels != 3:
        raise ConfigError(
            f"{prefix}recipe.policy is {recipe.policy!r}, which changes colours, and images of "
            f"data={config.data.name} have {channels} channels in place of 3; use {prefix}recipe.policy=null",
            code="mismatch",
            key=f"{prefix}recipe.policy",
        )
    height, width = dataset.spec.input_shape[1:]
    if recipe.policy and height * width > MAX_PIXELS:
        raise ConfigError(
            f"{prefix}recipe.policy is {recipe.policy!r}, whose tables for images of {height} x {width} would need too "
            f"much memory; it takes up to {MAX_PIXELS} pixels, such as 512 x 512: use smaller images, or "
            f"{prefix}recipe.policy=null",
            code="out_of_range",
            key=f"{prefix}recipe.policy",
        )


def check_stages(model: ModelSummary, stages: Sequence[str], key: str) -> None:
    """Check that a network's stages can be used.

    Args:
        model: summary of the network.
        stages: names of the stages that a method is to use.
        key: place of the network in the config.

    Raises:
        ConfigError: one cannot.
    """
    for stage in stages:
        problem = model.refused.get(stage)
        if problem is None and stage not in model.sources:
            problem = f"the method needs this stage; the network has {', '.join(model.sources) or 'none'}"
        if problem is not None:
            path = f"{key}.stages.{stage}"
            raise ConfigError(f"{path}: {problem}", code="unusable_stage", key=path)


def context_of(
    config: RunConfig, dataset: Dataset, student: ModelSummary, teacher: ModelSummary | None
) -> MethodContext:
    """Return what a run's method is built from."""
    batch_size = evaluation_batch(config.runtime.device, dataset.spec.input_shape)

    def images() -> Iterator[Tensor]:
        for batch in plain_batches(dataset, dataset.train, batch_size, config.runtime.channels_last):
            raise_if_requested()
            yield batch

    return MethodContext(
        student=student,
        teachers=(teacher,) if teacher else (),
        data=dataset.spec,
        labels=dataset.train.labels.cpu(),
        indices=dataset.train.indices.cpu(),
        epochs=config.recipe.epochs,
        generator=torch.Generator().manual_seed(derived_seed(config.init_seed, "method state")),
        images=images,
    )


def check_batch_parts(config: RunConfig, method: Method) -> None:
    """Check that a batch is not divided where the loss compares its images.

    Raises:
        ConfigError: it is.
    """
    if config.recipe.accumulate > 1 and method.requires.whole_batch:
        raise ConfigError(
            f"recipe.accumulate is {config.recipe.accumulate}, which divides a batch, and the loss of "
            f"method={config.method.name} compares the images of a whole batch; use recipe.accumulate=1",
            code="whole_batch",
            key="recipe.accumulate",
        )


def bind(parts: Parts, teachers: Sequence[Network]) -> None:
    """Give a run's method the networks, before its learner is built.

    Args:
        parts: parts of the run.
        teachers: networks of its teachers, in evaluation mode; empty for a run without one.

    Raises:
        ConfigError: a class from elsewhere cannot take them, or names parts for inference that it does not have.
    """
    method = parts.method
    with described(type(method), parts.method_name, "cannot take the networks"):
        method.bind_student(parts.student)
        if teachers:
            method.bind_teachers(teachers)
    method.inference_state()


def build_learner(config: RunConfig, parts: Parts, guard: Guard | None = None) -> Learner:
    """Return the learner of a run.

    Args:
        config: resolved config.
        parts: parts of the run.
        guard: context of the learner's code; None raises its exceptions.
    """
    seed = derived_seed(config.data_seed, "training")
    return Learner(
        parts.student, parts.method, config.recipe, config.runtime, seed, guard, config.title, len(parts.batches)
    )


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed for one purpose, independent of those for others."""
    return int(np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint32)[0])
