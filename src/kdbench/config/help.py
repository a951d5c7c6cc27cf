"""The texts of `kdbench --help` and `kdbench --version`."""

from collections import Counter
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from kdbench import __version__
from kdbench.config.options import groups, options
from kdbench.config.paths import CONF_DIR

MOST_LISTED = 20
"""Largest number of options of one folder that the help lists."""


def summarized(names: Collection[str]) -> list[str]:
    """Return names of options, sorted; those of a folder with many as one entry, FOLDER/... with their number."""
    folders = Counter(name.rpartition("/")[0] for name in names if "/" in name)
    large = {folder for folder, count in folders.items() if count > MOST_LISTED}
    kept = [name for name in names if name.rpartition("/")[0] not in large]
    return sorted([*kept, *(f"{folder}/... ({folders[folder]} files of conf/)" for folder in large)])


def help_text(arguments: Sequence[str]) -> str:
    """Return the help of `kdbench` from its template; Hydra takes seconds to list the options."""
    given, _ = get_args_parser().parse_known_args(arguments)
    folders = [CONF_DIR, *([Path(given.config_dir)] if given.config_dir else [])]
    text = OmegaConf.load(CONF_DIR / "hydra" / "help" / "kdbench.yaml")
    config = OmegaConf.create({"hydra": {"help": text}})
    lines = []
    for group in sorted(groups()):
        names = {name for folder in folders for name in options(group, folder)}
        names |= {"none"} if group == "teacher" else set()
        lines.append(f"{group}: {', '.join(summarized(names))}")
    return str(config.hydra.help.template).replace("$APP_CONFIG_GROUPS", "\n".join(lines) + "\n")


def versions() -> str:
    """Return the versions of kdbench, torch and torchvision."""

    def installed(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} not installed"

    return f"kdbench {__version__} ({installed('torch')}, {installed('torchvision')})"
