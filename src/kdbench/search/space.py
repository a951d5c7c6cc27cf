"""The space of a search: which values each key may have, read from overrides by Hydra's grammar."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType
from hydra.errors import HydraException

from kdbench.config.composition_errors import composition_error
from kdbench.config.given import check_repeated_names
from kdbench.config.options import groups
from kdbench.errors import ConfigError
from kdbench.sweep.overrides import parse, values_of, why_empty

if TYPE_CHECKING:
    from optuna.trial import Trial

SUBJECT = ("student", "teacher", "method", "pair")
"""Groups that say what competes with what: each of their options has a default setting. Options of others, such as a
recipe, are part of a setting."""
LOG = "log"
"""Tag of a range whose logarithm is searched evenly."""
Params = Mapping[str, Any]
"""Value of each dimension of a setting, by its key: the text of a choice, or a number."""


@dataclass(frozen=True)
class Dimension:
    """A key that is searched.

    Args:
        key: the key, such as `recipe.lr`.
        element: the same as an override begins, with a `+` where it adds the key.
        choices: texts of its values; empty for a range of numbers.
        low: lowest number.
        high: highest number; one that occurs, of a range with steps.
        step: distance of neighbours; None for any number between.
        log: whether the logarithm is searched evenly.
        whole: whether the numbers are whole.
    """

    key: str
    element: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def is_group(self) -> bool:
        """Return True if it chooses an option, on which the keys of a run depend."""
        return self.key in groups()

    @property
    def size(self) -> int | None:
        """Number of values; None for any number of a range."""
        if self.choices:
            return len(self.choices)
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def values(self) -> list[Any]:
        """Return the values of a dimension that has a number of them."""
        if self.choices:
            return list(self.choices)
        assert self.size is not None
        assert self.step is not None
        return [self.number(self.low + n * self.step) for n in range(self.size)]

    def number(self, value: float) -> int | float:
        """Return a number of the range as it is written."""
        return round(value) if self.whole else float(f"{value:.12g}")

    def suggest(self, trial: "Trial") -> Any:
        """Return the value that the sampler draws for a trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if self.whole:
            step = 1 if self.log else round(self.step or 1)
            return trial.suggest_int(self.key, round(self.low), round(self.high), step=step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def text(self, value: Any) -> str:
        """Return the override that gives the key a value."""
        return f"{self.element}={value}"

    def holding(self, value: Any) -> Any:
        """Return a plain value as one of the dimension's own, or None where it has no such value."""
        if self.choices:
            return next((text for text in self.choices if parse(f"{self.key}={text}").value() == value), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        if self.step is not None and not (self.whole and self.log):
            place = (value - self.low) / self.step
            if not math.isclose(place, round(place), abs_tol=1e-9):
                return None
        return round(value) if self.whole else float(value)

    def extremes(self) -> tuple[Any, Any]:
        """Return two values that differ, neither of them special."""
        if self.choices:
            return self.choices[0], self.choices[-1]
        if self.step is not None:
            return self.number(self.low), self.number(self.high)
        return self.low + 0.21 * (self.high - self.low), self.low + 0.73 * (self.high - self.low)

    def describe(self) -> str:
        """Return the values in a form that is the same for the same dimension."""
        if self.choices:
            return f"choice({','.join(self.choices)})"
        kind, step = ("int" if self.whole else "float"), "" if self.step is None else f", step {self.step:g}"
        return f"{kind} {self.low:g} to {self.high:g}{step}{', log' if self.log else ''}"


@dataclass(frozen=True)
class FixedKey:
    """A key with the same value in every trial that has the key."""

    key: str
    text: str
    """The override."""


@dataclass(frozen=True)
class Space:
    """The dimensions of a search, those that choose options first, and the keys that all trials share."""

    dimensions: tuple[Dimension, ...]
    fixed: tuple[FixedKey, ...] = ()

    @property
    def choosing(self) -> tuple[Dimension, ...]:
        return tuple(d for d in self.dimensions if d.is_group)

    @property
    def others(self) -> tuple[Dimension, ...]:
        return tuple(d for d in self.dimensions if not d.is_group)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of options."""
        for values in itertools.product(*(d.values() for d in self.choosing)):
            yield dict(zip((d.key for d in self.choosing), values, strict=True))

    def chosen(self, combination: Params) -> list[str]:
        """Return the overrides that choose options: those that all trials share, and those of a combination."""
        return [
            *(one.text for one in self.fixed if one.key in groups()),
            *(d.text(combination[d.key]) for d in self.choosing),
        ]

    def within(self, combination: Params) -> "Space":
        """Return the space with some options decided, which become keys that all trials share."""
        decided = tuple(FixedKey(d.key, d.text(combination[d.key])) for d in self.dimensions if d.key in combination)
        return Space(tuple(d for d in self.dimensions if d.key not in combination), (*self.fixed, *decided))

    def describe(self) -> dict[str, str]:
        return {d.key: d.describe() for d in self.dimensions}


def read_space(overrides: Sequence[str], loader: ConfigLoader | None = None) -> Space:
    """Return the space of overrides; of several with one key the last counts.

    Args:
        overrides: with ranges and choices of Hydra's grammar.
        loader: where `glob` finds options.

    Raises:
        ConfigError: an override cannot be read, has no value, or nothing is searched.
    """
    check_repeated_names(overrides)
    try:
        read = OverridesParser.create(loader).parse_overrides(list(overrides))
    except HydraException as error:
        raise composition_error(error, overrides) from None
    parts = {one.key_or_group: dimension_of(one) for one in read}
    found = [part for part in parts.values() if isinstance(part, Dimension)]
    if not found:
        raise ConfigError(
            "hydra/sweeper=optuna has nothing to search: give a key several values, for example "
            "'recipe.lr=tag(log,interval(1e-3,1e-1))' or method.temperature=1,2,4",
            code="empty_sweep",
            key="hydra/sweeper",
        )
    ordered = [*(d for d in found if d.is_group), *(d for d in found if not d.is_group)]
    return Space(tuple(ordered), tuple(part for part in parts.values() if isinstance(part, FixedKey)))


def dimension_of(read: Override) -> Dimension | FixedKey:
    """Return an override as a dimension, or as a key with one value.

    Raises:
        ConfigError: it has no value, or one that cannot be searched.
    """
    key, element = read.key_or_group, read.get_key_element()
    if not read.is_sweep_override():
        assert read.input_line is not None
        return FixedKey(key, read.input_line)
    sweep = read.value()
    tags = set(getattr(sweep, "tags", ()))
    if tags - {LOG} or (LOG in tags and not isinstance(sweep, IntervalSweep | RangeSweep)):
        raise problem(read, "the only tag is log, of an interval or a range: tag(log,interval(1e-3,1e-1))")
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        dimension = Dimension(
            key, element, low=sweep.start, high=sweep.end, step=1 if whole else None, log=LOG in tags, whole=whole
        )
        return check_range(read, dimension)
    texts = list(dict.fromkeys(values_of(read)))
    if not texts:
        raise ConfigError(why_empty(read), code="empty_sweep", key=key)
    if len(texts) == 1:
        return FixedKey(key, f"{element}={texts[0]}")
    if read.value_type is ValueType.RANGE_SWEEP and isinstance(sweep, RangeSweep) and not sweep.shuffle:
        whole = all("." not in text and "e" not in text for text in texts)
        numbers = sorted(float(text) for text in texts)
        return check_range(read, Dimension(
            key, element, low=numbers[0], high=numbers[-1], step=abs(float(sweep.step or 1)), log=LOG in tags,
            whole=whole,
        ))  # fmt: skip
    return Dimension(key, element, tuple(texts))


def check_range(read: Override, dimension: Dimension) -> Dimension:
    """Return a range of numbers that can be searched.

    Raises:
        ConfigError: it is empty, not finite, or has no logarithm.
    """
    low, high = dimension.low, dimension.high
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise problem(read, "an interval begins with its lower end, and both are finite: interval(1e-3,1e-1)")
    if dimension.log and low <= 0:
        raise problem(read, "a range with the tag log must begin above 0")
    if dimension.log and dimension.step is not None and not (dimension.whole and dimension.step == 1):
        raise problem(read, "a range with the tag log has whole numbers in steps of 1; use an interval, or choice(a,b)")
    return dimension


def problem(read: Override, remedy: str) -> ConfigError:
    return ConfigError(f"{read.input_line}: {remedy}", code="unreadable_override", key=read.key_or_group)
