"""Students compiled by torch: once per process and architecture, to run with any weights of it."""

import copy
from collections.abc import Callable, Mapping
from types import FunctionType

import torch
from torch import Tensor
from torch.func import functional_call

from kdbench.errors import RunError, first_line
from kdbench.limits import is_out_of_memory
from kdbench.models import Network, Output

BACKEND = "inductor"
"""What torch compiles with."""
Compiled = Callable[[Mapping[str, Tensor], Tensor], Output]

_compiled: dict[str, Compiled] = {}


def compiled(student: Network) -> Callable[[Tensor], Output]:
    """A student's forward pass in train mode, with its own parameters and buffers, by code that others may share.

    Raises:
        RunError: from the first call, where torch cannot compile.
    """
    tensors = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    if student.architecture not in _compiled:
        _compiled[student.architecture] = compiled_without_weights(student)
    shared = _compiled[student.architecture]
    ready = False

    def forward(images: Tensor) -> Output:
        nonlocal ready
        if ready:
            return shared(tensors, images)
        try:
            output = shared(tensors, images)
        except Exception as error:  # compilers have names of their own for what goes wrong
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"runtime.compile=true and torch could not compile {type(student.body).__name__} here "
                f"({first_line(error)}); it needs a C++ compiler, on a GPU Triton too; or use runtime.compile=false"
            ) from error
        ready = True
        return output

    return forward


def compiled_without_weights(student: Network) -> Compiled:
    network = copy.deepcopy(student).to("meta").train()  # all its tensors are given with each call

    def forward(tensors: Mapping[str, Tensor], images: Tensor) -> Output:
        return functional_call(network, dict(tensors), (images,))

    # A code object of its own: torch counts, and limits, what it has compiled by that.
    own = FunctionType(forward.__code__.replace(), forward.__globals__, closure=forward.__closure__)
    return torch.compile(own, backend=BACKEND)
