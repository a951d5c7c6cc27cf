"""Checks of the sections of runs that are derived from another run."""

from collections.abc import Mapping
from typing import Any

from kdbench.config.derived import A_RUN, CompressConfig, MeasureConfig, ParentConfig
from kdbench.config.paths import is_path
from kdbench.config.schema import as_yaml, typed
from kdbench.config.targets import check_name, fault_of_compression, import_class
from kdbench.errors import ConfigError


def parse_run(node: Any, path: str) -> ParentConfig | None:
    """Return the run that a config names: as given, or as a config recorded it; None without one."""
    if node is None:
        return None
    if isinstance(node, str) and node.strip() and is_path(node):
        return ParentConfig(node)
    if not isinstance(node, dict):
        digits = (
            "; a run key that reads as a number needs quotes, or give its directory"
            if isinstance(node, int | float) and not isinstance(node, bool)
            else ""
        )
        raise ConfigError(f"{path} is {as_yaml(node)}; it must be {A_RUN}{digits}", code="wrong_type", key=path)
    return typed(ParentConfig, node, path)


def parse_compress(node: Mapping[str, Any] | None) -> CompressConfig | None:
    """Return a compression whose keys are those of its class's `Config`; None without one."""
    if node is None:
        return None
    params = dict(node)
    name, target = params.pop("name", None), params.pop("_target_", None)
    check_name(name, "compress")
    cls = import_class(target, "compress", "kdbench.compress.Compression", fault_of_compression, code="no_compression")
    return CompressConfig(name, cls, typed(cls.Config, params, name))


def parse_measure(node: Mapping[str, Any] | None, path: str = "measure") -> MeasureConfig | None:
    """Return the settings of a measurement; None without one."""
    return None if node is None else typed(MeasureConfig, node, path)
