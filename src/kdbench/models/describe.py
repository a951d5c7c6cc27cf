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
from kdbench.models.network import LogitsKey, Network, StageSource, in_layout, select_logits
from kdbench.models.record import ForwardRecord, tensors_of
from kdbench.models.stages import (
    Pass,
    UnknownNodeError,
    UnusableStageError,
    describe_value,
    find_classifiers,
    find_source,
    layout_problem,
    module_source,
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

    def describe(self, trained: bool) -> ModelSummary:
        """Return the description; `trained` as in `summarize`."""
        evaluation = self.record(self.images, train=False)
        logits = self.find_logits(evaluation, "evaluation")
        passes, remarks = [evaluation], []
        if trained:
            training = self.record(self.images, train=True)
            passes.append(training)
            if not isinstance(training.returned, Tensor):
                logits = self.find_logits(training, "training")
            elif isinstance(evaluation.returned, Tensor) and logits is not None and not isinstance(logits, StageSource):
                raise self.ambiguous(training, "training")
            self.check_logits(self.take(logits, evaluation), "evaluation")
            self.check_logits(self.take(logits, training), "training")
            remarks = self.dropped(logits, training)
            values = self.take(logits, evaluation)
            if bool((values >= 0).all()) and bool((values.sum(1) - 1).abs().max() < 1e-4):
                remarks.append(
                    f"{self.name}: its outputs look like probabilities; losses take them for logits, before the softmax"
                )
        else:
            self.check_logits(self.take(logits, evaluation), "evaluation")
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
                self.take(logits, evaluation),
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

    # Logits

    def find_logits(self, one: Pass, mode: str) -> StageSource | LogitsKey:
        """Return the source of the logits: the key of the config, or the only tensor, or an entry `logits`.

        Raises:
            ConfigError: there are several tensors and no key, or the key names none of them.
        """
        found, wanted, calls = tensors_of(one.returned), self.config.logits, one.record.calls
        own = isinstance(one.returned, Tensor) and mode == "evaluation"  # it may return several in training
        if isinstance(wanted, list):
            places = tuple(map(str, wanted))
            if own or all(self.are_logits(found.get(place)) for place in places):
                return places
        elif wanted is not None:
            place = str(wanted)
            if place in found:
                return place
            if len(calls.get(place, ())) == 1 and isinstance(calls[place][0].output, Tensor):
                return module_source(self.body, place, StageSource("output", place), None, [one])
            if own:  # the pass in training mode shows whether there is such a place
                return place
        elif len(found) == 1 or "logits" in found:
            return None
        raise self.ambiguous(one, mode)

    def ambiguous(self, one: Pass, mode: str) -> ConfigError:
        """Return the error for logits that are not clear, with the candidates."""
        wanted = self.config.logits
        return ConfigError(
            f"{self.name} returns {describe_value(one.returned)} in {mode} mode"
            + ("" if wanted is None else f", where {self.key}.logits={wanted} is not [N, {self.num_classes}]")
            + f"; say which are the logits with {self.key}.logits=: {self.candidates(one)}",
            code="ambiguous_logits",
            key=f"{self.key}.logits",
        )

    def candidates(self, one: Pass) -> str:
        """Return the places that hold float tensors [N, num_classes], in words."""
        returned = [place for place, tensor in tensors_of(one.returned).items() if place and self.are_logits(tensor)]
        calls = one.record.calls
        modules = [path for path in calls if len(calls[path]) == 1 and self.are_logits(calls[path][0].output)]
        mean = [f"[{','.join(returned)}] (their mean)"] if len(returned) > 1 else []
        several = list(dict.fromkeys([*returned, *mean, *modules]))
        return ", ".join(several) or f"nothing that it computes is [N, {self.num_classes}]"

    def are_logits(self, value: Any) -> bool:
        """Return whether a value is a float tensor [N, num_classes]."""
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return is_float and tuple(value.shape) == (self.size, self.num_classes)

    def take(self, logits: StageSource | LogitsKey, one: Pass) -> Tensor:
        """Return the logits of a recorded pass."""
        if isinstance(logits, StageSource):
            return one.tensor(logits)
        return one.returned if isinstance(one.returned, Tensor) else select_logits(one.returned, logits)

    def check_logits(self, logits: Tensor, mode: str) -> None:
        """Check that logits are a float tensor [N, num_classes].

        Raises:
            ConfigError: they are not.
        """
        if self.are_logits(logits):
            return
        first = logits.shape[:1] == (self.size,)
        shape = shape_text(logits) if first else f"{list(logits.shape)} for {self.size} images"
        raise ConfigError(
            f"{self.name} gives logits {shape} of {logits.dtype} in {mode} mode; they must be float "
            f"[N, {self.num_classes}]: {self.config.target} must use the argument num_classes, or say with "
            f"{self.key}.logits which output they are",
            code="wrong_logits",
            key=self.key,
        )

    def dropped(self, logits: StageSource | LogitsKey, training: Pass) -> list[str]:
        """Return a remark on what the network returns in training mode and that is not used, if there is any."""
        found = tensors_of(training.returned)
        if isinstance(logits, StageSource):
            used = {logits.path}
        elif logits is None:
            used = {"logits"} if "logits" in found else set(found)
        else:
            used = {logits} if isinstance(logits, str) else set(logits)
        taken = self.take(logits, training)
        others = [place or "its output" for place, t in found.items() if place not in used and t is not taken]
        if not others:
            return []
        chosen = ", ".join(sorted(used))
        text = f"{self.name}: logits: {chosen}; not used of what it returns in training: {', '.join(others)}"
        if unreached := self.unreached(logits):
            text += f"; its evaluation uses {', '.join(unreached[:4])}, which no gradient reaches in training"
        return [text]

    def unreached(self, logits: StageSource | LogitsKey) -> list[str]:
        """Return the parameters on which the logits depend in evaluation mode and not in training mode."""
        named = {name: p for name, p in self.body.named_parameters() if p.requires_grad}
        if not named:
            return []
        reached = []
        for train in (False, True):
            self.body.train(train)
            with ForwardRecord(self.body) as record, seeded(0), torch.enable_grad():
                one = Pass(record, self.body(self.images))
            gradients = torch.autograd.grad(self.take(logits, one).sum(), list(named.values()), allow_unused=True)
            reached.append({name for name, gradient in zip(named, gradients, strict=True) if gradient is not None})
        return [name for name in named if name in reached[0] - reached[1]]

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
                shape = list(self.take(logits, self.record(self.images[:1], train=mode == "train")).shape)
            except Exception as error:
                problems[mode] = f"the network fails ({first_line(error)})"
                continue
            if shape != [1, self.num_classes]:
                problems[mode] = f"the logits are {shape}"
        return problems
