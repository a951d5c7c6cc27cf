"""A recorder for the CPU: a tape of operations stands for a GPU's graphs."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class Tape(TorchDispatchMode):
    """Records every operation that reaches the CPU, with its tensors, in order. Waiting for a value is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []
        self.executed = False

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value is read on the host")
        returned = function(*arguments, **(keywords or {}))
        self.operations.append((function, arguments, keywords or {}, returned))
        return returned

    def replay(self) -> None:
        if not self.executed:  # recording has executed it once, which a GPU's capture would not
            self.executed = True
            return
        with torch.no_grad():
            for function, arguments, keywords, returned in self.operations:
                again = function(*arguments, **keywords)
                for there, new in zip(tree_leaves(returned), tree_leaves(again), strict=True):
                    if isinstance(there, torch.Tensor) and there.data_ptr() != new.data_ptr():
                        there.copy_(new)


class TapeRecorder:
    """Counts captures and replays.

    Args:
        error: raised instead of each capture.
    """

    def __init__(self, error: RuntimeError | None = None) -> None:
        self.error = error
        self.modules: list[nn.Module] = []
        """Modules that a failing capture leaves as they were: a GPU's capture computes nothing."""
        self.captures = self.replays = 0
        self.on_stream = False

    def __call__(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        assert self.on_stream
        if self.error:
            raise self.error
        before = [copy.deepcopy(module.state_dict()) for module in self.modules]
        tape = Tape()
        try:
            with tape:
                returned = function()
        except RuntimeError:
            for module, state in zip(self.modules, before, strict=True):
                module.load_state_dict(state)
            raise
        self.captures += 1

        def replay() -> None:
            assert self.on_stream
            self.replays += 1
            tape.replay()

        return returned, replay

    def enter_stream(self) -> None:
        self.on_stream = True

    def leave_stream(self) -> None:
        self.on_stream = False
