"""Trained students as plain networks, for use outside of kdbench."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.config import RunConfig
from kdbench.config.composition import ONE_AT_A_TIME
from kdbench.data.source import DataSpec
from kdbench.errors import ConfigError
from kdbench.methods.base import Method, MethodContext
from kdbench.models import ModelSummary, Network, build, summarize, weights
from kdbench.rundir.identity import architecture_identity
from kdbench.rundir.load import check_unchanged, path_of, read_complete
from kdbench.rundir.recorded_config import read_config
from kdbench.system.random import seeded


class Student(nn.Module):
    """A trained network with its preprocessing, in evaluation mode.

    Args:
        network: the network.
        mean: mean of each channel, of values in [0, 1].
        std: standard deviation of each channel.
        method: method that takes part in predictions; None: the network's own logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: Network, mean: Sequence[float], std: Sequence[float], method: Method | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.method = method
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.eval()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return logits [N, num_classes] of images [N, C, H, W]: uint8 in [0, 255], or floats in [0, 1].

        Raises:
            TypeError: images of another type.
            ValueError: images of another shape, or floats that no image has: NaN, below -0.5 or above 1.5. Resized
                images may lie a little outside of [0, 1].
        """
        kind = images_NCHW.dtype if isinstance(images_NCHW, Tensor) else type(images_NCHW).__name__
        if not isinstance(kind, torch.dtype) or not (kind == torch.uint8 or kind.is_floating_point):
            raise TypeError(f"images are {kind}; they must be a tensor of uint8 in [0, 255], or of floats in [0, 1]")
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] != len(self.mean):
            raise ValueError(f"images are {list(images_NCHW.shape)}; they must be [N, {len(self.mean)}, H, W]")
        scale = 255 if images_NCHW.dtype == torch.uint8 else 1
        images_NCHW = images_NCHW.to(self.mean.dtype).div(scale)
        if not bool(images_NCHW.sub(0.5).abs().le(1).all()):
            raise ValueError("images hold floats outside of [0, 1]; divide them by 255, and do not normalise them")
        output = self.network(images_NCHW.sub(self.mean).div(self.std))
        return self.method.predict(output) if self.method else output.logits


def load_student(path: str | Path, trusted: Sequence[str] = ()) -> Student:
    """Return the network of a complete run with its best-validation weights, on the CPU, in evaluation mode.

    Args:
        path: run directory, with config.yaml and best.safetensors.
        trusted: modules whose code the run's config may name, beside kdbench's own; only theirs is imported.

    Raises:
        ConfigError: it is no complete run, its files are damaged, its config names code that is not trusted, or the
            code of its network was edited since.
    """
    folder = path_of(path)
    if isinstance(trusted, str) or not isinstance(trusted, Sequence):
        raise ConfigError(
            f"trusted is {trusted!r}; it must be a list of modules such as ['my_models']",
            code="wrong_type",
            key="trusted",
        )
    summary = read_complete(folder)
    for name in ("config.yaml", "best.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} lacks {name}: the run is kept in its small form, which has no network",
                code="not_found",
                key="path",
            )
    config = read_config(folder / "config.yaml", trusted)
    check_unchanged(folder / "best.safetensors", summary.weights_sha256)
    check_same_code(folder, config)
    with ONE_AT_A_TIME:
        network, method = build_trained(config, DataSpec(*summary.classes_and_shape), folder / "best.safetensors")
    return Student(network, config.data.params.mean, config.data.params.std, method)


def check_same_code(folder: Path, config: RunConfig) -> None:
    """Check that the code of a run's network is that of its weights.

    Args:
        folder: run directory.
        config: its config.

    Raises:
        ConfigError: it was edited since.
    """
    recorded = weights.read_metadata(folder / "best.safetensors").get("architecture")
    now = architecture_identity(config.student)
    if recorded and recorded != now:
        raise ConfigError(
            f"{folder}: its weights are of the architecture {recorded}, and {config.student.target} is now {now}; "
            "restore the code of that time, or repeat the run",
            code="mismatch",
            key="student",
        )


def build_trained(config: RunConfig, spec: DataSpec, file: Path) -> tuple[Network, Method | None]:
    """Return the network of a trained student, and its method if that takes part in predictions; both with weights.

    Args:
        config: recorded config of the run.
        spec: number of classes and shape of the images.
        file: best.safetensors of the run.

    Raises:
        ConfigError: the file cannot be read, or does not fit.
    """
    own, of_method = weights.read_student(file)
    network, method = build_inference(config, spec)
    weights.load_into(network, own, str(file))
    if method:
        expected = method.inference_state()
        method.load_state_dict(weights.checked(of_method, expected, f"{file}, {weights.METHOD}*"), strict=False)
        method.eval()
    return network, method


def inference_size(network: Network, method: Method, student: ModelSummary, spec: DataSpec) -> tuple[int, int]:
    """Return the parameters and the multiply-accumulates per image with which a student and its method predict.

    The student counts with all of its modules, those that the method does not use included: they are stored and
    computed too.

    Args:
        network: student, in evaluation mode, with the stages that the method requires.
        method: method that predicts, in evaluation mode, on the same device.
        student: summary of the student.
        spec: shape of the images.
    """
    stored = method.inference_state()
    own = sum(p.numel() for name, p in method.named_parameters() if name in stored)
    weight = next(network.parameters())
    with torch.no_grad():
        output = network(torch.zeros(2, *spec.input_shape, device=weight.device, dtype=weight.dtype))
        with FlopCounterMode(display=False) as counter:
            method.predict(output)
    return student.num_params + own, student.macs + counter.get_total_flops() // 4


def build_inference(config: RunConfig, spec: DataSpec) -> tuple[Network, Method | None]:
    """Return the network of a run, and its method if that takes part in predictions; both with random weights."""
    target, teacher = config.method.target, config.teacher
    if not (issubclass(target, Method) and target.predicts()):
        return build(config.student, spec, (), trained=False), None
    nothing = torch.zeros(0, dtype=torch.int64)
    with seeded(0):
        summaries = (summarize(teacher.model, spec, "teacher", trained=False),) if teacher else ()
        context = MethodContext(
            student=summarize(config.student, spec, "student", trained=False),
            teachers=summaries,
            data=spec,
            labels=nothing,
            indices=nothing,
            epochs=config.recipe.epochs,
            generator=torch.Generator(),
        )
        method: Method = target(config.method.params, context)
        network = build(config.student, spec, method.requires.student_stages, trained=False)
        method.bind_student(network)
        if teacher:
            stages = method.requires.teacher_network_stages
            method.bind_teachers([build(teacher.model, spec, stages, "teacher", trained=False).eval()])
    return network, method
