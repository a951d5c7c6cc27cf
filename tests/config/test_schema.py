"""Sections declared as dataclasses: which values they accept, and which key an error refers to."""

import math
from dataclasses import dataclass, field

import pytest

from kdbench.config.schema import number, one_of, optional, setting, typed, whole
from kdbench.errors import ConfigError


@dataclass
class Inner:
    rate: float = number(0, 1, above=True)


@dataclass
class Section:
    steps: int = whole(1)
    mode: str = one_of("fast", "slow")
    limit: float | None = optional(number(0))
    switch: bool = setting()
    inner: Inner = field(default_factory=Inner)


RIGHT = {"steps": 2, "mode": "fast", "limit": None, "switch": True, "inner": {"rate": 1.0}}


def test_right_values_become_an_instance():
    section = typed(Section, RIGHT, "here")
    assert section == Section(2, "fast", None, True, Inner(1.0))


@pytest.mark.parametrize(
    ("change", "code", "key"),
    [
        ({"steps": 0}, "out_of_range", "here.steps"),
        ({"steps": 2**63}, "out_of_range", "here.steps"),
        ({"steps": "many"}, "wrong_type", "here.steps"),
        ({"steps": None}, "wrong_type", "here.steps"),
        ({"steps": 1.5}, "wrong_type", "here.steps"),
        ({"mode": "medium"}, "out_of_range", "here.mode"),
        ({"limit": -1}, "out_of_range", "here.limit"),
        ({"limit": math.nan}, "out_of_range", "here.limit"),
        ({"limit": math.inf}, "out_of_range", "here.limit"),
        ({"switch": 1}, "wrong_type", "here.switch"),
        ({"switch": "yes"}, "wrong_type", "here.switch"),
        ({"inner": {"rate": 0.0}}, "out_of_range", "here.inner.rate"),
        ({"inner": {"rate": 1.1}}, "out_of_range", "here.inner.rate"),
        ({"inner": {"rte": 1}}, "unknown_key", "here.inner.rte"),
        ({"inner": 3}, "wrong_type", "here.inner"),
        ({"stepz": 1}, "unknown_key", "here.stepz"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_key(change, code, key):
    with pytest.raises(ConfigError) as error:
        typed(Section, RIGHT | change, "here")
    assert (error.value.code, error.value.key) == (code, key)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["steps", "switch"])
def test_a_missing_value_is_an_error(name):
    with pytest.raises(ConfigError) as error:
        typed(Section, {key: value for key, value in RIGHT.items() if key != name})
    assert (error.value.code, error.value.key) == ("missing_value", name)
