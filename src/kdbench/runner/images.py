"""Test images of finished runs, for reports that show some of them and for features of their networks.

Imports torch only where it reads images.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from kdbench.config import CONF_DIR, DataConfig
from kdbench.config.options import options
from kdbench.config.parse import parse_data
from kdbench.errors import ConfigError, RunError, first_line
from kdbench.rundir.recorded_config import read_data_config
from kdbench.rundir.summary import RunSummary, read_summary
from kdbench.rundir.unfinished import CONFIG_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENVIRONMENT = "KDBENCH_DATA"
"""Variable with the folder of the data, as conf/data/*.yaml read it."""
LARGEST = 2 * 2**30
"""Largest size of a data set in bytes that is read for a few pictures."""
REMEDY = "--data-root DIR names the folder that holds the data"


def read_test_images(
    folder: Path,
    data_root: Path | None = None,
    trusted: Sequence[str] = (),
    most_bytes: int | None = LARGEST,
) -> "tuple[NDArray[np.uint8], NDArray[np.int64]] | str":
    """Return the test images of a run; nothing is downloaded or written.

    The folder of the data is the given one, or else that of the run's config.yaml, or else $KDBENCH_DATA. A run in its
    small form (scripts/keep_results.py) has no config: its data set is then the built-in one of that name.

    Args:
        folder: run directory.
        data_root: folder with the data set's files.
        trusted: modules whose data sets the config may name, beside kdbench's own.
        most_bytes: largest size of the data set; None for no limit.

    Returns:
        Images [N, H, W, C] and labels [N], or a text: why they cannot be shown, and what to do.
    """
    summary = read_summary(folder)
    size = sum(filter(None, (summary.num_train, summary.num_val, summary.num_test)))
    if most_bytes is not None and size * math.prod(summary.classes_and_shape[1]) > most_bytes:
        return f"the data set has more than {most_bytes / 2**30:g} GiB, too much to read for a few pictures"
    try:
        recorded = data_config(folder, summary, trusted)
    except ConfigError as error:
        return str(error)
    reason = ""
    for root in roots(recorded, data_root):
        found = read_from(recorded, root, summary)
        if not isinstance(found, str):
            return found
        reason = reason or found
    return reason


def data_config(folder: Path, summary: RunSummary, trusted: Sequence[str] = ()) -> DataConfig:
    """Return the data set of a run.

    Raises:
        ConfigError: its config cannot be read, names a class that is not trusted, or there is none and no built-in data
            set has that name.
    """
    file, name = folder / CONFIG_FILE, summary.dataset
    if file.is_file():
        return read_data_config(file, trusted)
    if not name or name not in options("data"):
        raise ConfigError(
            f"data={name} is no data set of kdbench, and {folder} has no {CONFIG_FILE} that describes it",
            code="not_found",
            key="data",
        )
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "data" / f"{name}.yaml"), resolve=True)
    return parse_data(node | {"name": name, "num_test": summary.num_test})


def roots(config: DataConfig, data_root: Path | None) -> list[str | None]:
    """Return the folders in which the files of a data set may be; None where it has no files."""
    if not hasattr(config.params, "root"):
        return [None]
    if data_root is not None:
        return [str(data_root)]
    return list(dict.fromkeys(root for root in (config.params.root, os.environ.get(ENVIRONMENT)) if root))


def read_from(
    config: DataConfig, root: str | None, summary: RunSummary
) -> "tuple[NDArray[np.uint8], NDArray[np.int64]] | str":
    """Return the test images from the files in one folder, or why they are not there."""
    from kdbench.data import load
    from kdbench.data.access import read_only

    changes: dict[str, Any] = {"download": False} if hasattr(config.params, "download") else {}
    if root is not None:
        changes["root"] = root
    data = dataclasses.replace(config, params=dataclasses.replace(config.params, **changes), content=None)
    try:
        with read_only():
            test = load(data, "cpu").test
    except (ConfigError, RunError) as error:
        return f"{first_line(error).partition('; ')[0]}; {REMEDY}"  # not what a training could do, such as to download
    recorded = (summary.data_sha256 or {}).get("test")
    if recorded and test.sha256 != recorded:
        return f"the test images of data={data.name} are not those of the run; {REMEDY}"
    return test.images.numpy(), test.labels.numpy()
