"""Structured pruning: whole channels are removed, and the network is really smaller."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdbench.compress.base import Compressed, Compression, Subject
from kdbench.config.schema import one_of, setting, whole
from kdbench.errors import ConfigError, first_line
from kdbench.models.builders import build_body
from kdbench.models.compressed import WEIGHTED, base_of, narrowed
from kdbench.models.onnx_graph import extra

TARGET = f"{narrowed.__module__}.{narrowed.__qualname__}"


class Structured(Compression):
    """Removal of the channels with the smallest weights, by Torch-Pruning (Fang et al. 2023, arXiv 2301.12900).

    Channels that depend on each other, as over a shortcut, are removed together; a group's importance is the norm of
    all weights of a channel, averaged over the layers. The outputs of the classifier stay.
    """

    @dataclass
    class Config:
        ratio: float = setting(lambda value: 0 < value < 1, "a number above 0 and below 1")
        """Share of the channels that is removed, of each group, or of all with scope=global."""
        scope: str = one_of("group", "global")
        norm: int = setting(lambda value: value in (1, 2), "1 or 2")
        """Norm of the weights by which channels are compared."""
        round_to: int = whole(1)
        """Numbers of channels are multiples of this."""

    def apply(self, subject: Subject) -> Compressed:
        with extra("compress=structured", "torch-pruning"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_pruning
        check_convolutional(subject)
        body = subject.body
        images = torch.randn(2, *subject.spec.input_shape, generator=torch.Generator().manual_seed(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pruner = torch_pruning.pruner.BasePruner(
                    body,
                    images,
                    importance=torch_pruning.importance.GroupMagnitudeImportance(p=self.config.norm),
                    pruning_ratio=self.config.ratio,
                    global_pruning=self.config.scope == "global",
                    ignored_layers=classifiers(body, images, subject.spec.num_classes),
                    round_to=self.config.round_to if self.config.round_to > 1 else None,
                )
                pruner.step()
                with torch.no_grad():
                    body.eval()(images)
            except Exception as error:  # of the library, for networks that it cannot follow
                raise ConfigError(
                    f"compress=structured cannot remove channels of {subject.model.name}: {first_line(error)}",
                    code="not_compressible",
                    key="structured",
                ) from error
        base = build_body(subject.model, subject.spec.num_classes, subject.spec.input_shape, "student")
        layers = changed_sizes(base, body)
        if not layers:
            raise ConfigError(
                f"structured.ratio is {self.config.ratio:g}, which would leave no channel of {subject.model.name}; "
                "give a smaller one",
                code="nothing_removed",
                key="structured.ratio",
            )
        model = dataclasses.replace(
            subject.model, target=TARGET, arguments={"base": base_of(subject.model), "layers": layers}
        )
        return Compressed(model, dict(body.state_dict()))


def check_convolutional(subject: Subject) -> None:
    """Check that no layer is one whose channels are divided among heads, which the library removes wrongly.

    Raises:
        ConfigError: there is one.
    """
    for path, module in subject.body.named_modules():
        if "attention" in type(module).__name__.lower():
            raise ConfigError(
                f"compress=structured removes channels of convolutional networks, and {subject.model.name} has "
                f"attention ({path}); use magnitude, low_rank or int8",
                code="not_compressible",
                key="structured",
            )


def classifiers(body: nn.Module, images: torch.Tensor, num_classes: int) -> list[nn.Module]:
    """Return the layers whose outputs may be logits, and stay: as many as classes; the last layer where none has."""
    executed: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda layer, *_: executed.append(layer))
        for module in body.modules()
        if isinstance(module, WEIGHTED)
    ]
    with torch.no_grad():
        body.eval()(images)
    for hook in hooks:
        hook.remove()
    outputs = [getattr(layer, "out_features", getattr(layer, "out_channels", None)) for layer in executed]
    found = [layer for layer, size in zip(executed, outputs, strict=True) if size == num_classes]
    return found or executed[-1:]


def changed_sizes(base: nn.Module, body: nn.Module) -> dict[str, dict[str, Any]]:
    """Return by path of a module its sizes that differ from those of its base: see `narrowed`."""
    changed: dict[str, dict[str, Any]] = {}
    for path, module in body.named_modules():
        before, sizes = base.get_submodule(path), dict[str, Any]()
        for name, value in vars(module).items():
            known = vars(before).get(name)
            if type(value) is int and type(known) is int and value != known:
                sizes[name] = value
            elif isinstance(value, tuple) and isinstance(known, tuple) and value != known:
                sizes[name] = list(value)
        for tensors, known_tensors in (
            (module._parameters, before._parameters),
            (module._buffers, before._buffers),
        ):
            for name, tensor in tensors.items():
                own = known_tensors.get(name)
                if tensor is not None and own is not None and tensor.shape != own.shape:
                    sizes[name] = list(tensor.shape)
        if sizes:
            changed[path] = sizes
    return changed
