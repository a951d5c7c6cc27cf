"""Where and how a run computes: device, precision, threads. `auto` ends here."""

import contextlib
import dataclasses
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from kdbench.config import RuntimeConfig
from kdbench.errors import ConfigError
from kdbench.processors import available_cores, freed_memory_kept, have_native_bf16

ModuleT = TypeVar("ModuleT", bound=nn.Module)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(runtime: RuntimeConfig) -> RuntimeConfig:
    """The same with every `auto` decided.

    Raises:
        ConfigError: for a device that this machine does not have, or a precision that the device does not do.
    """
    device = resolve_device(runtime.device)
    on_cpu = device == "cpu"
    if runtime.precision == "fp16" and on_cpu:
        raise ConfigError("runtime.precision=fp16 needs a CUDA device and this run is on the CPU; use bf16 or fp32")
    precision = runtime.precision
    if precision == "auto":
        native = have_native_bf16() if on_cpu else torch.cuda.get_device_capability(device)[0] >= 8
        precision = "bf16" if native else "fp32"
    threads = available_cores() if runtime.threads == "auto" else runtime.threads
    return dataclasses.replace(runtime, device=device, precision=precision, threads=threads)


def resolve_device(wanted: str) -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return "cpu"
    index = int(wanted.partition(":")[2] or 0)
    if index >= count:
        here = f"{count} CUDA device{'s' if count > 1 else ''}" if count else "no CUDA device"
        raise ConfigError(f"runtime.device={wanted} and this machine has {here}; use runtime.device=auto or cpu")
    return f"cuda:{index}"


@contextlib.contextmanager
def applied(runtime: RuntimeConfig) -> Iterator[None]:
    """Set torch's global switches to a resolved runtime, and put them back after."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.set_num_threads(runtime.threads)
    repeats = runtime.profile == "repro"
    if repeats:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with a fixed workspace
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not repeats
    torch.backends.cudnn.allow_tf32 = False  # fp32 means float32; torch's default rounds convolutions to 10 bits
    try:
        with freed_memory_kept() if runtime.device == "cpu" else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32


def autocast(runtime: RuntimeConfig) -> torch.autocast:
    """Mixed precision for forward passes: weights stay float32, convolutions and products run narrow."""
    dtype = narrow(runtime)
    return torch.autocast(torch.device(runtime.device).type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def narrow(runtime: RuntimeConfig) -> torch.dtype | None:
    """The type that convolutions and products run in, None for float32."""
    return AUTOCAST.get(runtime.precision)


def placed(module: ModuleT, runtime: RuntimeConfig) -> ModuleT:
    """A module on the runtime's device and in its memory format."""
    memory_format = torch.channels_last if runtime.channels_last else torch.contiguous_format
    return module.to(device=torch.device(runtime.device), memory_format=memory_format)  # type: ignore[call-overload]  # no stub has both


def device_name(device: str) -> str:
    """What hardware a device is, for the record."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
