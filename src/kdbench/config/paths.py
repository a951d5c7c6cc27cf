"""Where the YAML options of kdbench are, and which folders exist."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# A wheel carries conf/ inside the package; a checkout has it at the top.
CONF_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1] / "conf"


def is_folder(path: Path) -> bool:
    """Return whether a folder exists. A text that cannot be a path at all names none; `Path.is_dir` would raise."""
    return os.path.isdir(path)  # noqa: PTH112  # for the reason above


def is_file(path: Path) -> bool:
    """Return whether a file exists, as `is_folder` does for folders."""
    return os.path.isfile(path)  # noqa: PTH113  # for the reason above


def is_path(value: str) -> bool:
    """Return whether the system accepts a text as a path: not too long, and `~name` is a user's home."""
    try:
        os.stat(Path(value).expanduser())  # noqa: PTH116  # Path.exists hides some of these errors in some Pythons
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return True
    except (OSError, RuntimeError, ValueError):
        return False
    return True
