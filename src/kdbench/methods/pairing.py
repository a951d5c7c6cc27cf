"""Pairs of a student's and a teacher's stages: which ones, and their outputs in one layout and size."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.config.schema import optional, setting
from kdbench.errors import ConfigError, nearest
from kdbench.methods.base import MethodContext, Requires, TeacherOutput
from kdbench.models import ModelSummary, Output

Shape = tuple[int, ...]
Kind = Literal["maps", "embeddings"]
MAX_PREFIX = 5
"""Largest number of tokens without a place in the image: a class token and four registers."""


def stage_names(**kwargs: Any) -> Any:
    """Declare the key `pairs`: stage of the student to stage of the teacher, or null for the method's own pairs.

    Further arguments: see `setting`.
    """
    words = "pairs of a student's and a teacher's stage such as {layer2: layer3}"
    return optional(setting(lambda value: len(value) > 0, words, **kwargs), **({"absent": None} if kwargs else {}))


@dataclass(frozen=True)
class StagePair:
    """A stage of the student and the stage of the teacher that it learns from, both seen as maps."""

    student: str
    teacher: str
    student_shape: tuple[int, int, int]
    """(C, H, W) of one image. Tokens are laid out as the square grid of patches that they are, without the tokens
    before it; tokens on both sides, as many, as a map of width 1; an embedding as a map of one position."""
    teacher_shape: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at which both are compared: the smaller of the two."""
        (_, a, b), (_, c, d) = self.student_shape, self.teacher_shape
        return min(a, c), min(b, d)


class StagePairs(nn.Module):
    """The pairs of stages that a method compares; trained projections bring the student's to the teacher's width.

    Args:
        pairs: stage of the student to stage of the teacher; None takes `default`. Pairs of a mapping, whose order is no
            part of a run's key, are taken in the order of the student's stages.
        context: summaries of student and teacher.
        default: "common": every layerN that both have; "last": the last stage with positions of each; "pooled": the
            stage `pooled` of each, else its last stage; any other text: the stage of this name in both.
        kind: "maps": stages have positions; "embeddings": outputs are averaged over their positions.
        projection: returns a module from a number of channels to another, built once per pair; None: no projection.
            It acts on maps, or on embeddings, as `kind` says.
        key: key of the config that names the pairs, for errors.

    Raises:
        ConfigError: a stage does not exist or cannot be used, or two cannot be paired.
    """

    def __init__(
        self,
        pairs: Mapping[str, str] | Sequence[tuple[str, str]] | None,
        context: MethodContext,
        default: str,
        kind: Kind = "maps",
        projection: Callable[[int, int], nn.Module] | None = None,
        key: str = "method.pairs",
    ) -> None:
        super().__init__()
        named = dict(pairs) if pairs is not None else default_pairs(default, context)
        if isinstance(pairs, Mapping):
            order = [*context.student.shapes, *named]  # a stage that does not exist comes last, and is refused below
            named = {stage: named[stage] for stage in sorted(named, key=order.index)}
        self.kind = kind
        self.pairs = tuple(pair_of(a, b, context, kind, key) for a, b in named.items())
        self.projections = nn.ModuleList(
            projection(pair.student_shape[0], pair.teacher_shape[0]) if projection else nn.Identity()
            for pair in self.pairs
        )

    @property
    def student_stages(self) -> tuple[str, ...]:
        """Stages that the student must compute, each once."""
        return tuple(dict.fromkeys(pair.student for pair in self.pairs))

    @property
    def teacher_stages(self) -> tuple[str, ...]:
        """Stages that the teacher must compute, each once."""
        return tuple(dict.fromkeys(pair.teacher for pair in self.pairs))

    def requires(self, teacher_logits: bool = False, whole_batch: bool = False) -> Requires:
        """Return what a method requires that reads these stages; see `Requires`."""
        return Requires(
            teacher_logits=teacher_logits,
            teacher_stages=self.teacher_stages,
            student_stages=self.student_stages,
            whole_batch=whole_batch,
        )

    def only(self) -> StagePair:
        """Return the only pair.

        Raises:
            ConfigError: there are several.
        """
        if len(self.pairs) > 1:
            raise ConfigError(
                f"method.pairs has {len(self.pairs)} pairs; this method compares one, such as the last of them",
                code="mismatch",
                key="method.pairs",
            )
        return self.pairs[0]

    def forward(
        self, student: Output, teacher: TeacherOutput, same_size: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the projected student's and the teacher's output of each pair.

        Args:
            student: output of the student.
            teacher: output of the teacher.
            same_size: where maps differ in height and width, reduce the larger with `pool_to`, the student's before
                its projection; False leaves both as they are.

        Returns:
            Maps [B, C, H, W], or embeddings [B, D], in the order of the pairs.
        """
        own, others = [], []
        for pair, project in zip(self.pairs, self.projections, strict=True):
            a = as_map(student.features[pair.student], pair.student_shape)
            b = as_map(teacher.features[pair.teacher], pair.teacher_shape)
            if self.kind == "embeddings":
                own.append(project(a.mean((2, 3))))
                others.append(b.mean((2, 3)))
                continue
            own.append(project(pool_to(a, pair.size) if same_size else a))
            others.append(pool_to(b, pair.size) if same_size else b)
        return own, others


def default_pairs(default: str, context: MethodContext) -> dict[str, str]:
    """Return a method's own pairs; see `StagePairs`.

    Raises:
        ConfigError: the networks have no such stages.
    """
    student, teacher = context.student, context.teacher
    own, others = stages_of(student), stages_of(teacher)
    common = [stage for stage in own if stage in others]
    if default == "common":
        found = {stage: stage for stage in common if re.fullmatch(r"layer\d+", stage)}
        missing = "no stage layerN is in both networks"
    elif default in ("last", "pooled"):
        a, b = last_stage(student, default), last_stage(teacher, default)
        found = {a: b} if a and b else {}
        missing = "a network has no stage of this kind"
    else:
        found = {default: default} if default in common else {}
        missing = f"{default} is not in both networks"
    if found:
        return found
    raise ConfigError(
        f"method.pairs is null, and {missing}; pair stages, such as method.pairs={{{first(student)}: {first(teacher)}}}"
        f": the student has {', '.join(own) or 'none'}, the teacher {', '.join(others) or 'none'}",
        code="unknown_stage",
        key="method.pairs",
    )


def stages_of(model: ModelSummary) -> tuple[str, ...]:
    """Return the names of a network's stages, those that cannot be used included."""
    return (*model.shapes, *(stage for stage in model.refused if stage not in model.shapes))


def first(model: ModelSummary) -> str:
    """Return the name of a network's first stage, for an example."""
    return next(iter(stages_of(model)), "STAGE")


def last_stage(model: ModelSummary, kind: str) -> str:
    """Return the last stage with positions ("last"), or `pooled`, else the last of all ("pooled"); "" for none."""
    if kind == "pooled" and "pooled" in model.shapes:
        return "pooled"
    usable = [stage for stage, shape in model.shapes.items() if kind == "pooled" or len(shape) > 1]
    return usable[-1] if usable else ""


def pair_of(a: str, b: str, context: MethodContext, kind: Kind, key: str) -> StagePair:
    """Return a checked pair of the student's stage `a` and the teacher's stage `b`.

    Raises:
        ConfigError: it cannot be one.
    """
    student, teacher = context.student, context.teacher
    check_stage(a, student, "student", key)
    check_stage(b, teacher, "teacher", key)
    for stage, model, name in ((a, student, "student"), (b, teacher, "teacher")):
        if kind == "maps" and len(model.shapes[stage]) == 1:
            raise ConfigError(
                f"{key} has {stage!r}: in the {name} it is an embedding of {model.shapes[stage][0]} numbers, and this "
                "method compares positions; choose a stage with maps or tokens",
                code="mismatch",
                key=key,
            )
    own, other = student.shapes[a], teacher.shapes[b]
    if kind == "maps" and len(own) == len(other) == 2 and own[0] == other[0]:
        return StagePair(a, b, (own[1], own[0], 1), (other[1], other[0], 1))
    shapes = []
    for stage, shape, name in ((a, own, "student"), (b, other, "teacher")):
        found = map_shape(shape) if kind == "maps" else flat_shape(shape)
        if found is None:
            raise ConfigError(
                f"{key} pairs {a} of the student {list(own)} with {b} of the teacher {list(other)}: the "
                f"{shape[0]} tokens of the {name}'s {stage} are no square grid after at most {MAX_PREFIX} others, so "
                "they can only be compared with as many tokens",
                code="mismatch",
                key=key,
            )
        shapes.append(found)
    return StagePair(a, b, shapes[0], shapes[1])


def check_stage(stage: str, model: ModelSummary, name: Literal["student", "teacher"], key: str) -> None:
    """Check that a method can read a stage.

    Args:
        stage: name of the stage.
        model: network of the stage.
        name: place of the network in the config.
        key: key of the config that names the stage.

    Raises:
        ConfigError: the network has none of this name, or it cannot be used.
    """
    if stage not in stages_of(model):
        problem = f"the {name} has no such stage; {nearest(stage, stages_of(model))}"
        raise ConfigError(f"{key} has {stage!r}: {problem}", code="unknown_stage", key=key)
    unusable = model.refused.get(stage) or (name == "student" and model.without_gradient.get(stage))
    if unusable:
        path = f"{name}.stages.{stage}"
        raise ConfigError(f"{path}: {unusable}", code="unusable_stage", key=path)


def find_classifier(model: ModelSummary, stage: str, name: str) -> tuple[str, tuple[int, int, int]]:
    """Return the path of the linear layer that computes the logits from the mean of a stage, and its shape (C, H, W).

    Raises:
        ConfigError: there is none, or the stage has positions that are no places in the image.
    """
    grids = {usable: grid for usable in model.classifiers if (grid := grid_of(model.shapes[usable]))}
    if stage not in grids:
        remedy = f"choose {' or '.join(grids)} with method.pairs" if grids else f"name such a stage in {name}.stages"
        raise ConfigError(
            f"this method applies the {name}'s classifier to a stage, and the {name}'s logits are not a linear layer "
            f"of the mean over the positions of its stage {stage}; {remedy}, or use another {name}",
            code="no_classifier",
            key="method.pairs",
        )
    return model.classifiers[stage], grids[stage]


def grid_of(shape: Shape) -> tuple[int, int, int] | None:
    """Return the shape (C, H, W) of a stage whose positions are all places in the image; None for any other."""
    found = map_shape(shape) if len(shape) > 1 else None
    if found is not None and len(shape) == 2 and found[1] * found[2] != shape[0]:
        return None  # tokens of which some have no place
    return found


def conv_bn_relu(in_channels: int, out_channels: int, size: int = 1) -> nn.Sequential:
    """Return a convolution of size x size with batch norm and ReLU, which keeps height and width."""
    convolution = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def map_shape(shape: Shape) -> tuple[int, int, int] | None:
    """Return the shape (C, H, W) of a stage as a map; None for tokens that are no square grid."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 1:
        return shape[0], 1, 1
    tokens, width = shape
    side = int(tokens**0.5)
    return (width, side, side) if tokens - side * side <= MAX_PREFIX else None


def flat_shape(shape: Shape) -> tuple[int, int, int]:
    """Return the shape of a stage whose positions are averaged: tokens [T, D] as a map of width 1."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[-1], shape[0] if len(shape) == 2 else 1, 1)


def as_map(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return maps [B, C, H, W], tokens [B, T, D] or embeddings [B, D] as maps of a shape (C, H, W)."""
    channels, height, width = shape
    if values.ndim == 4:
        return values
    if values.ndim == 2:
        return values[:, :, None, None]
    tokens = values[:, values.shape[1] - height * width :]
    return tokens.transpose(1, 2).reshape(len(values), channels, height, width)


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps at the smaller height and width of the two."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return pool_to(a, size), pool_to(b, size)


def pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps averaged to a height and width: adaptive average pooling, with a deterministic gradient.

    On a GPU, the gradient of torch's adaptive pooling adds in no fixed order, and `runtime.profile=repro` refuses it.
    """
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(maps, (height // size[0], width // size[1]))
    for dim, cells in ((2, size[0]), (3, size[1])):  # the mean of a cell is the mean over its columns of means
        side = maps.shape[dim]
        ends = [(n * side // cells, -(-(n + 1) * side // cells)) for n in range(cells)]
        maps = torch.stack([maps.narrow(dim, start, end - start).mean(dim) for start, end in ends], dim)
    return maps


def check_pairs(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """Check that a loss over several stages got as many tensors of both sides.

    Raises:
        ValueError: it did not, or got none.
    """
    if not student or len(student) != len(teacher):
        raise ValueError(f"got {len(student)} student maps and {len(teacher)} teacher maps; give one of each per stage")
