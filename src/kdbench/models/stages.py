"""Where the stages of a network come from, found in recorded forward passes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import nearest
from kdbench.models.network import StageSource
from kdbench.models.record import ForwardRecord, is_scripted, tensors_of


class UnusableStageError(Exception):
    """A stage that no method can use; the network can be used."""


class UnknownNodeError(Exception):
    """A name that the network does not have."""


@dataclass(frozen=True)
class Pass:
    """A recorded forward pass: its record, and what the network returned."""

    record: ForwardRecord
    returned: Any

    def tensor(self, source: StageSource) -> Tensor:
        """Return the tensor of a source, in the layout in which the network computed it."""
        if source.kind == "returned":
            return tensors_of(self.returned)[source.path]
        if source.kind == "operation":
            return self.record.operations[source.path][source.number][0]
        call = self.record.calls[source.path][source.number]
        return tensors_of(call.inputs[0] if source.kind == "input" else call.output)[source.entry]


def find_classifiers(body: nn.Module, evaluation: Pass, logits: Tensor, stages: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the path of the linear classifier for each stage that is all that it reads.

    Args:
        body: the network.
        evaluation: its pass in evaluation mode.
        logits: logits of this pass.
        stages: tensors of this pass by stage: maps [N, C, H, W], tokens [N, T, D] or embeddings [N, D].
    """
    for path, calls in evaluation.record.calls.items():
        if isinstance(body.get_submodule(path), nn.Linear) and len(calls) == 1 and calls[0].output is logits:
            read = calls[0].inputs[0]
            means = {
                stage: tensor if tensor.ndim == 2 else mean_of_positions(tensor) for stage, tensor in stages.items()
            }
            return {
                stage: path
                for stage, mean in means.items()
                if mean.shape == read.shape and torch.allclose(mean, read, rtol=1e-3, atol=1e-5)
            }
    return {}


def mean_of_positions(values: Tensor) -> Tensor:
    """Return the mean [N, C] over the positions of maps [N, C, H, W] or tokens [N, T, D]."""
    return values.mean(1) if values.ndim == 3 else values.flatten(2).mean(2)


def find_source(body: nn.Module, place: str | Mapping[str, Any], passes: Sequence[Pass]) -> StageSource:
    """Return the source of a stage: a module by its path first, then an entry of what is returned, then a function.

    Args:
        body: the network.
        place: where the stage is, as in its config: a node, or a mapping with node, input_of or returned, and maybe
            output and layout.
        passes: a pass in evaluation mode, and one in training mode if the network is to be trained.

    Raises:
        UnknownNodeError: there is nothing of this name.
        UnusableStageError: it is ambiguous, or not computed in every pass.
    """
    settings: Mapping[str, Any] = {"node": place} if isinstance(place, str) else place
    layout = "nhwc" if settings.get("layout") == "nhwc" else "first"
    if "returned" in settings:
        return returned_source(str(settings["returned"]), layout, passes)
    kind = "input" if "input_of" in settings else "output"
    node = str(settings["input_of"] if kind == "input" else settings["node"])
    path, number = module_of(body, node, passes[0].record)
    if path is not None:
        entry = "" if settings.get("output") is None else str(settings["output"])
        return module_source(body, node, StageSource(kind, path, number or 0, None, entry, layout), number, passes)
    if kind == "output" and node in tensors_of(passes[0].returned):
        return returned_source(node, layout, passes)
    operation = passes[0].record.operation(node) if kind == "output" else None
    if operation is None:
        raise unknown_node(body, node, passes[0].record)
    name, index = operation
    calls = [one.record.operations[name] for one in passes]
    counts = [len(of_pass) for of_pass in calls]
    if len(set(counts)) > 1:
        times = " and ".join(map(str, counts))
        raise UnusableStageError(f"{node} is called {times} times in evaluation and in training; name a module")
    outputs = [of_pass[index] for of_pass in calls]
    overwritten = any(tensor._version != version for tensor, version in outputs)
    if module := reading_module(outputs, passes):  # a hook there costs less than watching every function
        return StageSource("input", module, 0, 1, layout=layout, overwritten=overwritten)
    return StageSource("operation", name, index, counts[0], layout=layout, overwritten=overwritten)


def reading_module(outputs: Sequence[tuple[Tensor, int]], passes: Sequence[Pass]) -> str | None:
    """Return the path of a module that is called once in each pass and takes the output of a function, unchanged.

    Args:
        outputs: the output in each pass, with its version then.
        passes: the passes.
    """

    def takes(path: str, output: tuple[Tensor, int], record: ForwardRecord) -> bool:
        calls = record.calls.get(path, [])
        if len(calls) != 1 or not calls[0].inputs or calls[0].inputs[0] is not output[0]:
            return False
        return any(tensor is output[0] and version == output[1] for tensor, version in calls[0].taken)

    for path in passes[0].record.calls:
        if all(takes(path, output, one.record) for output, one in zip(outputs, passes, strict=True)):
            return path
    return None


def returned_source(place: str, layout: str, passes: Sequence[Pass]) -> StageSource:
    """Return the source of a stage that the network returns. Errors: see `find_source`."""
    found = [tensors_of(one.returned) for one in passes]
    if any(place not in tensors for tensors in found):
        listed = " and ".join(", ".join(tensors) or "nothing" for tensors in found)
        raise UnusableStageError(f"the network returns no {place} in every mode; it returns {listed}")
    return StageSource("returned", place, layout=layout)


def unknown_node(body: nn.Module, node: str, record: ForwardRecord) -> Exception:
    """Return the error for a name that is neither a module nor a function that was called."""
    names = [name for name, _ in body.named_modules(remove_duplicate=False) if name]
    leaves = {path for path in names if not any(other.startswith(f"{path}.") for other in names)}
    operations = [
        f"{path}_{n}" if n else path
        for path, calls in record.operations.items()
        for n in range(len(calls))
        if path.rpartition(".")[0] not in leaves
    ]
    function = re.sub(r"_\d+$", "", node.rpartition(".")[2])
    if any(hasattr(where, function) for where in (torch, Tensor, nn.functional)):
        return UnusableStageError(
            f"the network calls no {node} that can be seen; functions seen: {', '.join(operations)}"
        )
    outermost = dict.fromkeys(name.partition(".")[0] for name in names)
    return UnknownNodeError(
        f"there is no node {node!r}; {nearest(node, [*names, *operations])}; outermost modules: {', '.join(outermost)}"
    )


def module_of(body: nn.Module, node: str, record: ForwardRecord) -> tuple[str | None, int | None]:
    """Return the path of the module that a node names, and which call of it, if it names one (`relu_1`: the second)."""
    modules = dict(body.named_modules(remove_duplicate=False))
    if node in modules:
        return record.paths.get(modules[node], node), None
    stem, _, number = node.rpartition("_")
    path = record.paths.get(modules[stem]) if stem in modules else None
    if path is not None and number.isdigit() and int(number) < len(record.calls.get(path, ())):
        return path, int(number)
    return None, None


def module_source(
    body: nn.Module, node: str, source: StageSource, number: int | None, passes: Sequence[Pass]
) -> StageSource:
    """Return the source of a stage that is a module's output or input, checked and complete.

    Args:
        body: the network.
        node: the name in the config.
        source: the source as far as the config says it.
        number: the call of the module, or None where the config names none.
        passes: see `find_source`; so are the errors.
    """
    counts = [len(one.record.calls.get(source.path, ())) for one in passes]
    if not all(counts):
        raise UnusableStageError(not_called(body, node, source.path, passes[0].record))
    if number is None and max(counts) > 1:
        numbers = ", ".join(f"{node}_{n}" for n in range(max(counts)))
        raise UnusableStageError(f"{node} is called {max(counts)} times in a pass; choose one of {numbers}")
    if source.number >= min(counts):
        raise UnusableStageError(f"{node} is not called in every mode")
    calls = [one.record.calls[source.path][source.number] for one in passes]
    if source.kind == "input" and not all(call.inputs for call in calls):
        raise UnusableStageError(f"{node} takes its input by keyword; name the module before it")
    values = [call.inputs[0] if source.kind == "input" else call.output for call in calls]
    found = [tensors_of(value) for value in values]
    if any(source.entry not in tensors for tensors in found):
        places = " or ".join(place for place in found[0] if place) or "no tensor"
        verb, key = ("takes", "input_of") if source.kind == "input" else ("returns", "node")
        raise UnusableStageError(
            f"{node} {verb} {describe_value(values[0])}; say which: {{{key}: {node}, output: ...}} with {places}"
        )
    overwritten = any(
        tensor is tensors[source.entry] and tensor._version != version
        for call, tensors in zip(calls, found, strict=True)
        for tensor, version in (call.taken if source.kind == "input" else call.returned)
    )
    of_pass = counts[0] if len(set(counts)) == 1 else None
    return StageSource(source.kind, source.path, source.number, of_pass, source.entry, source.layout, overwritten)


def not_called(body: nn.Module, node: str, path: str, record: ForwardRecord) -> str:
    """Return why a module has no output of its own, in words."""
    modules = dict(body.named_modules())
    if is_scripted(body) or is_scripted(modules[path]):
        return f"{node} is compiled by TorchScript, inside which nothing can be read"
    depth = path.count(".") + 1
    below = [name for name in record.calls if name.startswith(f"{path}.") and name.count(".") == depth]
    last = f"; its last part is {below[-1]}" if below else ""
    return f"{node} is a {type(modules[path]).__name__} that is not called itself in every pass{last}"


def layout_problem(
    place: str | Mapping[str, Any],
    source: StageSource,
    tensor: Tensor,
    image: tuple[int, int],
    taller: Callable[[], Pass],
) -> str | None:
    """Return why the layout of a stage is in doubt, if it is: its config does not say it, and it looks permuted.

    Args:
        place: where the stage is, as in its config.
        source: its source.
        tensor: its tensor for some images.
        image: height and width of these images.
        taller: executes a pass for images of twice the height; raises for a network that takes images of one size.
    """
    stated = place.get("layout") if isinstance(place, Mapping) else None
    if stated:
        wanted = 3 if stated == "tokens" else 4
        if tensor.ndim == wanted:
            return None
        return f"{source.path} is {shape_text(tensor)}, and layout {stated} has {wanted} dimensions"
    if tensor.ndim != 4:
        return None
    first, second, third = tensor.shape[1:]
    as_maps, permuted = (a * image[1] == b * image[0] for a, b in ((second, third), (first, second)))
    if as_maps and not permuted:
        return None
    if as_maps == permuted:  # both orders are possible, or neither: only the height grows with that of the images
        try:
            grown = taller().tensor(source).shape[1:]
        except Exception:  # the network takes images of one size only
            grown = tensor.shape[1:]
        if grown[1] > second or (as_maps and grown == tensor.shape[1:]):
            return None
    return (
        f"{source.path} is {shape_text(tensor)}, which looks like [N, H, W, C]; say its layout: "
        f"{{node: {source.path}, layout: nhwc}} (or layout: maps, if channels come second)"
    )


def shape_text(tensor: Tensor) -> str:
    """Return the shape of a batch with N for the images."""
    return f"[N{''.join(f', {n}' for n in tensor.shape[1:])}]"


def describe_value(value: Any) -> str:
    """Return what a module takes or returns, in words."""
    if isinstance(value, Tensor):
        return f"one tensor {shape_text(value)}"
    listed = ", ".join(f"{place}: {shape_text(tensor)}" for place, tensor in tensors_of(value).items())
    return f"a {type(value).__name__} ({listed or 'no tensor'})"
