"""Permissions in an output root: who owns a file that this user may not read or write, and what opens it."""

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from kdbench.errors import ConfigError

DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of the system that mean a lack of permission."""
READ, WRITE = "read", "written to"
NEEDED = {READ: os.R_OK, WRITE: os.R_OK | os.W_OK}
WRITTEN_FOLDERS = ("runs", ".locks")
"""Folders of an output root in which every run writes."""


def is_denied(error: BaseException) -> bool:
    """Return whether an error of the system is a lack of permission."""
    return isinstance(error, OSError) and error.errno in DENIED


def denial(path: Path, use: str) -> str | None:
    """Return why this user may not use a path, in words: whose it is, and what opens it to others. None: they may.

    Args:
        path: file or folder; one that does not exist counts as what would hold it.
        use: READ or WRITE.
    """
    for folder in reversed(path.absolute().parents):
        if not os.access(folder, os.X_OK) and folder.is_dir():
            return explain(folder, use if folder == path.absolute().parent else READ)
    existing = next(part for part in (path.absolute(), *path.absolute().parents) if os.path.lexists(part))
    search = os.X_OK if existing.is_dir() else 0
    return None if os.access(existing, NEEDED[use] | search) else explain(existing, use)


def explain(path: Path, use: str) -> str:
    """Return in words that a path may not be used: whose it is, and what opens it to others. See `denial`."""
    try:
        state = path.lstat()
    except OSError as error:
        return f"{path} cannot be {use} ({error.strerror})"
    if use == WRITE and is_read_only(path):
        return f"{path} cannot be written to: its file system is read-only"
    owner, me = user_name(state.st_uid), user_name(os.geteuid())
    group, mode = group_name(state.st_gid), stat.filemode(state.st_mode)
    if state.st_uid == os.geteuid():
        return f"{path} cannot be {use}: it is yours, with mode {mode}; chmod u+rwX {path} changes that"
    return (
        f"{path} cannot be {use} by {me}: it belongs to {owner}, group {group}, mode {mode}; for a shared folder, "
        f"{owner} gives 'chmod -R g+rwX' and 'chmod g+s' for its folders, and every member sets 'umask 002', or "
        f"{owner} gives 'setfacl -R -m g:GROUP:rwX,d:g:GROUP:rwX', which needs no umask"
    )


def is_read_only(path: Path) -> bool:
    """Return whether a path lies on a file system that is mounted read-only."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def group_name(gid: int) -> str:
    """Return the name of a group, or the number of one without a name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def check_access(path: Path, use: str, key: str = "output_root") -> None:
    """Check that this user may use a path.

    Args:
        path: file or folder; one that does not exist counts as what would hold it.
        use: READ or WRITE.
        key: config key or flag that names it; empty where none does.

    Raises:
        ConfigError: they may not; it says whose the path is, and what opens it to others.
    """
    if reason := denial(path, use):
        code = "not_readable" if use == READ else "not_writable"
        raise ConfigError(f"{key}: {reason}; or give another {key}" if key else reason, code=code, key=key)


def check_members(output_root: Path) -> None:
    """Check that this user may write to the folders of an output root in which every run writes. Writes nothing.

    Raises:
        ConfigError: another user owns one and keeps it to themselves.
    """
    for name in WRITTEN_FOLDERS:
        if os.path.lexists(output_root / name):
            check_access(output_root / name, WRITE)


def denied_error(error: OSError) -> ConfigError:
    """Return an error of the system that is a lack of permission as one for the user, in one line.

    Args:
        error: the error; `is_denied` holds for it.
    """
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    reason = path and (denial(path, WRITE) or denial(path.parent, WRITE))
    return ConfigError(reason or f"{path or 'a file'}: {error.strerror}", code="not_writable")
