"""The environment in which numbers were computed: versions, device and revision of the code."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from kdbench import __version__
from kdbench.config import RunConfig
from kdbench.system.device import device_name
from kdbench.system.packages import installed_version
from kdbench.system.world import world

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "pandas", "safetensors")


def environment(config: RunConfig) -> dict[str, Any]:
    """Return versions, device, runtime settings and revision of the code, for a resolved config."""
    return {
        "kdbench": __version__,
        **{name: installed_version(name) for name in PACKAGES},
        **{name: found for name in builders(config) if (found := installed_version(name))},
        "python": platform.python_version(),
        "cuda": torch.version.cuda if config.runtime.device != "cpu" else None,
        "device": device_name(config.runtime.device),
        "threads": config.runtime.threads,
        "profile": config.runtime.profile,
        "compile": config.runtime.compile,
        "processes": world().size,
        "parallel": config.runtime.parallel,
        **git_state(),
    }


def builders(config: RunConfig) -> list[str]:
    """Return the packages other than those of `PACKAGES` that build the networks of a run, such as timm."""
    models = [config.student, *([config.teacher.model] if config.teacher else [])]
    names = {model.target.partition(".")[0] for model in models}
    return sorted(names - {"kdbench", *PACKAGES})


def git_state() -> dict[str, str | bool | None]:
    """Return the commit of the checkout that this code runs from, and whether tracked files were changed since.

    Both are None where the code was installed.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may lie in another project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"git_revision": git("rev-parse", "HEAD"), "git_dirty": changed != ""}
    except (OSError, subprocess.SubprocessError):
        return {"git_revision": None, "git_dirty": None}
