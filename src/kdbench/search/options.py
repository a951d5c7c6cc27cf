"""Keys of the options of a space: which trials have which key, their defaults, and what may not be searched."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.runner.run import resolve_run
from kdbench.search.space import SUBJECT, Dimension, FixedKey, Params, Space

Compose = Callable[[tuple[str, ...]], RunConfig]
"""Returns the config of a run from its overrides; raises ConfigError."""
Node = Callable[[tuple[str, ...]], DictConfig]
"""Returns a composed config, not checked, from overrides that choose options; raises ConfigError."""
SEEDS = ("init_seed", "data_seed")
SAME_IMAGES = ("augment", "padding", "flip", "mean", "std", "num_train")
"""Keys of data that change neither the validation images nor their labels."""
ABSENT = object()


class Options:
    """A space together with the configs that its options compose.

    Args:
        space: the space.
        compose: composes a run.
        node: composes a config of options.
    """

    def __init__(self, space: Space, compose: Compose, node: Node) -> None:
        self.space = space
        self.compose = compose
        self.node = node
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def config_of(self, combination: Params) -> DictConfig:
        """Return the config that a combination of options composes."""
        chosen = tuple(self.space.chosen(combination))
        if chosen not in self.composed:
            self.composed[chosen] = self.node(chosen)
        return self.composed[chosen]

    def has(self, combination: Params, part: Dimension | FixedKey) -> bool:
        """Return True if the runs of a combination of options have a key."""
        text = part.text if isinstance(part, FixedKey) else part.element
        key = part.key.partition("@")[0]
        if text.startswith("+") or "." not in key:
            return True
        return self.default(combination, key) is not ABSENT

    def default(self, combination: Params, key: str) -> Any:
        """Return the plain value that a key has in the composed config, or `ABSENT`."""
        config = self.config_of(combination)
        parent, _, name = key.rpartition(".")
        section = OmegaConf.select(config, parent) if parent else config
        if not isinstance(section, DictConfig) or name not in section:
            return ABSENT
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    def dimensions(self, combination: Params) -> list[Dimension]:
        """Return the keys that are searched within a combination of options."""
        return [d for d in self.space.others if self.has(combination, d)]

    def overrides(self, params: Params) -> tuple[str, ...]:
        """Return the overrides of a run from the values of its dimensions."""
        own = [d.text(params[d.key]) for d in self.space.dimensions if d.key in params]
        return (*(one.text for one in self.space.fixed if self.has(params, one)), *own)

    def searched(self, params: Params) -> list[str]:
        """Return the overrides of the searched keys alone."""
        return [d.text(params[d.key]).lstrip("+") for d in self.space.dimensions if d.key in params]

    def default_params(self, combination: Params) -> tuple[dict[str, Any], list[str]]:
        """Return the default setting of a combination of options, and the keys whose default is not in the space."""
        params, outside = dict(combination), []
        for dimension in self.dimensions(combination):
            value = dimension.holding(self.default(combination, dimension.key))
            if value is None:
                outside.append(dimension.key)
            params[dimension.key] = value
        return params, outside

    def settings(self, most: int) -> list[dict[str, Any]] | None:
        """Return every setting of the space; None if there are more than `most`, or infinitely many."""
        found: list[dict[str, Any]] = []
        for combination in self.space.combinations():
            dimensions = self.dimensions(combination)
            count = 1
            for dimension in dimensions:
                count *= dimension.size or most + 1
            if len(found) + count > most:
                return None
            settings: list[dict[str, Any]] = [dict(combination)]
            for dimension in dimensions:
                settings = [{**one, dimension.key: value} for one in settings for value in dimension.values()]
            found += settings
        return found

    # Checks before the first trial

    def check(self) -> RunConfig:
        """Check the space, and return the config of its first setting.

        Raises:
            ConfigError: a key that no option has, or one that may not be searched, or a run that cannot be composed.
        """
        combinations = list(self.space.combinations())
        parts: list[Dimension | FixedKey] = [*self.space.others, *self.space.fixed]
        for part in parts:
            if not any(self.has(combination, part) for combination in combinations):
                text = part.text if isinstance(part, FixedKey) else part.text(part.extremes()[0])
                self.compose((*self.space.chosen(combinations[0]), text))  # for its error
                raise ConfigError(f"{part.key} is not a known key", code="unknown_key", key=part.key)
        for dimension in self.space.dimensions:
            self.check_dimension(dimension, combinations)
        return self.first_config(combinations)

    def first_config(self, combinations: Sequence[dict[str, Any]]) -> RunConfig:
        """Return the config of the first setting that can be composed, of one for each combination and value of a key.

        Raises:
            ConfigError: that of the first setting, where none can be composed.
        """
        errors = []
        for combination in combinations:
            changes = [{}, *({d.key: value} for d in self.dimensions(combination) for value in d.extremes())]
            for changed in changes:
                try:
                    return self.compose(self.overrides(self.probe(combination, changed)))
                except ConfigError as error:
                    errors.append(error)
        raise errors[0]

    def probe(self, combination: Params, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a setting of a combination of options: defaults, and where the space has them not, its first values.

        Args:
            combination: the combination.
            changed: values in their place.
        """
        params, _ = self.default_params(combination)
        first = {d.key: d.extremes()[0] for d in self.dimensions(combination)}
        known = {key: first[key] if value is None else value for key, value in params.items()}
        return known | {key: value for key, value in (changed or {}).items() if key in known}

    def check_dimension(self, dimension: Dimension, combinations: list[dict[str, Any]]) -> None:
        """Check that a key may be searched: it changes numbers, and neither seeds nor the images that are judged by.

        Raises:
            ConfigError: it may not, or its values are not allowed.
        """
        combination = next(own for own in combinations if self.has(own, dimension))
        settings = []
        for value in dimension.extremes():
            own = combination | {dimension.key: value} if dimension.is_group else combination
            settings.append(self.probe(own, {dimension.key: value}))
        refuse_by_name(dimension)
        pair = []
        for params in settings:
            try:
                pair.append(self.compose(self.overrides(params)))
            except ConfigError as error:
                if error.key == dimension.key and error.code in ("wrong_type", "unknown_option", "unknown_key"):
                    raise ConfigError(f"{error}{hint_of(dimension)}", code=error.code, key=error.key) from None
        if len(pair) == 2:  # otherwise a value cannot run beside the others; such trials are refused one by one
            check_pair(dimension, *pair)


def hint_of(dimension: Dimension) -> str:
    """Return what to write where an interval of numbers with a fraction was given to a key of whole ones."""
    if dimension.whole or dimension.choices:
        return ""
    return f"; for whole numbers write {dimension.key}=int(interval({dimension.low:g},{dimension.high:g}))"


def refuse_by_name(dimension: Dimension) -> None:
    """Check a key that needs no config to be refused.

    Raises:
        ConfigError: it is a seed, or chooses the data.
    """
    if dimension.key in ("seed", *SEEDS, "teacher.seed"):
        raise seed_error(dimension)
    if dimension.key == "data":
        raise images_error(dimension)


def seed_error(dimension: Dimension) -> ConfigError:
    return ConfigError(
        f"{dimension.key} cannot be searched: the best of several seeds is luck and no setting; give one value, and "
        "train the best setting with other seeds afterwards",
        code="searched_seed",
        key=dimension.key,
    )


def images_error(dimension: Dimension) -> ConfigError:
    return ConfigError(
        f"{dimension.key} cannot be searched: trials are compared by their accuracy on the same validation images; "
        "give one value",
        code="searched_images",
        key=dimension.key,
    )


def check_pair(dimension: Dimension, one: RunConfig, other: RunConfig) -> None:
    """Check two runs that differ in one key. Arguments and errors: see `Options.check_dimension`."""
    if any(getattr(one, name) != getattr(other, name) for name in SEEDS):
        raise seed_error(dimension)
    if one.teacher and other.teacher and one.teacher.seed != other.teacher.seed:
        raise seed_error(dimension)
    keys = {name: resolve_run(config)[1].key for name, config in (("one", one), ("other", other))}
    if keys["one"] == keys["other"] and dimension.key not in (*SUBJECT, "experiment"):
        raise ConfigError(
            f"{dimension.key} cannot be searched: it changes no number of a run; give one value",
            code="unused_key",
            key=dimension.key,
        )
    kept = [(c.data.path, {k: v for k, v in dataclasses.asdict(c.data.params).items() if k not in SAME_IMAGES})
            for c in (one, other)]  # fmt: skip
    if kept[0] != kept[1]:
        raise images_error(dimension)
