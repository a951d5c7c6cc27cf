"""From the section `tracker` of a config to checked trackers."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from kdbench.config.schema import as_yaml, typed
from kdbench.config.sections import TrackerConfig
from kdbench.config.targets import check_name, fault_of_tracker, import_class
from kdbench.errors import ConfigError


def parse_trackers(section: Mapping[str, Any]) -> list[TrackerConfig]:
    """Return the trackers of a run, in the order in which they were chosen.

    Args:
        section: by the name of each tracker, its keys.

    Raises:
        ConfigError: a file or a key is wrong, or a package is not installed.
    """
    return [parse_tracker(name, node) for name, node in section.items()]


def parse_tracker(name: str, node: Any) -> TrackerConfig:
    """Return one tracker, whose keys are those of its class's `Config`."""
    path = f"tracker.{name}"
    if not isinstance(node, Mapping):
        raise ConfigError(
            f"{path} is {as_yaml(node)}; the file of a tracker has one section, named as the tracker, with _target_ "
            "and its keys",
            code="invalid_option_file",
            key=path,
        )
    check_name(name, "tracker")
    params = dict(node)
    cls = import_class(params.pop("_target_", None), path, "kdbench.trackers.Tracker", fault_of_tracker, "no_tracker")
    keys = typed(cls.Config, params, path)
    if cls.package and importlib.util.find_spec(cls.package) is None:
        own = f"kdbench[{cls.extra}]" if cls.extra else cls.package
        raise ConfigError(
            f"tracker=[{name}] needs the package {cls.package}; install it with: pip install '{own}'",
            code="missing_extra",
            key="tracker",
        )
    return TrackerConfig(name, cls, keys)
