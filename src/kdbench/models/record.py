"""The record of one forward pass: every call of a module and of a torch function, with its output."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ALIASES = {"iadd": "add", "isub": "sub", "imul": "mul", "truediv": "div", "itruediv": "div"}
"""Other names under which libraries list an operation."""


@dataclass
class Call:
    """One call of a module."""

    inputs: tuple[Any, ...]
    output: Any
    taken: tuple[tuple[Tensor, int], ...]
    """Each tensor of the input with its version before the call: an in-place operation raises it."""
    returned: tuple[tuple[Tensor, int], ...]
    """Each tensor of the output with its version after the call."""


class ForwardRecord(TorchFunctionMode):
    """Record of the forward passes of a network while the context is open.

    Args:
        body: the network. Modules inside a scripted one are not seen.
        wanted: functions whose outputs are kept, each with whether a copy is; None keeps everything.
    """

    def __init__(self, body: nn.Module, wanted: Mapping[str, bool] | None = None) -> None:
        super().__init__()
        self.wanted = wanted
        self.paths = {module: path for path, module in body.named_modules() if path and not is_scripted(module)}
        self.calls: dict[str, list[Call]] = defaultdict(list)
        """By module path, in order."""
        self.operations: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
        """Outputs of functions with their versions, by the path of the calling module and the function's name."""
        self.readers: dict[int, set[str]] = defaultdict(set)
        """By the id of a tensor, the modules that pass it to a function."""
        self.kept: list[Any] = []
        """Keeps every tensor alive, so that no id is used twice."""
        self.inside: list[str] = [""]
        self.taken: list[tuple[tuple[Tensor, int], ...]] = []
        """For each module that is being executed, the tensors of its input with their versions."""
        self.hooks: list[Any] = []

    def __enter__(self) -> "ForwardRecord":
        for module in self.paths:
            self.hooks.append(module.register_forward_pre_hook(self.before))
            self.hooks.append(module.register_forward_hook(self.after))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self.hooks:
            hook.remove()

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Enter a module."""
        self.inside.append(self.paths[module])
        if self.wanted is None:
            self.taken.append(versions_of(inputs))

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Leave a module."""
        self.inside.pop()
        if self.wanted is not None:
            return
        self.calls[self.paths[module]].append(Call(inputs, output, self.taken.pop(), versions_of(output)))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = str(getattr(func, "__name__", "")).strip("_")
        is_attribute = name == "get"  # such as x.shape, or x.T, which is a tensor
        if self.wanted is None and not (is_attribute and not isinstance(output, Tensor)):
            for tensor in tensors_of((list(args), dict(kwargs or {}))).values():
                self.readers[id(tensor)].add(self.inside[-1])
                self.kept.append(tensor)
        path = f"{self.inside[-1]}.{name}" if self.inside[-1] else name
        if isinstance(output, Tensor) and not is_attribute and (self.wanted is None or path in self.wanted):
            copied = output.clone() if self.wanted and self.wanted[path] else output
            self.operations[path].append((copied, copied._version))
        return output

    def operation(self, name: str) -> tuple[str, int] | None:
        """Return the key and the number of an operation by its name, such as `layer1.0.add_1` (the second)."""
        stem, _, number = name.rpartition("_")
        for path, index in ((name, 0), (stem, int(number) if number.isdigit() else -1)):
            head, _, last = path.rpartition(".")
            alias = ".".join(part for part in (head, ALIASES.get(last, last)) if part)
            if 0 <= index < len(self.operations.get(alias, ())):
                return alias, index
        return None


def versions_of(value: Any) -> tuple[tuple[Tensor, int], ...]:
    """Return every tensor in a value with its version."""
    return tuple((tensor, tensor._version) for tensor in tensors_of(value).values())


def is_scripted(module: nn.Module) -> bool:
    """Return whether a module was compiled by TorchScript, which takes no hooks."""
    return isinstance(module, torch.jit.ScriptModule)


def tensors_of(value: Any, path: str = "") -> dict[str, Tensor]:
    """Return every tensor in what a module took or returned, by its dotted place: "" for a tensor itself."""
    if isinstance(value, Tensor):
        return {path: value}
    return {
        place: tensor
        for name, inner in entries_of(value)
        for place, tensor in tensors_of(inner, f"{path}.{name}" if path else name).items()
    }


def entries_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a mapping, named tuple, sequence, dataclass or plain object with their names."""
    if isinstance(value, Mapping):
        yield from ((str(name), inner) for name, inner in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        yield from ((str(n), inner) for n, inner in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        yield from vars(value).items()
