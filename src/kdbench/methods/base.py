"""The contract of a method: between a loss, the models and the training loop."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.config.schema import number, optional, whole
from kdbench.data.batches import Batch
from kdbench.data.source import DataSpec
from kdbench.errors import ConfigError, nearest
from kdbench.models import ModelSummary, Network, Output

Arguments = ParamSpec("Arguments")

Invariant = Literal["zero_for_identical", "batch_order", "logit_shift", "student_scale", "teacher_scale"]
"""Property of a loss that its tests check: 0 where student and teacher are identical; the order of the images does not
matter; a constant added to all logits of an image changes nothing; neither does a positive factor of all that the
student, or the teacher, gives."""


class TeacherOutput(NamedTuple):
    """Output of a teacher for one batch: the parts that methods require, always without gradient."""

    logits: Tensor | None
    features: Mapping[str, Tensor]

    def get_logits(self) -> Tensor:
        """Return the logits [B, C] of a method that requires them."""
        assert self.logits is not None, "the method does not declare Requires(teacher_logits=True)"
        return self.logits

    def select(self, requires: "Requires") -> "TeacherOutput":
        """Return the part that one method requires; the teacher may serve others too."""
        features = {stage: self.features[stage] for stage in requires.teacher_stages}
        return TeacherOutput(self.logits if requires.teacher_logits else None, features)

    def part(self, rows: slice) -> "TeacherOutput":
        """Return the output for some of the images."""
        features = {stage: values[rows] for stage, values in self.features.items()}
        return TeacherOutput(None if self.logits is None else self.logits[rows], features)


class Progress(NamedTuple):
    """Position of a training, for weights that ramp up or down."""

    epoch: Tensor
    """Scalar float32 on the device: current epoch, counted from 0. It is changed in place, so a captured step that
    computes with it stays valid; reading its value on the host would wait for the device."""
    epochs: int
    """Number of epochs in total."""


class LossOutput(NamedTuple):
    """Result of a method for one batch."""

    terms: Mapping[str, Tensor]
    """Scalar terms of the loss by name, means over the images; `total` is minimised."""
    logits: Tensor
    """[B, C]: predictions of this step, for the training accuracy."""


@dataclass(frozen=True)
class Requires:
    """Requirements of a method; nothing else is computed."""

    teacher_logits: bool = False
    teacher_stages: tuple[str, ...] = ()
    student_stages: tuple[str, ...] = ()
    teacher_setup_stages: tuple[str, ...] = ()
    """Stages that `bind_teachers` reads of the teacher's network; steps do without them, so a logit cache will do."""
    whole_batch: bool = False
    """True if the loss compares images of a batch, so that a batch cannot be divided (`recipe.accumulate`)."""

    def __post_init__(self) -> None:
        for name in ("teacher_stages", "student_stages", "teacher_setup_stages"):
            if isinstance(stages := getattr(self, name), list):
                object.__setattr__(self, name, tuple(stages))

    @classmethod
    def of_teacher(cls, several: Iterable["Requires"]) -> "Requires":
        """Return what a teacher must compute so that each of several methods gets what it requires."""
        all_required = list(several)
        stages = dict.fromkeys(stage for requires in all_required for stage in requires.teacher_stages)
        of_setup = dict.fromkeys(stage for requires in all_required for stage in requires.teacher_setup_stages)
        return cls(
            teacher_logits=any(requires.teacher_logits for requires in all_required),
            teacher_stages=tuple(stages),
            teacher_setup_stages=tuple(of_setup),
        )

    @property
    def any_stages(self) -> bool:
        """True if the method reads a stage of any network."""
        return bool(self.student_stages or self.teacher_network_stages)

    @property
    def teacher_network_stages(self) -> tuple[str, ...]:
        """Stages with which a teacher's network is built: those of the steps, and those of `bind_teachers`."""
        return tuple(dict.fromkeys((*self.teacher_stages, *self.teacher_setup_stages)))


NO_TEACHER = "the weights of all terms but the cross-entropy are 0: the run learns from the labels alone"
"""Remark on a method's weights."""


def no_images() -> Iterator[Tensor]:
    """Yield no images."""
    return iter(())


@dataclass(frozen=True)
class MethodContext:
    """Everything about a run that a method may be built from."""

    student: ModelSummary
    """Summary of the student: shapes of its stages, number of parameters, ..."""
    teachers: tuple[ModelSummary, ...]
    """Summary of each teacher; empty for a method without one."""
    data: DataSpec
    labels: Tensor
    """[N] int64 on the CPU: labels of the training images. Empty where a trained student is loaded."""
    indices: Tensor
    """[N] int64 on the CPU: their indices in the original set, the values of `Batch.indices`. Empty as `labels`."""
    epochs: int
    generator: torch.Generator
    """Random numbers of the run's `init_seed`, for state that is drawn once. First weights are drawn from torch's
    default generator, which is seeded by it too."""
    images: Callable[[], Iterator[Tensor]] = no_images
    """Yields the training images [B, C, H, W] batch by batch in the order of `labels`, normalised, without
    augmentation, on the run's device. No images where a trained student is loaded."""

    @property
    def teacher(self) -> ModelSummary:
        """The only teacher."""
        (only,) = self.teachers
        return only


@dataclass
class LossWeights:
    """Keys of methods whose loss is ce_weight * CE + kd_weight * KD."""

    ce_weight: float = number(0)
    kd_weight: float = number(0)

    def __post_init__(self) -> None:
        check_some_weight(self, "ce_weight", "kd_weight")

    def resolved(self) -> tuple[float, float]:
        """Return (ce_weight, kd_weight)."""
        return self.ce_weight, self.kd_weight


@dataclass
class RampedWeights(LossWeights):
    """Keys of methods whose KD term grows linearly: min(epoch / ramp_epochs, 1) of its weight, epochs from 1."""

    ramp_epochs: int = whole(0)
    """Number of epochs; 0: the whole weight from the beginning."""


@dataclass
class Weights:
    """Keys of methods whose loss is ce_weight * CE + kd_weight * KD, configured by `alpha`.

    alpha is the weight of KD and 1 - alpha that of CE (other code bases use it the other way round). For weights that
    do not add up to 1, set alpha=null and both weights.
    """

    alpha: float | None = optional(number(0, 1))
    ce_weight: float | None = optional(number(0))
    kd_weight: float | None = optional(number(0))

    def __post_init__(self) -> None:
        explicit = (self.ce_weight, self.kd_weight)
        if self.alpha is not None and explicit != (None, None):
            raise ConfigError(
                f"method.alpha is {self.alpha:g} and explicit weights are given too "
                f"(ce_weight={self.ce_weight}, kd_weight={self.kd_weight}); for these weights set method.alpha=null",
                code="conflicting_weights",
                key="method.alpha",
            )
        if self.alpha is None and None in explicit:
            raise ConfigError(
                "method.alpha=null needs both method.ce_weight and method.kd_weight; "
                f"given: ce_weight={self.ce_weight}, kd_weight={self.kd_weight}",
                code="missing_value",
                key="method.alpha",
            )
        if self.alpha is None:
            check_some_weight(self, "ce_weight", "kd_weight")

    def resolved(self) -> tuple[float, float]:
        """Return (ce_weight, kd_weight)."""
        if self.alpha is not None:
            return 1 - self.alpha, self.alpha
        assert self.ce_weight is not None
        assert self.kd_weight is not None
        return self.ce_weight, self.kd_weight


def check_some_weight(config: Any, *names: str) -> None:
    """Check that some of the weights of a method's keys is not 0.

    Raises:
        ConfigError: all are.
    """
    if not any(getattr(config, name) for name in names):
        keys = [f"method.{name}" for name in names]
        raise ConfigError(
            f"{' and '.join(keys)} are 0, so that no loss is left; give one of them a value above 0",
            code="no_loss",
            key=keys[0],
        )


class Method(nn.Module, ABC):
    """A way of training a student. A subclass owns every parameter and buffer that its loss needs.

    `Config` is a dataclass with one field per key of the method's YAML file, without defaults. `needs_teacher`
    declares, before anything is built, whether a run must have a teacher; `requires` declares what of it.
    """

    @dataclass
    class Config:
        pass

    role: ClassVar[Literal["baseline", "distilled", "control"]]
    """Role of the method in a comparison; it is written into summary.json, and the report reads it there."""
    needs_teacher: ClassVar[bool]
    uses_stages: ClassVar[bool] = True
    """True if the nodes that stages name can change its numbers; if not, they are no part of a run's key."""
    soft_labels: ClassVar[bool] = False
    """True if its loss is defined for labels that are probabilities: it uses `batch.targets` in place of
    `batch.labels`. If not, recipes that smooth or mix labels are refused."""
    invariants: ClassVar[tuple[Invariant, ...]] = ()
    """Properties of its loss, which its tests check."""
    capturable: bool = True
    """True if a training step may be captured as a CUDA graph. Declare False for a method that draws random numbers on
    the host, keeps state beyond a step in attributes or reassigned buffers, or waits for the device in `forward`."""
    inference: tuple[str, ...] | None = None
    """Names of the modules, parameters and buffers that `predict` uses: they are stored with the student. None: all,
    if the class defines a `predict`, else nothing."""
    deferred: tuple[str, ...] = ()
    """Names of buffers that `forward` does not write, such as memory banks: they are not copied at each step."""
    remarks: tuple[str, ...] = ()
    """Lines for the user, written to the log when the run starts."""
    requires: Requires

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        if isinstance(config, RampedWeights) and config.ramp_epochs > context.epochs:
            self.remarks = (
                f"method.ramp_epochs is {config.ramp_epochs} and recipe.epochs is {context.epochs}: the KD term "
                f"reaches {context.epochs}/{config.ramp_epochs} of its weight",
            )
        of_kdbench = type(self).__module__.startswith("kdbench.")  # others may have terms with weights of their own
        if of_kdbench and isinstance(config, LossWeights | Weights) and not config.resolved()[1]:
            self.remarks += (NO_TEACHER,)

    def bind_student(self, network: Network) -> None:
        """Take what the method keeps of the student's network, such as a module that its loss applies once more.

        Called once, before `bind_teachers`. A module of the student must not become a submodule of the method, where
        the optimiser and the state dict would have its parameters twice: keep it in a tuple.

        Args:
            network: student on its device, with the stages that `requires` names.
        """

    def bind_teachers(self, networks: Sequence[Network]) -> None:
        """Take what the method keeps of its teachers' networks, such as a frozen copy of a module.

        Called once, after the teachers were loaded and before the optimiser is built.

        Args:
            networks: networks on their device, in evaluation mode. Other runs share them: they must not be changed.
                Weights are in half precision where autocast would convert them at every call (`fuse_batch_norm`).
        """

    @abstractmethod
    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms of a batch's loss, and the predictions.

        Called under autocast where the run's precision is bf16 or fp16. On a GPU a captured call is replayed: state
        that lasts from step to step is a buffer, written in place.

        Args:
            student: output of the student in train mode.
            teachers: what `requires` declares, of each teacher; empty for a method without one.
            batch: images, labels (as integers, and as targets of the cross-entropy), sample indices and views.
            progress: current epoch and number of epochs.
        """

    def finish_step(self, skipped: Tensor) -> None:
        """Write the `deferred` buffers in place, after the optimiser's step.

        Args:
            skipped: scalar float32 on the device: 1 if the optimiser did not take the step, else 0. State that a
                skipped step would have written stays as it was.
        """

    def predict(self, output: Output) -> Tensor:
        """Return the logits [N, C] for inference: by default the student's own."""
        return output.logits

    @classmethod
    def predicts(cls) -> bool:
        """Return whether the class has a `predict` of its own, in place of the student's logits."""
        return cls.predict is not Method.predict

    def inference_state(self) -> dict[str, Tensor]:
        """Return the part of the state dict that `predict` uses; empty where it takes the student's logits.

        Raises:
            ConfigError: a name of `inference` is none of the method's modules, parameters and buffers.
        """
        if not self.predicts():
            return {}
        state = self.state_dict()
        if self.inference is None:
            return state
        parts = {
            part: {name: value for name, value in state.items() if name == part or name.startswith(f"{part}.")}
            for part in self.inference
        }
        named = (*self.named_modules(), *self.named_parameters(), *self.named_buffers())
        known = [name for name, _ in named if name]
        for part in parts:
            if part not in known:
                raise ConfigError(
                    f"{type(self).__name__}.inference has {part!r}, which is no module, parameter or buffer of this "
                    f"method; {nearest(part, {name for name in known if '.' not in name})}",
                    code="no_method",
                    key="method._target_",
                )
        return {name: value for found in parts.values() for name, value in found.items()}


def ramp(progress: Progress, epochs: int) -> Tensor:
    """Return min(epoch / epochs, 1), the current epoch counted from 1: a scalar in (0, 1]; 1 if epochs is 0."""
    return ((progress.epoch + 1) / max(epochs, 1)).clamp(max=1.0)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of logits [B, C] with a batch's labels or label probabilities, in float32."""
    return F.cross_entropy(at_least_float32(logits), batch.targets)


def ce_plus_kd(
    weights: LossWeights | Weights,
    student: Output,
    batch: Batch,
    kd: Tensor,
    factor: Tensor | float = 1.0,
    **parts: Tensor,
) -> LossOutput:
    """Return the terms `total` = ce_weight * CE + kd_weight * factor * KD, `ce` and `kd`, before their weights.

    Args:
        weights: keys of the method.
        student: output of the student.
        batch: the labels.
        kd: the KD term.
        factor: further factor of the KD term, such as `ramp`.
        parts: terms that are recorded too.
    """
    ce_weight, kd_weight = weights.resolved()
    ce = cross_entropy(student.logits, batch)
    return LossOutput({"total": ce_weight * ce + kd_weight * factor * kd, "ce": ce, "kd": kd, **parts}, student.logits)


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32 or wider, so that losses accumulate there where autocast made an output narrow."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def full_precision(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Decorate a loss: it is computed in float32 or wider, outside of autocast.

    Tensors among its arguments, alone or in lists, are converted with `at_least_float32`.
    """

    @functools.wraps(function)
    def widened(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        values = [*args, *kwargs.values()]
        tensors = [t for value in values for t in (value if isinstance(value, list | tuple) else [value])]
        device = next((t.device.type for t in tensors if isinstance(t, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})

    return widened


def widen(value: Any) -> Any:
    """Return an argument with its tensors in float32 or wider."""
    if isinstance(value, Tensor):
        return at_least_float32(value)
    return [widen(inner) for inner in value] if isinstance(value, list | tuple) else value
