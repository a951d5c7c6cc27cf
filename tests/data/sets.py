"""Data sets by the name of their option, without composing a run."""

from pathlib import Path
from typing import Any

import hydra.utils
import pytest
from omegaconf import OmegaConf

from kdbench.config.paths import CONF_DIR
from kdbench.config.schema import typed
from kdbench.data.base import ImageData
from kdbench.errors import ConfigError


def data_set(option: str, root: Path | str = "nowhere", **keys: Any) -> ImageData:
    """Return the data set of an option file with other values for some keys."""
    node = OmegaConf.to_container(OmegaConf.load(Path(CONF_DIR) / "data" / f"{option}.yaml"), resolve=False)
    assert isinstance(node, dict)
    cls = hydra.utils.get_class(node.pop("_target_"))
    if "root" in node:
        node["root"] = str(root)
    config = typed(cls.Config, {**node, **keys}, "data")
    return cls(config, option)


def error_of(option: str, root: Path | str = "nowhere", **keys: Any) -> ConfigError:
    """Return the error that loading raises; it is one line that names its option or key."""
    with pytest.raises(ConfigError) as error:
        data_set(option, root, **keys).load()
    assert "\n" not in str(error.value)
    assert error.value.code
    assert error.value.key.startswith("data.")
    return error.value
