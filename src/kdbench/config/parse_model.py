"""Checks of the section of a network."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import hydra.utils

from kdbench.config.schema import as_yaml
from kdbench.config.sections import ModelConfig, TeacherKeys
from kdbench.config.targets import check_name, import_hint
from kdbench.errors import ConfigError, first_line, nearest


def parse_model(node: Mapping[str, Any], path: str) -> ModelConfig:
    """Return an architecture whose target can be called with its arguments."""
    arguments = dict(node)
    own = ("name", "_target_", "stages", "logits", "weights", "weights_hash")
    name, target, stages, logits, weights, weights_hash = (arguments.pop(key, None) for key in own)
    name = name.replace("/", "-") if isinstance(name, str) else name  # the file's folder: timm/resnet18
    check_name(name, path)
    if not isinstance(target, str):
        raise ConfigError(
            f"{path}._target_ is {target!r}; it must be the import path of what builds the network",
            code="not_importable",
            key=f"{path}._target_",
        )
    check_arguments(target, arguments, path)
    if not isinstance(stages, dict):
        raise ConfigError(
            f"{path}.stages is {as_yaml(stages)}; it must map names of stages to nodes of the network",
            code="wrong_type",
            key=f"{path}.stages",
        )
    for stage, place in stages.items():
        check_stage(place, f"{path}.stages.{stage}")
    places = logits if isinstance(logits, list) else [logits]
    if logits is not None and not (places and all(type(place) in (str, int) for place in places)):
        raise ConfigError(
            f"{path}.logits is {as_yaml(logits)}; it must be the path of a module such as fc, a place in what the "
            "network returns such as 0, a list of places to average, or null",
            code="wrong_type",
            key=f"{path}.logits",
        )
    if weights is not None and (not isinstance(weights, str) or not weights.strip()):
        raise ConfigError(
            f"{path}.weights is {as_yaml(weights)}; it must be a file, the name of published weights such as DEFAULT, "
            "or null",
            code="wrong_type",
            key=f"{path}.weights",
        )
    return ModelConfig(name, target, {str(k): v for k, v in stages.items()}, arguments, logits, weights, weights_hash)


LAYOUTS = ("maps", "nhwc", "tokens")
"""Layouts of a stage: [N, C, H, W], [N, H, W, C] and [N, T, D]."""


def check_stage(place: Any, path: str) -> None:
    """Check where a stage is read: a node, or a mapping with further keys.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(place, str) and place:
        return
    kinds = ("node", "input_of", "returned")
    is_mapping = isinstance(place, dict) and set(place) <= {*kinds, "output", "layout"}
    if not is_mapping or sum(kind in place for kind in kinds) != 1:
        raise ConfigError(
            f"{path} is {as_yaml(place)}; it must be a node such as layer1, or a mapping with node, input_of or "
            "returned, and maybe output and layout, such as {node: features.3, layout: nhwc}",
            code="wrong_type",
            key=path,
        )
    if place.get("layout", "maps") not in LAYOUTS:
        raise ConfigError(
            f"{path}.layout is {as_yaml(place['layout'])}; it must be {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}",
            code="out_of_range",
            key=f"{path}.layout",
        )


def check_arguments(target: str, arguments: Mapping[str, Any], path: str) -> None:
    """Check the arguments of a network's builder against its signature, where that lists them."""
    try:
        parameters = inspect.signature(hydra.utils.get_method(target)).parameters
    except Exception as error:
        raise ConfigError(
            f"{path}._target_ is {target!r}, which cannot be called: {first_line(error)}{import_hint(target)}",
            code="not_importable",
            key=f"{path}._target_",
        ) from None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    valid = {*parameters, "stages", "_target_", "logits", "weights"} - {"num_classes"}
    if path == "teacher":
        valid |= {f.name for f in dataclasses.fields(TeacherKeys)}
    for name in arguments:
        if name not in valid:
            key = f"{path}.{name}"
            raise ConfigError(f"{key} is not a known key; {nearest(name, valid)}", code="unknown_key", key=key)
