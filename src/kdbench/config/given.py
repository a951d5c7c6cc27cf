"""Checks of a command line's overrides against the run that they compose."""

import re
from collections.abc import Iterable, Iterator

from omegaconf import OmegaConf

from kdbench.config.sections import RunConfig
from kdbench.errors import ConfigError


def check_used(run: RunConfig, overrides: Iterable[str]) -> None:
    """Check that each key of a recipe, of a method, and of crop and flip, that the user gave changes something.

    Args:
        run: the checked run.
        overrides: as given on the command line.

    Raises:
        ConfigError: one has no effect beside the others, such as a key of another optimiser than the chosen one.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        for group, other in (("student", run.parent), ("teacher", run.teacher and run.teacher.run)):
            name = "parent" if group == "student" else "teacher.run"
            if other and key == group and override.partition("=")[2] != "none":
                raise ConfigError(
                    f"{override} changes nothing: {name} gives the network; leave one of the two out",
                    code="unused_key",
                    key=key,
                )
    unused = {"recipe": run.recipe.unused(), "teacher.recipe": run.teacher.recipe.unused() if run.teacher else {}}
    if hasattr(run.method.params, "unused"):
        unused["method"] = run.method.params.unused()
    unused["data"] = {} if run.data.params.augment else dict.fromkeys(("padding", "flip"), "data.augment is false")
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        path, _, name = key.rpartition(".")
        if name in unused.get(path, {}):
            raise ConfigError(f"{override}: {key} changes nothing: {unused[path][name]}", code="unused_key", key=key)


def check_repeated_names(overrides: Iterable[str]) -> None:
    """Check that no name stands twice in a mapping of the command line: Hydra drops all but the last in silence.

    Raises:
        ConfigError: one does.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        for mapping in mappings_in(value):
            try:
                OmegaConf.create(re.sub(r":(?=\S)", ": ", mapping))  # YAML, unlike Hydra, needs the space
            except Exception as error:  # of YAML: Hydra reads what YAML does not
                if repeated := re.search(r"found duplicate key (\S+)", str(error)):
                    raise ConfigError(
                        f"{override}: {repeated[1]!r} stands twice in {key.lstrip('+')}; a name can have one value",
                        code="invalid_override",
                        key=key.lstrip("+"),
                    ) from None


def mappings_in(value: str) -> Iterator[str]:
    """Yield the outermost `{...}` of an override's value, such as those of a sweep."""
    depth = start = 0
    for place, character in enumerate(value):
        if character == "{":
            start = start if depth else place
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if not depth:
                yield value[start : place + 1]
