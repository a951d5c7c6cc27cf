"""One wrapper for every architecture: its forward pass returns logits and the selected stages."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdbench.errors import RunError
from kdbench.models.attributes import kept_state, write_attribute
from kdbench.models.record import ForwardRecord, tensors_of

LogitsKey = str | tuple[str, ...] | None
"""Where the logits are in what a network returns, dotted; several are averaged; None: the only tensor."""


class Output(NamedTuple):
    """Output of a network for a batch."""

    logits: Tensor
    """[N, C]."""
    features: Mapping[str, Tensor]
    """Stage name to maps [N, C, H, W], tokens [N, T, D] or embeddings [N, D]; only the stages that the network was
    built with."""


@dataclass(frozen=True)
class StageSource:
    """Where the tensor of a stage comes from in a forward pass."""

    kind: str
    """output or input of a module, operation (a torch function), or returned (by the network)."""
    path: str
    """Path of the module; path of the calling module and name of the function; or place in what is returned."""
    number: int = 0
    """Which call of the module or function, counted from 0."""
    calls: int | None = None
    """Number of calls of the module or function in a forward pass; None where it may vary."""
    entry: str = ""
    """Place of the tensor in what a module returns, dotted; empty for a tensor itself."""
    layout: str = "first"
    """nhwc: the tensor is [N, H, W, C] and is permuted; first: it is [N, C, ...], [N, T, D] or [N, D]."""
    overwritten: bool = False
    """True if an in-place operation changes the tensor later in the pass, so that a copy is kept."""


class StageHook:
    """Output or input of one module, kept as it passes. Deep copies of a network have hooks of their own.

    Args:
        kept: receives the tensors of each call, by stage.
        stage: name of the stage.
        source: source of the stage.
    """

    def __init__(self, kept: dict[str, list[Tensor]], stage: str, source: StageSource) -> None:
        self.kept = kept
        self.stage = stage
        self.source = source

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
        if self.stage not in self.kept:  # outside of a forward pass of the network
            return
        value = inputs[0] if self.source.kind == "input" else output
        tensor = value if isinstance(value, Tensor) else tensors_of(value)[self.source.entry]
        self.kept[self.stage].append(tensor.clone() if self.source.overwritten else tensor)


class Network(nn.Module):
    """A network with named stages. The architecture's own module computes them; hooks keep the stages.

    Args:
        body: the architecture's own module, with its own state-dict names.
        stages: source of each stage.
        logits: source of the logits if they are a module's output, else their place in what the network returns.
        architecture: text that is the same for networks that compute the same function of images and weights.
        fusable: paths of convolutions, each with the batch norm that can be fused into it.
        host_random: whether the forward pass draws random numbers from Python or NumPy.
        changing: attributes and buffers outside of the state dict that the forward pass is known to change.
        own_code: whether it may draw or change something at a later step that its description did not see.
    """

    input_scale: Tensor | None
    input_shift: Tensor | None

    def __init__(
        self,
        body: nn.Module,
        stages: Mapping[str, StageSource],
        logits: StageSource | LogitsKey,
        architecture: str,
        fusable: tuple[tuple[str, str], ...] = (),
        host_random: bool = False,
        changing: tuple[str, ...] = (),
        own_code: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        self.architecture = architecture
        self.stages = dict(stages)
        self.logits = logits
        self.fusable = fusable
        self.host_random = host_random
        self.changing = changing
        self.own_code = own_code
        self.register_buffer("input_scale", None, persistent=False)
        self.register_buffer("input_shift", None, persistent=False)
        self._kept: dict[str, list[Tensor]] = {}
        sources = {**self.stages, **({"": logits} if isinstance(logits, StageSource) else {})}
        self._operations = {
            source.path: source.overwritten for source in sources.values() if source.kind == "operation"
        }
        self._hooked = tuple(stage for stage, source in sources.items() if source.kind in ("output", "input"))
        self._hooks = [
            register(body.get_submodule(source.path), source)(StageHook(self._kept, stage, source))
            for stage, source in sources.items()
            if stage in self._hooked
        ]

    @property
    def capturable(self) -> bool:
        """True if a training step may be captured as a CUDA graph: what the host draws or counts would be frozen."""
        return not self.host_random and not self.changing

    def forward(self, images: Tensor) -> Output:
        """Return logits and stages of images [N, C, H, W].

        Raises:
            RunError: this pass did not compute a stage or the logits, or computed a stage another number of times.
        """
        if self.input_scale is not None and self.input_shift is not None:
            images = images * self.input_scale + self.input_shift
        for stage in self._hooked:
            self._kept[stage] = []
        try:
            if self._operations:
                with ForwardRecord(self.body, self._operations) as record:
                    returned = self.body(images)
            else:
                record, returned = None, self.body(images)
            features = {stage: self.read(stage, source, returned, record) for stage, source in self.stages.items()}
            if isinstance(self.logits, StageSource):
                logits = self.read("", self.logits, returned, record)
            else:
                logits = returned if isinstance(returned, Tensor) else select_logits(returned, self.logits)
        finally:
            self._kept.clear()
        return Output(logits, features)

    def adapt_normalisation(self, given: tuple[list[float], list[float]], own: tuple[list[float], list[float]]) -> None:
        """Take images of another normalisation than the network's own; each is the mean and deviation of channels."""
        (mean, std), (own_mean, own_std) = (
            torch.tensor(pair, dtype=torch.float64)[..., None, None] for pair in (given, own)
        )
        self.input_scale, self.input_shift = (std / own_std).float(), ((mean - own_mean) / own_std).float()

    def with_body(self, body: nn.Module) -> "Network":
        """Return a network with the same stages and settings around another module, which has no hooks of this one."""
        network = Network(
            body,
            self.stages,
            self.logits,
            self.architecture,
            self.fusable,
            self.host_random,
            self.changing,
            self.own_code,
        )
        network.input_scale, network.input_shift = self.input_scale, self.input_shift
        return network

    def plain_copy(self) -> nn.Module:
        """Return a deep copy of the architecture's module, without the hooks of the stages."""
        copied = copy.deepcopy(self)
        copied.remove_hooks()
        return copied.body

    def remove_hooks(self) -> None:
        """Remove the hooks of the stages from the architecture's module; this network cannot be used any more."""
        for hook in self._hooks:
            hook.remove()

    def read(self, stage: str, source: StageSource, returned: Any, record: ForwardRecord | None) -> Tensor:
        """Return the tensor of a stage from the current pass."""
        if source.kind == "returned":
            found = [tensor for place, tensor in tensors_of(returned).items() if place == source.path]
        elif source.kind == "operation":
            assert record is not None
            outputs = record.operations[source.path]
            found = [tensor for tensor, _ in outputs[source.number :]] if len(outputs) == source.calls else []
        else:
            calls = self._kept.get(stage, [])
            found = calls[source.number :] if source.calls in (None, len(calls)) else []
        if not found:
            name = f"stages.{stage}" if stage else "logits"
            raise RunError(
                f"{name}: {source.path} was computed in another way in this pass than when the network was described; "
                "name a place that every pass computes once, such as the module around it",
                code="stage_missing",
                key=name,
            )
        return in_layout(found[0], source)

    def unsaved_state(self) -> dict[str, Any]:
        """Return the buffers and plain attributes that the state dict does not hold; nothing for kdbench's networks."""
        return kept_state(self.body) if self.own_code else {}

    def load_unsaved_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `unsaved_state` returned."""
        for name, value in state.items():
            write_attribute(self.body, name, value)


def in_layout(tensor: Tensor, source: StageSource) -> Tensor:
    """Return the tensor of a stage with channels second."""
    return tensor.permute(0, 3, 1, 2) if source.layout == "nhwc" else tensor


def register(module: nn.Module, source: StageSource) -> Callable[[StageHook], RemovableHandle]:
    """Return the function that registers a hook for a source."""
    return module.register_forward_pre_hook if source.kind == "input" else module.register_forward_hook


def select_logits(returned: Any, key: LogitsKey) -> Tensor:
    """Return the logits in what a network returned; several are averaged.

    Raises:
        KeyError: there is no tensor of that key, or none is given and there are several.
    """
    found = tensors_of(returned)
    if key is None:
        key = "logits" if "logits" in found else next(iter(found)) if len(found) == 1 else ""
    if isinstance(key, tuple):
        return torch.stack([found[place] for place in key]).mean(0)
    return found[key]
