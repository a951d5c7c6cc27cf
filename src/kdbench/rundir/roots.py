"""Output roots of a run: its own one, in which it writes, and the shared ones, which are only read."""

import os
from pathlib import Path

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.rundir.access import READ, WRITE, check_access, check_members
from kdbench.rundir.directory import RunDirectory


def check_roots(config: RunConfig) -> None:
    """Check that the folders of the output root can be written to, and the shared roots be read.

    Raises:
        ConfigError: one cannot.
    """
    check_members(Path(config.output_root).expanduser())
    for root in map(Path, config.shared_roots):
        check_access(root.expanduser(), READ, "shared_roots")
        if not (root.expanduser() / "runs").is_dir():
            raise ConfigError(
                f"shared_roots names {root}, which is no output root: it has no folder runs; give the folder that "
                "another output_root has named",
                code="not_found",
                key="shared_roots",
            )
        check_access(root.expanduser() / "runs", READ, "shared_roots")


def check_run_folder(config: RunConfig, directory: RunDirectory) -> None:
    """Check that this user can read a run directory that is there, and write to it if the run is not complete.

    Raises:
        ConfigError: it belongs to another user, who keeps it to themselves.
    """
    if os.path.lexists(directory.path):
        check_access(directory.path, READ)
        if not directory.is_complete() or config.overwrite:
            check_access(directory.path, WRITE)
