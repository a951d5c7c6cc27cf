"""Description of an architecture before it trains: shapes, sources of stages and logits, and what is wrong with it.

The network is built on the CPU and computes small batches there, in evaluation and in training mode. It is not traced.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from kdbench.config.sections import ModelConfig
from kdbench.data.source import DataSpec
from kdbench.errors import ConfigError, first_line
from kdbench.models.builders import build_body, builder_of
from kdbench.models.fuse import find_fusable, fused
from kdbench.models.logits import LogitsFinder
from kdbench.models.network import LogitsKey, Network, StageSource, in_layout
from kdbench.models.record import ForwardRecord
from kdbench.models.stages import (
    Pass,
    UnknownNodeError,
    UnusableStageError,
    find_classifiers,
    find_source,
    layout_problem,
    shape_text,
)
from kdbench.models.state import Changes, StateError, check_repeatable, check_storable
from kdbench.system.random import host_state, is_same_host_state, seeded


@dataclass(frozen=True)
class ModelSummary:
    """Properties of an architecture that are known without training it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Stage name to the shape of one image's output, without the batch dimension."""
    num_params: int
    macs: int
    """Multiply-accumulates of one image's forward pass, in convolutions and matrix products."""
    sources: Mapping[str, StageSource]
    """Stage name to where its tensor comes from."""
    refused: Mapping[str, str]
    """Stage name to why no method can use it; the network can be used without."""
    logits: StageSource | LogitsKey
    """Where the logits come from."""
    fusable: tuple[tuple[str, str], ...]
    """Convolutions, each with the batch norm that can be fused into it."""
    host_random: bool
    """True if the network draws random numbers from Python's or NumPy's generator while it trains."""
    changing: tuple[str, ...]
    """Attributes and buffers outside of the state dict that training changes."""
    without_gradient: Mapping[str, str]
    """Stages from which no gradient flows back to a parameter, with the reason."""
    own_code: bool
    """True if the network may do at a later step what the description did not see: it is not one of kdbench's."""
    evaluation_random: bool
    """True if the network draws random numbers in evaluation mode too."""
    one_image: Mapping[str, str]
    """Mode (train or eval) to why a batch of one image cannot be processed in it."""
    classifiers: Mapping[str, str]
    """Stage name to the path of the linear layer that computes the logits from the mean over the stage's positions, or
    from the embedding that the stage is; only for stages where one does."""
    narrow_convolution: str
    """Path of a 1x1 convolution with stride and under 16 channels, or an empty text: see `check_memory_format`."""
    builder: int
    """Number of the builder in this process: code that is edited and imported anew has another."""
    remarks: tuple[str, ...]
    """Lines for the user, each about something that the network computes and that is not used."""


_summaries: dict[tuple[str, bool], tuple[ModelSummary, Any]] = {}
"""Summary and builder by case and `trained`; the builder is kept so that no other object gets its id."""


def summarize(config: ModelConfig, spec: DataSpec, key: str, trained: bool = True) -> ModelSummary:
    """Return the description of an architecture. It is kept for the next run of the process.

    Args:
        config: the architecture.
        spec: number of classes and shape of the images.
        key: place of the architecture in the run's config, for errors.
        trained: whether it is to be trained; given weights need to work in evaluation mode only.

    Raises:
        ConfigError: the architecture cannot be built, or cannot process such images; its logits are not clear or not
            [N, num_classes]; it has no such stage; or its state cannot be stored and restored.
    """
    num_classes, image_shape = spec.num_classes, spec.input_shape
    builder = builder_of(config)
    case = repr((config.target, id(builder), config.arguments, config.stages, config.logits, num_classes, image_shape))
    for known in [(case, True)] if trained else [(case, True), (case, False)]:
        if known in _summaries:
            return _summaries[known][0]
    try:
        with seeded(0):
            summary = Probe(config, num_classes, image_shape, key).describe(trained)
    except ConfigError:
        raise
    except Exception as error:  # of the network's own code
        raise ConfigError(
            f"{key}={config.name} cannot be used: {first_line(error)}", code="mismatch", key=key
        ) from error
    _summaries[case, trained] = summary, builder
    return summary


def find_narrow_convolution(body: nn.Module) -> str:
    """Return the path of the first 1x1 convolution with a stride and fewer than 16 input channels, or an empty text."""
    for path, module in body.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1:
            continue
        if module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 16:
            return path
    return ""


class Probe:
    """A network that is built and executed on small batches to describe it.

    Args: as those of `summarize`.
    """

    def __init__(self, config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], key: str) -> None:
        self.config = config
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.key = key
        self.name = f"{key}={config.name}"
        self.size = 4 if num_classes == 2 else 2
        """Images of a batch: not as many as classes, so that [C, N] is not taken for [N, C]."""
        self.images = torch.randn(self.size, *image_shape, generator=torch.Generator().manual_seed(0))
        self.body = build_body(config, num_classes, image_shape, key)
        self.finder = LogitsFinder(config, key, self.body, self.images, num_classes)

    def describe(self, trained: bool) -> ModelSummary:
        """Return the description; `trained` as in `summarize`."""
        evaluation = self.record(self.images, train=False)
        logits = self.finder.find(evaluation, "evaluation")
        passes, remarks = [evaluation], []
        if trained:
            training = self.record(self.images, train=True)
            passes.append(training)
            if not isinstance(training.returned, Tensor):
                logits = self.finder.find(training, "training")
            elif isinstance(evaluation.returned, Tensor) and logits is not None and not isinstance(logits, StageSource):
                raise self.finder.ambiguous(training, "training")
            self.finder.check(self.finder.take(logits, evaluation), "evaluation")
            self.finder.check(self.finder.take(logits, training), "training")
            remarks = self.finder.dropped(logits, training)
            values = self.finder.take(logits, evaluation)
            if bool((values >= 0).all()) and bool((values.sum(1) - 1).abs().max() < 1e-4):
                remarks.append(
                    f"{self.name}: its outputs look like probabilities; losses take them for logits, before the softmax"
                )
        else:
            self.finder.check(self.finder.take(logits, evaluation), "evaluation")
        sources, refused = self.find_stages(passes)
        without_gradient = self.check_gradients(logits, sources) if trained else {}
        tensors = {stage: evaluation.tensor(source) for stage, source in sources.items()}
        self.body.eval()
        pairs = tuple(find_fusable(self.body, evaluation.record, {id(tensor) for tensor in tensors.values()}))
        changes = self.check_state(logits, trained)
        return ModelSummary(
            shapes={stage: tuple(in_layout(tensor, sources[stage]).shape[1:]) for stage, tensor in tensors.items()},
            num_params=sum(p.numel() for p in self.body.parameters()),
            macs=self.count_macs(),
            sources=sources,
            refused=refused,
            logits=logits,
            fusable=pairs if self.fuses(pairs, logits) else (),
            host_random=changes.host_random,
            changing=changes.changing,
            without_gradient=without_gradient,
            own_code=not self.config.target.startswith("kdbench."),
            evaluation_random=self.draws_in_evaluation(),
            one_image=self.check_one_image(logits, trained),
            classifiers=find_classifiers(
                self.body,
                evaluation,
                self.finder.take(logits, evaluation),
                {stage: in_layout(tensor, sources[stage]) for stage, tensor in tensors.items()},
            ),
            narrow_convolution=find_narrow_convolution(self.body),
            builder=id(builder_of(self.config)),
            remarks=tuple(remarks),
        )

    # Execution

    def run(self, body: nn.Module, images: Tensor, train: bool) -> Any:
        """Return what a network returns for images, with seeded random numbers and without gradients."""
        body.train(train)
        version = images._version  # an in-place operation raises it
        mode = "training" if train else "evaluation"
        size_key = next((key for key in ("image_size", "img_size") if key in self.config.arguments), "")
        hint = f"; {self.key}.{size_key} is the size that it is built for" if size_key else ""
        try:
            with seeded(0), torch.no_grad():
                returned = body(images)
        except Exception as error:
            raise ConfigError(
                f"{self.name} cannot process images of {self.image_shape} in {mode} mode: {first_line(error)}{hint}",
                code="mismatch",
                key=self.key,
            ) from error
        if images._version != version:
            raise ConfigError(
                f"{self.name} changes its input images in place in {mode} mode, which others read too; its "
                "forward must begin with an operation that is not in place",
                code="mismatch",
                key=self.key,
            )
        return returned

    def record(self, images: Tensor, train: bool) -> Pass:
        """Return the record of one pass."""
        with ForwardRecord(self.body) as record:
            returned = self.run(self.body, images, train)
        return Pass(record, returned)

    def evaluate(self, body: nn.Module, logits: StageSource | LogitsKey) -> Tensor:
        """Return the logits of a network of this architecture in evaluation mode."""
        network = Network(body, {}, logits, "")
        try:
            return self.run(network, self.images, train=False).logits
        finally:
            network.remove_hooks()

    def draws_in_evaluation(self) -> bool:
        """Return whether a pass in evaluation mode draws random numbers."""
        self.body.eval()
        with seeded(0), torch.no_grad():
            before, host = torch.get_rng_state(), host_state()
            self.body(self.images)
            return not torch.equal(before, torch.get_rng_state()) or not is_same_host_state(host, host_state())

    def count_macs(self) -> int:
        """Return the multiply-accumulates of one image's forward pass in evaluation mode."""
        for images in (self.images[:1], self.images):
            try:
                # Fused attention is not counted; a record keeps torch from choosing it for whole layers.
                with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                    self.record(images, train=False)
            except ConfigError:  # one image alone may be refused
                continue
            return counter.get_total_flops() // (2 * len(images))
        return 0

    # Stages

    def find_stages(self, passes: Sequence[Pass]) -> tuple[dict[str, StageSource], dict[str, str]]:
        """Return the source of each stage, and why a stage cannot be used, where that is so.

        Raises:
            ConfigError: the network has nothing of a name.
        """
        sources: dict[str, StageSource] = {}
        refused: dict[str, str] = {}
        taller = torch.cat([self.images, self.images], dim=2)
        for stage, place in self.config.stages.items():
            try:
                source = find_source(self.body, place, passes)
            except UnusableStageError as error:
                refused[stage] = str(error)
                continue
            except UnknownNodeError as error:
                key = f"{self.key}.stages"
                raise ConfigError(f"{key}: {error}", code="not_found", key=key) from None
            tensor, *others = [one.tensor(source) for one in passes]
            if any(other.shape != tensor.shape for other in others):
                shapes = f"{shape_text(tensor)} in evaluation mode and {shape_text(others[0])} in training mode"
                refused[stage] = f"{source.path} is {shapes}"
                continue
            if tensor.ndim < 2 or tensor.shape[0] != self.size:
                refused[stage] = (
                    f"{source.path} is {list(tensor.shape)} for {self.size} images; a stage must have the images first"
                )
                continue
            sources[stage] = source
            if problem := layout_problem(
                place, source, tensor, self.image_shape[1:], lambda: self.record(taller, train=False)
            ):
                refused[stage] = problem
        return sources, refused

    # Training

    def check_gradients(self, logits: StageSource | LogitsKey, sources: Mapping[str, StageSource]) -> dict[str, str]:
        """Check that a backward pass works, and return the stages from which no gradient flows back.

        Raises:
            ConfigError: it does not, or a parameter that is trained is not float32.
        """
        trained = {name: p for name, p in self.body.named_parameters() if p.requires_grad}
        odd = next((name for name, p in trained.items() if p.dtype != torch.float32), None)
        if odd is not None:
            raise self.not_trainable(f"its parameter {odd} is {trained[odd].dtype}; it must be float32")
        if not trained:
            return {}
        self.body.train()
        try:
            with seeded(0), torch.enable_grad():
                network = Network(self.body, sources, logits, "")
                output = network(self.images.clone())
                network.remove_hooks()
                parts = [output.logits, *output.features.values()]
                total = torch.stack([part.sum() for part in parts if part.requires_grad]).sum()
                torch.autograd.grad(total, list(trained.values()), allow_unused=True)
        except Exception as error:
            raise self.not_trainable(f"its backward pass fails: {first_line(error)}") from error
        reason = (
            "no gradient flows back from it: it is detached, computed under torch.no_grad or under "
            "checkpoint(use_reentrant=True), or before every trained parameter"
        )
        return {stage: reason for stage, tensor in output.features.items() if not tensor.requires_grad}

    def not_trainable(self, problem: str) -> ConfigError:
        """Return the error for a network that cannot be trained."""
        return ConfigError(f"{self.name} cannot be trained: {problem}", code="not_trainable", key=self.key)

    # State

    def check_state(self, logits: StageSource | LogitsKey, trained: bool) -> Changes:
        """Check that checkpoints and stored weights hold all that the network keeps.

        Raises:
            ConfigError: they do not.
        """
        code = "not_repeatable"
        try:
            # A fresh network: some set themselves up in their first pass.
            changes = check_repeatable(self.build_other(), self.images) if trained else Changes(False, ())
            code = "not_storable"
            if trained:
                self.run(self.body, self.images, train=True)
            check_storable(self.body, self.build_other, lambda body: self.evaluate(body, logits))
        except StateError as error:
            raise ConfigError(f"{self.name} {error}", code=code, key=self.key) from error
        return changes

    def build_other(self) -> nn.Module:
        """Return another network of the architecture, from other random numbers."""
        with seeded(1):
            return build_body(self.config, self.num_classes, self.image_shape, self.key)

    def fuses(self, pairs: tuple[tuple[str, str], ...], logits: StageSource | LogitsKey) -> bool:
        """Return whether the network computes the same after its batch norms were fused."""
        try:
            measured = self.evaluate(fused(copy.deepcopy(self.body).eval(), pairs), logits)
        except Exception:  # it reads a part of a batch norm, or cannot be copied
            return False
        expected = self.evaluate(self.body, logits)
        return bool((measured - expected).abs().max() <= 1e-3 * expected.abs().max())

    def check_one_image(self, logits: StageSource | LogitsKey, trained: bool) -> dict[str, str]:
        """Return for each mode why one image alone cannot be processed, where that is so."""
        problems: dict[str, str] = {}
        for mode in ("eval", "train") if trained else ("eval",):
            if mode == "train" and any(isinstance(module, _BatchNorm) for module in self.body.modules()):
                problems[mode] = "batch norm is undefined"
                continue
            try:
                shape = list(self.finder.take(logits, self.record(self.images[:1], train=mode == "train")).shape)
            except Exception as error:
                problems[mode] = f"the network fails ({first_line(error)})"
                continue
            if shape != [1, self.num_classes]:
                problems[mode] = f"the logits are {shape}"
        return problems
