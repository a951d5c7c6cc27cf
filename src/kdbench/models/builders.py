"""Calls of the functions and classes that build networks."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import hydra.utils
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]  # missing in the stub

from kdbench.config.sections import ModelConfig
from kdbench.errors import ConfigError, first_line


def builder_of(config: ModelConfig) -> Any:
    """Return the object that `_target_` names; of a bound method, the function."""
    builder = hydra.utils.get_object(config.target)
    return getattr(builder, "__func__", builder)  # a bound method is another object each time


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
        body = call_builder(hydra.utils.get_method(config.target), arguments, num_classes)
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


def call_builder(builder: Callable[..., Any], arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Return what a function or class builds; `num_classes` is passed where it takes it.

    Raises:
        TypeError: it returns no module.
    """
    parameters = inspect.signature(builder).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    classes = {"num_classes": num_classes} if takes_any or "num_classes" in parameters else {}
    try:
        body = builder(**arguments, **classes)
    except TypeError as error:
        if "unexpected keyword argument 'num_classes'" not in str(error):
            raise
        body = builder(**arguments)  # its **kwargs are those of something that does not take it
    body = getattr(body, "_orig_mod", body)  # of torch.compile, which runtime.compile does
    if not isinstance(body, nn.Module):
        raise TypeError(f"it returned a {type(body).__name__}, not a torch.nn.Module")
    return body


def has_target(arguments: Any) -> bool:
    """Return whether arguments hold an object that is built from its own `_target_`."""
    if isinstance(arguments, Mapping):
        return "_target_" in arguments or any(map(has_target, arguments.values()))
    return isinstance(arguments, list) and any(map(has_target, arguments))


def root_of(error: Exception) -> BaseException:
    """Return the error behind one of Hydra's, whose own text spans several lines."""
    return error.__cause__ if type(error).__name__ == "InstantiationException" and error.__cause__ else error
