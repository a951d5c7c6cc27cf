"""Description of an architecture before it trains: shapes, sources of stages and logits, and what is wrong with it.

The network is built on the CPU and computes small batches there, in evaluation and in training mode. What it returns
is what counts: nothing is traced.
"""

import copy
import inspect
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import hydra.utils
import torch
from omegaconf import OmegaConf
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]  # missing in the stub
from torch.utils.flop_counter import FlopCounterMode

from kdbench.config.sections import ModelConfig
from kdbench.errors import ConfigError, first_line, nearest
from kdbench.models.fuse import find_fusable, fused
from kdbench.models.network import LogitsKey, StageSource, select_logits, write_attribute
from kdbench.models.record import ForwardRecord, is_scripted, tensors_of
from kdbench.models.weights import storable
from kdbench.system.random import host_state, is_same_host_state, seeded

PLAIN = (bool, int, float, str, type(None))
"""Types of attributes that a checkpoint holds."""


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
    evaluation_random: bool
    """True if the network draws random numbers in evaluation mode too."""
    one_image: Mapping[str, str]
    """Mode (train or eval) to why a batch of one image cannot be processed in it."""
    remarks: tuple[str, ...]
    """Lines for the user, each about something that the network computes and that is not used."""


_summaries: dict[str, ModelSummary] = {}


def summarize(
    config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], key: str, trained: bool = True
) -> ModelSummary:
    """Return the description of an architecture. It is kept for the next run of the process.

    Args:
        config: the architecture.
        num_classes: C of the logits.
        image_shape: C, H, W of an image.
        key: place of the architecture in the run's config, for errors.
        trained: whether it is to be trained; given weights need to work in evaluation mode only.

    Raises:
        ConfigError: the architecture cannot be built, or cannot process such images; its logits are not clear or not
            [N, num_classes]; it has no such stage; or its state cannot be stored and restored.
    """
    builder = hydra.utils.get_object(config.target)
    case = repr((config.target, id(builder), config.arguments, config.stages, config.logits, num_classes, image_shape))
    for known in (case, f"{case} evaluated only"):
        if known in _summaries and (known == case or not trained):
            return _summaries[known]
    with seeded(0), torch.random.fork_rng(devices=[]):
        summary = Probe(config, num_classes, image_shape, key).describe(trained)
    _summaries[case if trained else f"{case} evaluated only"] = summary
    return summary


def build_body(config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], key: str) -> nn.Module:
    """Return the architecture's own module, freshly initialised from the global random generators.

    Arguments with a `_target_` of their own are built first. `num_classes` is passed where the builder takes it.

    Raises:
        ConfigError: it cannot be built.
    """
    arguments = config.arguments
    try:
        if has_target(arguments):
            arguments = hydra.utils.instantiate(OmegaConf.create(arguments), _convert_="all")
        builder = hydra.utils.get_method(config.target)
        parameters = inspect.signature(builder).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        classes = {"num_classes": num_classes} if takes_any or "num_classes" in parameters else {}
        body = builder(**arguments, **classes)
        if not isinstance(body, nn.Module):
            raise TypeError(f"it returned a {type(body).__name__}, not a torch.nn.Module")
        if any(isinstance(p, UninitializedTensorMixin) for p in [*body.parameters(), *body.buffers()]):
            with torch.no_grad():  # lazy layers take their shapes from the first batch
                body.eval()(torch.zeros(2, *image_shape))
    except Exception as error:
        given = ", ".join(f"{name}={value}" for name, value in config.arguments.items())
        inner = f"{key}.{error.key}" if isinstance(error, ConfigError) and error.key else key
        code = error.code if isinstance(error, ConfigError) else "not_buildable"
        raise ConfigError(
            f"{key}={config.name}: {config.target}({given}) failed: {first_line(root_of(error))}", code=code, key=inner
        ) from error
    return body


def has_target(arguments: Any) -> bool:
    """Return whether arguments hold an object that is built from its own `_target_`."""
    if isinstance(arguments, Mapping):
        return "_target_" in arguments or any(map(has_target, arguments.values()))
    return isinstance(arguments, list) and any(map(has_target, arguments))


def root_of(error: Exception) -> BaseException:
    """Return the error behind one of Hydra's, whose own text spans several lines."""
    return error.__cause__ if type(error).__name__ == "InstantiationException" and error.__cause__ else error


class Probe:
    """A network that is built and executed on small batches to describe it.

    Args: as those of `summarize`.
    """

    def __init__(self, config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], key: str) -> None:
        self.config = config
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.key = key
        self.size = 4 if num_classes == 2 else 2
        """Images of a batch: not as many as classes, so that [C, N] is not taken for [N, C]."""
        self.images = torch.randn(self.size, *image_shape, generator=torch.Generator().manual_seed(0))
        self.body = build_body(config, num_classes, image_shape, key)

    def describe(self, trained: bool) -> ModelSummary:
        """Return the description; `trained` as in `summarize`."""
        evaluated, returned = self.record(train=False)
        logits = self.find_logits(evaluated, returned, "evaluation")
        self.check_logits(self.take(logits, evaluated, returned), "evaluation")
        records, remarks = [evaluated], []
        if trained:
            training, in_training = self.record(train=True)
            records.append(training)
            if not isinstance(in_training, Tensor) or not isinstance(returned, Tensor):
                logits = self.find_logits(training, in_training, "training")
            self.check_logits(self.take(logits, training, in_training), "training")
            remarks = self.dropped(logits, training, in_training, returned)
        sources: dict[str, StageSource] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        refused: dict[str, str] = {}
        for stage, place in self.config.stages.items():
            try:
                source = self.find_stage(stage, place, records, returned)
            except UnavailableError as error:
                refused[stage] = str(error)
                continue
            tensor = self.tensor_of(source, evaluated, returned)
            if tensor.ndim < 2 or tensor.shape[0] != self.size:
                refused[stage] = (
                    f"{source.path} is {list(tensor.shape)} for {self.size} images; a stage must have the images first"
                )
                continue
            if problem := self.layout_problem(place, source, tensor):
                refused[stage] = problem
            sources[stage] = source
            shapes[stage] = tuple((tensor.permute(0, 3, 1, 2) if source.layout == "nhwc" else tensor).shape[1:])
        stage_tensors = {id(self.tensor_of(source, evaluated, returned)) for source in sources.values()}
        self.body.eval()
        fusable = tuple(find_fusable(self.body, evaluated, stage_tensors))
        host_random, changing = self.check_repeatable() if trained else (False, ())
        evaluation_random = self.draws(train=False)
        self.check_storable(logits)
        return ModelSummary(
            shapes=shapes,
            num_params=sum(p.numel() for p in self.body.parameters()),
            macs=self.count_macs(),
            sources=sources,
            refused=refused,
            logits=logits,
            fusable=self.verified(fusable, logits),
            host_random=host_random,
            changing=changing,
            evaluation_random=evaluation_random,
            one_image=self.check_one_image(logits, trained),
            remarks=tuple(remarks),
        )

    # Execution

    def run(self, body: nn.Module, images: Tensor, train: bool, seed: int = 0) -> Any:
        """Return what a network returns for images, with seeded random numbers and without gradients."""
        body.train(train)
        try:
            with seeded(seed), torch.no_grad():
                return body(images)
        except Exception as error:
            mode = "training" if train else "evaluation"
            raise ConfigError(
                f"{self.key}={self.config.name} cannot process images of {self.image_shape} in {mode} mode: "
                f"{first_line(error)}",
                code="mismatch",
                key=self.key,
            ) from error

    def record(self, train: bool) -> tuple[ForwardRecord, Any]:
        """Return the record of one pass, and what the network returned."""
        with ForwardRecord(self.body) as record:
            returned = self.run(self.body, self.images, train)
        return record, returned

    def draws(self, train: bool) -> bool:
        """Return whether a forward pass draws random numbers."""
        with seeded(0):
            before, host = torch.get_rng_state(), host_state()
            self.body.train(train)
            with torch.no_grad():
                self.body(self.images)
            return not torch.equal(before, torch.get_rng_state()) or not is_same_host_state(host, host_state())

    def count_macs(self) -> int:
        """Return the multiply-accumulates of one image's forward pass in evaluation mode."""
        # Fused attention kernels are not counted; a record keeps torch from choosing them in whole layers.
        count = partial(self.run, self.body, train=False)
        for images in (self.images[:1], self.images):
            try:
                with ForwardRecord(self.body), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                    count(images)
            except ConfigError:  # one image alone may be refused
                continue
            return counter.get_total_flops() // (2 * len(images))
        return 0

    # Logits

    def find_logits(self, record: ForwardRecord, returned: Any, mode: str) -> StageSource | LogitsKey:
        """Return the source of the logits: the key of the config, or the only tensor, or an entry `logits`.

        Raises:
            ConfigError: there are several tensors and no key, or the key names none of them.
        """
        found, wanted = tensors_of(returned), self.config.logits
        if isinstance(wanted, list):
            places = tuple(str(place) for place in wanted)
            if set(places) <= found.keys() or (isinstance(returned, Tensor) and mode == "evaluation"):
                return places
        elif wanted is not None:
            place = str(wanted)
            if place in found or (isinstance(returned, Tensor) and mode == "evaluation" and place.isdigit()):
                return place
            if place in record.calls and len(record.calls[place]) == 1:
                output = record.calls[place][0].output
                if isinstance(output, Tensor):
                    versions = dict(record.calls[place][0].versions)
                    overwritten = any(t is output and t._version != version for t, version in versions.items())
                    return StageSource("output", place, 0, 1, overwritten=overwritten)
        elif len(found) == 1 or "logits" in found:
            return None
        raise ConfigError(
            f"{self.key}={self.config.name} returns {describe_returned(returned)} in {mode} mode"
            + (f", and {self.key}.logits={wanted} names none of them" if wanted is not None else "")
            + f"; say which are the logits with {self.key}.logits=: {self.candidates(record, found)}",
            code="ambiguous_logits",
            key=f"{self.key}.logits",
        )

    def candidates(self, record: ForwardRecord, found: Mapping[str, Tensor]) -> str:
        """Return the places that hold float tensors [N, num_classes], in words."""
        returned = [place for place, tensor in found.items() if place and self.are_logits(tensor)]
        modules = [path for path, calls in record.calls.items() if len(calls) == 1 and self.are_logits(calls[0].output)]
        mean = [f"[{','.join(returned)}] (their mean)"] if len(returned) > 1 else []
        several = [*returned, *mean, *modules]
        return ", ".join(several) or f"nothing that it computes is [N, {self.num_classes}]"

    def are_logits(self, value: Any) -> bool:
        """Return whether a value is a float tensor [N, num_classes]."""
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return is_float and tuple(value.shape) == (self.size, self.num_classes)

    def take(self, logits: StageSource | LogitsKey, record: ForwardRecord, returned: Any) -> Tensor:
        """Return the logits of a recorded pass."""
        if isinstance(logits, StageSource):
            return self.tensor_of(logits, record, returned)
        return returned if isinstance(returned, Tensor) else select_logits(returned, logits)

    def check_logits(self, logits: Tensor, mode: str) -> None:
        """Check that logits are a float tensor [N, num_classes].

        Raises:
            ConfigError: they are not.
        """
        if self.are_logits(logits):
            return
        shape = (
            f"[N{''.join(f', {n}' for n in logits.shape[1:])}]"
            if logits.shape[:1] == (self.size,)
            else (f"{list(logits.shape)} for {self.size} images")
        )
        raise ConfigError(
            f"{self.key}={self.config.name} gives logits {shape} of {logits.dtype} in {mode} mode; they must be float "
            f"[N, {self.num_classes}]: {self.config.target} must use the argument num_classes, or say with "
            f"{self.key}.logits which output they are",
            code="wrong_logits",
            key=self.key,
        )

    def dropped(
        self, logits: StageSource | LogitsKey, record: ForwardRecord, returned: Any, evaluated: Any
    ) -> list[str]:
        """Return a remark on what the network returns in training mode and that is not used, if there is any."""
        found = tensors_of(returned)
        used = (
            {logits.path} if isinstance(logits, StageSource) else set(logits) if isinstance(logits, tuple) else {logits}
        )
        if None in used:
            used = {"logits"} if "logits" in found else set(found)
        others = [place for place in found if place not in used]
        if not others and not isinstance(logits, StageSource):
            return []
        text = (
            f"{self.key}={self.config.name}: the logits are {' and '.join(sorted(map(str, used)))}; not used of what "
            f"it returns in training: {', '.join(place or 'its output' for place in others) or 'nothing'}"
        )
        unreached = self.unreached(logits)
        if unreached:
            text += f"; its evaluation uses {', '.join(unreached[:4])}, which no gradient reaches in training"
        return [text]

    def unreached(self, logits: StageSource | LogitsKey) -> list[str]:
        """Return the parameters on which the logits depend in evaluation mode and not in training mode."""
        names = [name for name, p in self.body.named_parameters() if p.requires_grad]
        parameters = [p for p in self.body.parameters() if p.requires_grad]
        reached = []
        for train in (False, True):
            self.body.train(train)
            with ForwardRecord(self.body) as record, seeded(0), torch.enable_grad():
                returned = self.body(self.images)
            gradients = torch.autograd.grad(
                self.take(logits, record, returned).sum(), parameters, allow_unused=True, retain_graph=False
            )
            reached.append({name for name, gradient in zip(names, gradients, strict=True) if gradient is not None})
        return [name for name in names if name in reached[0] - reached[1]]

    # Stages

    def find_stage(
        self, stage: str, place: str | Mapping[str, Any], records: Sequence[ForwardRecord], returned: Any
    ) -> StageSource:
        """Return the source of a stage: a module by its path first, then an entry of what is returned, then a function.

        Raises:
            ConfigError: there is nothing of this name, or it is ambiguous.
            UnavailableError: a function that this pass did not call, or a module without an output of its own.
        """
        settings: Mapping[str, Any] = {"node": place} if isinstance(place, str) else place
        layout = "nhwc" if settings.get("layout") == "nhwc" else "first"
        entry = "" if settings.get("output") is None else str(settings["output"])
        kind = "input" if "input_of" in settings else "output"
        node = str(settings.get("input_of") or settings.get("node") or settings.get("returned"))
        evaluated = records[0]
        if "returned" not in settings:
            path, number = self.module_of(node, evaluated)
            if path is not None:
                return self.module_source(stage, node, path, number, kind, entry, layout, records)
        found = tensors_of(returned)
        if kind == "output" and node in found and node:
            return StageSource("returned", node, layout=layout)
        operation = evaluated.operation(node) if kind == "output" and "returned" not in settings else None
        if operation:
            numbers = [record.operations[operation[0]] for record in records]
            if any(len(calls) <= operation[1] for calls in numbers):
                raise UnavailableError(f"{node} is not computed in training mode")
            overwritten = any(t._version != version for t, version in (calls[operation[1]] for calls in numbers))
            return StageSource("operation", *operation, layout=layout, overwritten=overwritten)
        modules = [name for name, _ in self.body.named_modules(remove_duplicate=False) if name]
        operations = [
            f"{path}_{n}" if n else path for path, calls in evaluated.operations.items() for n in range(len(calls))
        ]
        last = re.sub(r"_\d+$", "", node.rpartition(".")[2])
        if not re.fullmatch(r"layer\d+", stage) and any(
            hasattr(where, last) for where in (torch, Tensor, nn.functional)
        ):
            raise UnavailableError(f"the network does not call {node} where torch can see it")
        outermost = dict.fromkeys(name.partition(".")[0] for name in modules)
        raise ConfigError(
            f"{self.key}.stages: there is no node {node!r}; {nearest(node, [*modules, *operations])}; "
            f"outermost modules: {', '.join(outermost)}",
            code="not_found",
            key=f"{self.key}.stages",
        )

    def module_of(self, node: str, record: ForwardRecord) -> tuple[str | None, int | None]:
        """Return the path of the module that a node names, and which call of it, if it names one."""
        names = dict(self.body.named_modules(remove_duplicate=False))
        if node in names:
            return record.paths.get(names[node], node), None
        stem, _, number = node.rpartition("_")
        if (
            number.isdigit()
            and stem in names
            and int(number) < len(record.calls.get(record.paths.get(names[stem], ""), ()))
        ):
            return record.paths[names[stem]], int(number)
        return None, None

    def module_source(
        self, stage: str, node: str, path: str, number: int | None, kind: str, entry: str, layout: str,
        records: Sequence[ForwardRecord],
    ) -> StageSource:  # fmt: skip
        """Return the source of a stage that is a module's output or input. Errors: see `find_stage`."""
        counts = [len(record.calls.get(path, ())) for record in records]
        if not all(counts):
            module = self.body.get_submodule(path)
            below = [
                name
                for name in records[0].calls
                if name.startswith(f"{path}.") and name.count(".") == path.count(".") + 1
            ]
            reason = (
                "is compiled by TorchScript, or lies within what is" if is_scripted(module) or is_scripted(self.body)
                else f"is a {type(module).__name__}, which is not called itself in every pass"
            )  # fmt: skip
            problem = f"{node} {reason}" + (f"; its last part is {below[-1]}" if below else "")
            raise self.refusal(stage, problem)
        if number is None and max(counts) > 1:
            numbers = ", ".join(f"{node}_{n}" for n in range(max(counts)))
            raise self.refusal(stage, f"{node} is called {max(counts)} times in a pass; choose one of {numbers}")
        calls = [record.calls[path][number or 0] for record in records]
        values = [call.inputs[0] if kind == "input" and call.inputs else call.output for call in calls]
        if kind == "input" and not all(call.inputs for call in calls):
            raise self.refusal(stage, f"{node} takes its input by keyword; name the module before it")
        found = [tensors_of(value) for value in values]
        if any(entry not in tensors for tensors in found):
            places = " or ".join(place for place in found[0] if place) or "no tensor"
            what = "takes" if kind == "input" else "returns"
            raise self.refusal(
                stage,
                f"{node} {what} {describe_returned(values[0])}; say which: {{node: {node}, output: ...}} with {places}",
            )
        overwritten = any(
            tensor is tensors[entry] and tensor._version != version
            for call, tensors in zip(calls, found, strict=True)
            for tensor, version in call.versions
        )
        calls_of_pass = counts[0] if len(set(counts)) == 1 else None
        return StageSource(kind, path, number or 0, calls_of_pass, entry, layout, overwritten)

    def refusal(self, stage: str, problem: str) -> Exception:
        """Return the error for a stage: `layerN` are what methods use unasked, so those must be right at once."""
        if re.fullmatch(r"layer\d+", stage):
            return ConfigError(
                f"{self.key}.stages.{stage}: {problem}", code="ambiguous_stage", key=f"{self.key}.stages.{stage}"
            )
        return UnavailableError(problem)

    def tensor_of(self, source: StageSource, record: ForwardRecord, returned: Any) -> Tensor:
        """Return the tensor of a source from a recorded pass."""
        if source.kind == "returned":
            return tensors_of(returned)[source.path]
        if source.kind == "operation":
            return record.operations[source.path][source.number][0]
        call = record.calls[source.path][source.number]
        return tensors_of(call.inputs[0] if source.kind == "input" else call.output)[source.entry]

    def layout_problem(self, place: str | Mapping[str, Any], source: StageSource, tensor: Tensor) -> str | None:
        """Return why the layout of a stage is in doubt, if it is: its config does not say it, and it looks permuted."""
        if isinstance(place, Mapping) and place.get("layout"):
            layout, wanted = place["layout"], 3 if place["layout"] == "tokens" else 4
            if tensor.ndim == wanted:
                return None
            return f"{source.path} is {shape_text(tensor)}, and layout {layout} has {wanted} dimensions"
        if tensor.ndim != 4:
            return None
        first, second, third = tensor.shape[1:]
        if first == second != third or (first == second == third and self.varies_last(source)):
            return (
                f"{source.path} is {shape_text(tensor)}, which looks like [N, H, W, C]; say its layout: "
                f"{{node: {source.path}, layout: nhwc}} (or layout: maps, if channels come second)"
            )
        return None

    def varies_last(self, source: StageSource) -> bool:
        """Return whether a map of equal sides has its height second: it grows with the height of the image."""
        channels, height, width = self.image_shape
        taller = torch.randn(self.size, channels, 2 * height, width, generator=torch.Generator().manual_seed(0))
        try:
            with ForwardRecord(self.body) as record:
                returned = self.run(self.body, taller, train=False)
            shape = self.tensor_of(source, record, returned).shape
        except Exception:  # of one size only: nothing is known
            return False
        return shape[1] > shape[3]

    # State

    def check_repeatable(self) -> tuple[bool, tuple[str, ...]]:
        """Check that a pass in training mode repeats after everything that a checkpoint holds is restored.

        Returns:
            Whether the pass draws random numbers from Python or NumPy, and the attributes and buffers outside of the
            state dict that it changes.

        Raises:
            ConfigError: it does not repeat.
        """
        body = self.body
        attributes, state = plain_attributes(body), copy.deepcopy(body.state_dict())
        unsaved = {name: tensor.clone() for name, tensor in unsaved_buffers(body).items()}
        hidden = hidden_attributes(body)
        with seeded(7):
            host = host_state()
            body.train()
            with torch.no_grad():
                first = body(self.images)
                host_random = not is_same_host_state(host, host_state())
                for _ in range(2):
                    body(self.images)
        after, after_unsaved = plain_attributes(body), unsaved_buffers(body)
        changing = [name for name, value in after.items() if attributes.get(name, MISSING) != value]
        changing += [name for name, tensor in after_unsaved.items() if not same(tensor, unsaved.get(name))]
        changed_hidden = [name for name, value in hidden_attributes(body).items() if hidden.get(name) != value]
        body.load_state_dict(state)
        for name in changing:
            if name in unsaved or name in attributes:
                write_attribute(body, name, unsaved[name] if name in unsaved else attributes[name])
            else:  # made by the first pass
                path, _, attribute = name.rpartition(".")
                delattr(body.get_submodule(path), attribute)
        second = self.run(body, self.images, train=True, seed=7)
        a, b = tensors_of(first), tensors_of(second)
        if a.keys() != b.keys() or not all(same(a[place], b[place]) for place in a):
            suspects = f" ({', '.join(changed_hidden[:3])})" if changed_hidden else ""
            raise ConfigError(
                f"{self.key}={self.config.name} does not repeat its own training: with the same images, weights, "
                f"buffers and seeds it computes something else{suspects}, so a stopped run could not be resumed; draw "
                "random numbers from torch's, Python's or NumPy's global generator, and keep what changes in buffers",
                code="not_repeatable",
                key=self.key,
            )
        body.load_state_dict(state)
        return host_random, tuple(changing)

    def check_storable(self, logits: StageSource | LogitsKey) -> None:
        """Check that another network of this architecture, with this one's state dict, computes the same.

        Raises:
            ConfigError: its state cannot be stored, does not fit, or does not hold everything.
        """
        key, name = self.key, self.config.name
        if not isinstance(self.take_plain(self.body, logits), Tensor):
            return
        try:
            content = load_bytes(save_bytes(storable(self.body.state_dict())))
            with seeded(1):
                other = build_body(self.config, self.num_classes, self.image_shape, key)
            other.load_state_dict(content, strict=True)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{key}={name}: its weights cannot be stored and loaded again: {first_line(error)}",
                code="not_storable",
                key=key,
            ) from error
        if not same(self.take_plain(self.body, logits), self.take_plain(other, logits)):
            mine, others = unsaved_tensors(self.body), unsaved_tensors(other)
            lost = [name for name, tensor in mine.items() if not same(tensor, others.get(name))]
            plain = plain_attributes(other)
            lost += [name for name, value in plain_attributes(self.body).items() if plain.get(name, MISSING) != value]
            suspects = f": {', '.join(lost[:3])}" if lost else ""
            raise ConfigError(
                f"{key}={name} computes something else after its weights were stored and loaded again: something is "
                f"missing in its state dict{suspects}; register it with register_buffer, or make it the same for every "
                "network that is built",
                code="not_storable",
                key=key,
            )

    def take_plain(self, body: nn.Module, logits: StageSource | LogitsKey) -> Tensor:
        """Return the logits of a network in evaluation mode."""
        if isinstance(logits, StageSource):
            kept: list[Tensor] = []
            hook = body.get_submodule(logits.path).register_forward_hook(lambda *call: kept.append(call[2]))
            try:
                self.run(body, self.images, train=False)
            finally:
                hook.remove()
            return kept[0]
        returned = self.run(body, self.images, train=False)
        return returned if isinstance(returned, Tensor) else select_logits(returned, logits)

    def verified(
        self, pairs: tuple[tuple[str, str], ...], logits: StageSource | LogitsKey
    ) -> tuple[tuple[str, str], ...]:
        """Return the pairs to fuse, or none if the fused network computes something else."""
        if not pairs:
            return ()
        try:
            expected = self.take_plain(self.body, logits)
            measured = self.take_plain(fused(copy.deepcopy(self.body).eval(), pairs), logits)
        except Exception:  # the network reads a part of a batch norm
            return ()
        return pairs if bool((measured - expected).abs().max() <= 1e-3 * expected.abs().max()) else ()

    def check_one_image(self, logits: StageSource | LogitsKey, trained: bool) -> dict[str, str]:
        """Return for each mode why one image alone cannot be processed, where that is so."""
        problems: dict[str, str] = {}
        for mode in ("eval", "train") if trained else ("eval",):
            if mode == "train" and any(isinstance(module, _BatchNorm) for module in self.body.modules()):
                problems[mode] = "batch norm is undefined for it"
                continue
            try:
                with ForwardRecord(self.body) as record:
                    returned = self.run(self.body, self.images[:1], train=mode == "train")
                shape = list(self.take(logits, record, returned).shape)
            except Exception as error:
                problems[mode] = first_line(error)
                continue
            if shape != [1, self.num_classes]:
                problems[mode] = f"its logits are then {shape}"
        return problems


class UnavailableError(Exception):
    """A stage that cannot be used; the network can."""


MISSING = object()


def shape_text(tensor: Tensor) -> str:
    """Return the shape of a batch with N for the images."""
    return f"[N{''.join(f', {n}' for n in tensor.shape[1:])}]"


def describe_returned(value: Any) -> str:
    """Return what a module returns, in words."""
    found = tensors_of(value)
    if isinstance(value, Tensor):
        return f"one tensor {shape_text(value)}"
    listed = ", ".join(f"{place}: {shape_text(tensor)}" for place, tensor in found.items())
    return f"a {type(value).__name__} ({listed or 'no tensor'})"


def same(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors hold the same values; NaN equals NaN."""
    if first is None or second is None or first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def own_attributes(body: nn.Module) -> dict[str, Any]:
    """Return the attributes of every module, by dotted name, that torch does not manage."""
    managed = {*vars(nn.Module()), "_is_full_backward_hook"}
    return {
        f"{path}.{name}" if path else name: value
        for path, module in body.named_modules()
        if not is_scripted(module)
        for name, value in vars(module).items()
        if name not in managed
    }


def plain_attributes(body: nn.Module) -> dict[str, Any]:
    """Return the attributes of modules that a checkpoint holds: numbers, texts, and lists and mappings of them."""
    return {name: copy.deepcopy(value) for name, value in own_attributes(body).items() if is_plain_value(value)}


def is_plain_value(value: Any) -> bool:
    """Return whether a value consists of numbers and texts alone."""
    if type(value) in (list, tuple):
        return all(map(is_plain_value, value))
    if type(value) is dict:
        return all(map(is_plain_value, [*value, *value.values()]))
    return type(value) in PLAIN


def hidden_attributes(body: nn.Module) -> dict[str, bytes]:
    """Return the other attributes of modules as bytes, to see which change."""
    found = {}
    for name, value in own_attributes(body).items():
        if not is_plain_value(value):
            try:
                found[name] = pickle.dumps(value)
            except Exception:  # nothing is known of it
                continue
    return found


def unsaved_buffers(body: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that the state dict does not hold."""
    saved = body.state_dict().keys()
    return {name: buffer for name, buffer in body.named_buffers() if name not in saved}


def unsaved_tensors(body: nn.Module) -> dict[str, Tensor]:
    """Return the buffers and attributes that are tensors and that the state dict does not hold."""
    attributes = {name: value for name, value in own_attributes(body).items() if isinstance(value, Tensor)}
    return unsaved_buffers(body) | attributes
