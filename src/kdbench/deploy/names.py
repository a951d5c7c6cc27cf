"""Weights under the names of another code base, checked by loading them there."""

import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from kdbench.config import ModelConfig
from kdbench.data.source import DataSpec
from kdbench.deploy.formats import TIMM, TORCHVISION
from kdbench.errors import ConfigError, first_line
from kdbench.models.checkpoint_files import read_checkpoint
from kdbench.models.onnx_graph import missing_extra
from kdbench.models.weights import storable

CIFAR_STEM = ("conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)", "maxpool = nn.Identity()")
"""Changes of another code base's ResNet that has the first layers for small images."""


def renamed_weights(
    module: nn.Module, model: ModelConfig, spec: DataSpec, package: str, name: str | None
) -> tuple[dict[str, Tensor], nn.Module, dict[str, Any]]:
    """Return weights by the names of torchvision or timm, the network there with them, and how to build it.

    The network there has loaded them with `strict=True`.

    Args:
        module: plain module of the network.
        model: its architecture.
        spec: number of classes and shape of the images.
        package: torchvision or timm.
        name: name of the network there; None: that of the architecture.

    Raises:
        ConfigError: there is no such network, or the weights do not fit it.
    """
    wanted = name or own_name(model)
    if wanted is None:
        raise ConfigError(
            f"--names {package}: {model.name} ({model.target}) is no network of {package}; use --names plain, or name "
            "the network of the same layers there: --architecture NAME",
            code="not_found",
            key="--names",
        )
    other, changes = build_other(package, wanted, model, spec)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.safetensors")
        save_file(storable(module.state_dict()), file)
        try:
            found, _ = read_checkpoint(file, other.state_dict(), None)
        except ConfigError as error:
            raise ConfigError(
                f"--names {package}: the weights of {model.name} do not fit {wanted} of {package} "
                f"({str(error).replace(str(file), 'the file')}); use --names plain, or --architecture NAME",
                code=error.code,
                key="--names",
            ) from None
    state = {key: found.get(key, value) for key, value in other.state_dict().items()}
    other.load_state_dict(state, strict=True)
    built = f"torchvision.models.{wanted}" if package == TORCHVISION else f"timm.create_model({wanted!r})"
    return state, other.eval(), {"package": package, "network": built, "changes": list(changes)}


def own_name(model: ModelConfig) -> str | None:
    """Return the name by which torchvision and timm may know an architecture."""
    given = model.arguments.get("arch") or model.arguments.get("model_name")
    if given:
        return str(given)
    published = model.target.startswith(("torchvision.models.", "timm."))
    return model.target.rpartition(".")[2] if published else None


def build_other(package: str, name: str, model: ModelConfig, spec: DataSpec) -> tuple[Any, tuple[str, ...]]:
    """Return a network of another code base, and the changes that give it the first layers of the own one.

    Raises:
        ConfigError: the package is not installed, or has no such network.
    """
    try:
        if package == TIMM:
            import timm

            other = timm.create_model(name, num_classes=spec.num_classes, **sized(model))
        else:
            import torchvision

            builder = torchvision.models.get_model_builder(name)
            other = builder(num_classes=spec.num_classes, **sized(model))
    except ImportError:
        raise missing_extra(f"--names {package}", package) from None
    except Exception as error:  # of either package, for names and arguments
        raise ConfigError(
            f"--names {package}: {package} has no network {name} for these images ({first_line(error)}); give another "
            "by --architecture NAME, or use --names plain",
            code="not_found",
            key="--architecture",
        ) from None
    if model.stem != "cifar":
        return other, ()
    other.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    other.maxpool = nn.Identity()
    return other, CIFAR_STEM


def sized(model: ModelConfig) -> dict[str, Any]:
    """Return the arguments of an architecture that the network elsewhere takes too."""
    if not model.target.startswith(("torchvision.models.", "timm.")):
        return {}
    return {key: value for key, value in model.arguments.items() if key not in ("arch", "model_name", "pretrained")}
