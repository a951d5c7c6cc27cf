"""Options: the groups of which a run chooses, their files, and networks as options of both student and teacher."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from kdbench.config.paths import CONF_DIR, is_folder
from kdbench.errors import ConfigError


def groups() -> set[str]:
    """Return the groups of which a run chooses one option."""
    folders = {folder.name for folder in CONF_DIR.iterdir() if folder.is_dir()}
    return folders - {"model", "hydra", "study", "compress", "measure"} | {"student", "teacher"}


def options(group: str, config_dir: Path = CONF_DIR) -> list[str]:
    """Return the names of a group's options in a config folder; those of models and experiments may lie in folders."""
    folder = config_dir / ("model" if group in ("student", "teacher") else group)
    files = folder.rglob("*.yaml") if folder.name in ("model", "experiment") else folder.glob("*.yaml")
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


@contextlib.contextmanager
def initialize_hydra(config_dir: Path | None) -> Iterator[ConfigLoader]:
    """Initialise Hydra for the options of kdbench and of a further folder, and yield its loader of configs.

    Afterwards the instance that a surrounding Hydra application uses is back. The folder becomes a part of the search
    path directly, as for `kdbench --config-dir`: an override of `hydra.searchpath` cannot hold every folder's name.
    """
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    search_path = create_config_search_path(str(CONF_DIR))
    if config_dir is not None:
        search_path.prepend("command-line", f"file://{config_dir.absolute()}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("kdbench", search_path).config_loader
    finally:
        GlobalHydra.instance().clear()
        if previous:
            GlobalHydra.instance().hydra = previous


_registered: tuple[tuple[Path, int, int], ...] = ()
"""The model files that are registered, each with its time of change and size."""


def register_models_once(config_dir: Path | None) -> None:
    """Register the models of kdbench and of a further folder; code beside that folder can be imported from now on."""
    if config_dir and (beside := str(config_dir.absolute().parent)) not in sys.path:
        sys.path.append(beside)  # last, so that it hides no installed package
    register_models(CONF_DIR, *([config_dir] if config_dir else []))


def register_models(*config_dirs: Path) -> None:
    """Offer every file of each folder's model/ as `student=NAME` and as `teacher=NAME`; later folders win.

    The models of an earlier call are withdrawn. Files that are registered and unchanged are not read again: reading
    all of them takes a third of a composition.
    """
    global _registered
    folders = [folder.absolute() / "model" for folder in config_dirs if is_folder(folder / "model")]
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    state = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    if state == _registered:
        return
    nodes = {file: read_model(file) for file in files}
    store = ConfigStore.instance()
    for file, _, _ in _registered:
        for group in ("student", "teacher"):
            withdraw(store.repo, group, file)
    store.store(group="teacher", name="none", node={})
    for file, node in nodes.items():
        folder = subfolder_of(file)
        for group in ("student", "teacher"):
            group_path = f"{group}/{folder}" if folder else group
            store.store(group=group_path, name=file.stem, package=group, node=node, provider=str(file))
    _registered = state


def subfolder_of(file: Path) -> str:
    """Return the folders between model/ and a model's file: timm for model/timm/vit.yaml."""
    parts = file.parent.parts
    last = len(parts) - 1 - parts[::-1].index("model")
    return "/".join(parts[last + 1 :])


def withdraw(repo: dict[str, Any], group: str, file: Path) -> None:
    """Remove a model's file from the options of a group."""
    for part in (group, *subfolder_of(file).split("/")):
        repo = repo[part] if part else repo
    repo.pop(f"{file.stem}.yaml", None)


def read_model(file: Path) -> DictConfig:
    """Return the content of a model's YAML file.

    Raises:
        ConfigError: it is not valid YAML, or no mapping.
    """
    try:
        node = OmegaConf.load(file)
    except Exception as error:  # the YAML library raises many types
        raise ConfigError(
            f"{file} is not valid YAML: {' '.join(str(error).split())}", code="invalid_yaml", key=file.stem
        ) from None
    if not isinstance(node, DictConfig):
        raise ConfigError(
            f"{file} does not describe a model: it must contain keys and values, among them _target_",
            code="invalid_yaml",
            key=file.stem,
        )
    return OmegaConf.create({"logits": None, "weights": None} | dict(node))  # keys of every network
