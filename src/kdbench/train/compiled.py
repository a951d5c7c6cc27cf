"""Students compiled by torch, once per process and architecture, for any weights of it."""

import copy
from collections.abc import Callable, Mapping
from types import FunctionType

import torch
from torch import Tensor
from torch.func import functional_call

from kdbench.errors import RunError, first_line
from kdbench.models import Network, Output
from kdbench.system.memory import is_out_of_memory

BACKEND = "inductor"
"""Name of torch's compiler backend."""
Compiled = Callable[[Mapping[str, Tensor], Tensor], Output]

_compiled: dict[str, Compiled] = {}


def compiled(student: Network) -> Callable[[Tensor], Output]:
    """Return a student's forward pass in train mode, with its own tensors, by code shared among equal architectures.

    Raises:
        RunError: from the first call, where torch cannot compile.
    """
    tensors = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    if student.architecture not in _compiled:
        _compiled[student.architecture] = compile_without_weights(student)
    shared = _compiled[student.architecture]
    ready = False

    def forward(images: Tensor) -> Output:
        nonlocal ready
        if ready:
            return shared(tensors, images)
        try:
            output = shared(tensors, images)
        except Exception as error:  # compilers raise types of their own
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"runtime.compile=true and torch could not compile {type(student.body).__name__} here "
                f"({first_line(error)}); it needs a C++ compiler, on a GPU Triton too; or use runtime.compile=false",
                code="not_compilable",
                key="runtime.compile",
            ) from error
        ready = True
        return output

    return forward


def compile_without_weights(student: Network) -> Compiled:
    """Return a compiled function of tensors and images that computes what the student computes."""
    network = copy.deepcopy(student).to("meta").train()  # all its tensors are given with each call

    def forward(tensors: Mapping[str, Tensor], images: Tensor) -> Output:
        return functional_call(network, dict(tensors), (images,))

    # A code object of its own: torch counts, and limits, its compilations per code object.
    own = FunctionType(forward.__code__.replace(), forward.__globals__, closure=forward.__closure__)
    return torch.compile(own, backend=BACKEND)
