"""Where and how a run computes: device, precision, threads. Every `auto` is resolved here."""

import contextlib
import dataclasses
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.system.cpu import available_cores, have_native_bf16
from kdbench.system.memory import start_keeping_freed_memory, stop_keeping_freed_memory
from kdbench.system.world import world

ModuleT = TypeVar("ModuleT", bound=nn.Module)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime(Protocol):
    """The settings of `kdbench.config.RuntimeConfig` that are read here."""

    device: str
    precision: str
    channels_last: bool
    threads: Any
    profile: str


RuntimeT = TypeVar("RuntimeT", bound=Runtime)


def resolve_runtime(runtime: RuntimeT) -> RuntimeT:
    """Return the same runtime with every `auto` resolved.

    Raises:
        ConfigError: this machine has no such device, or the device does not support the precision.
    """
    device = resolve_device(runtime.device)
    if runtime.precision == "fp16" and kind_of(device) != "cuda":
        where = "the CPU" if device == "cpu" else device
        raise ConfigError(
            f"runtime.precision=fp16 needs a CUDA device and this run is on {where}; use bf16 or fp32",
            code="unavailable_device",
            key="runtime.precision",
        )
    precision = runtime.precision
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(device) else "fp32"
    threads = available_cores() if runtime.threads == "auto" else runtime.threads
    return dataclasses.replace(runtime, device=device, precision=precision, threads=threads)  # type: ignore[type-var]  # a dataclass


def kind_of(device: str) -> str:
    """Return the kind of a resolved device: cpu, cuda or mps."""
    return device.partition(":")[0]


def multiplies_bf16(device: str) -> bool:
    """Return whether a device computes bfloat16 natively; for mps that has not been measured."""
    if kind_of(device) == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device == "cpu" and have_native_bf16()


def resolve_device(wanted: str) -> str:
    """Return cpu, cuda:N or mps for auto, cpu, cuda, cuda:N or mps; auto never chooses mps, which is untested."""
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError(
                "runtime.device=mps and this machine has no MPS device; use runtime.device=auto or cpu",
                code="unavailable_device",
                key="runtime.device",
            )
        return "mps"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return "cpu"
    number = wanted.partition(":")[2]
    processes = world()
    index = int(number or processes.local_rank)
    if processes.several and index != processes.local_rank:
        raise ConfigError(
            f"runtime.device={wanted} and torchrun started {processes.size} processes, each with a GPU of its own; use "
            "runtime.device=cuda, and CUDA_VISIBLE_DEVICES to choose the GPUs",
            code="unavailable_device",
            key="runtime.device",
        )
    if processes.several and 0 < count <= index:
        raise ConfigError(
            f"torchrun started more processes on this machine than its {count} CUDA device{'s' * (count > 1)}; use "
            f"--nproc-per-node {count}, or runtime.device=cpu",
            code="unavailable_device",
            key="runtime.device",
        )
    if index >= count:
        here = f"{count} CUDA device{'s' if count > 1 else ''}" if count else "no CUDA device"
        raise ConfigError(
            f"runtime.device={wanted} and this machine has {here}; use runtime.device=auto or cpu",
            code="unavailable_device",
            key="runtime.device",
        )
    return f"cuda:{index}"


@contextlib.contextmanager
def torch_settings(runtime: Runtime) -> Iterator[None]:
    """Apply torch's global settings of a resolved runtime, and restore the previous ones on leaving."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.set_num_threads(runtime.threads)
    repeatable = runtime.profile == "repro"
    if repeatable:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with a fixed workspace
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not repeatable
    torch.backends.cudnn.allow_tf32 = False  # fp32 means float32; torch's default rounds convolutions to 10 bits
    on_cpu = runtime.device == "cpu"
    if on_cpu:
        start_keeping_freed_memory()
    try:
        yield
    finally:
        if on_cpu:
            stop_keeping_freed_memory()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32


def widest_float(device: str) -> torch.dtype:
    """Return the widest floating-point type of a device: MPS has no float64."""
    return torch.float32 if kind_of(device) == "mps" else torch.float64


def autocast(runtime: Runtime) -> torch.autocast:
    """Return the context of mixed precision for forward passes: float32 weights, narrow convolutions and products."""
    dtype = autocast_dtype(runtime)
    return torch.autocast(torch.device(runtime.device).type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def autocast_dtype(runtime: Runtime) -> torch.dtype | None:
    """Return the type that convolutions and products are computed in, or None for float32."""
    return AUTOCAST.get(runtime.precision)


def place(module: ModuleT, runtime: Runtime) -> ModuleT:
    """Move a module to the runtime's device and memory format, and return it."""
    memory_format = torch.channels_last if runtime.channels_last else torch.contiguous_format
    module.to(device=torch.device(runtime.device))
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:  # the format is defined for no other
            tensor.data = tensor.data.to(memory_format=memory_format)
    return module


def synchronize(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if kind_of(device) == "cuda":
        torch.cuda.synchronize(device)
    elif kind_of(device) == "mps":
        torch.mps.synchronize()


def device_name(device: str) -> str:
    """Return the name of the processor or GPU behind a device."""
    if kind_of(device) == "cuda":
        return torch.cuda.get_device_name(device)
    if kind_of(device) == "mps":
        return f"GPU of {platform.processor() or platform.machine()}, by MPS"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory(device: str) -> int:
    """Return bytes: tensors on the GPU since the training began, or on the CPU the process's largest size so far."""
    if kind_of(device) == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if kind_of(device) == "mps":
        return torch.mps.driver_allocated_memory()  # at present: MPS records no peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
