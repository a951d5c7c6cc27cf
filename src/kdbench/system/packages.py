"""Installed packages."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None if it has no metadata here."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
