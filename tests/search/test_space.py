"""Spaces of a search, read from overrides."""

from typing import Any

import pytest

from kdbench.errors import ConfigError
from kdbench.search.settings import derived_seed, storage_url
from kdbench.search.space import Dimension, read_space


def dimension(text: str) -> Dimension:
    (found,) = read_space([text]).dimensions
    return found


@pytest.mark.parametrize(
    ("text", "described", "size"),
    [
        ("recipe.lr=interval(0.1,1)", "float 0.1 to 1", None),
        ("recipe.lr=tag(log,interval(1e-3,1e-1))", "float 0.001 to 0.1, log", None),
        ("recipe.epochs=int(interval(1,8))", "int 1 to 8, step 1", 8),
        ("recipe.epochs=tag(log,int(interval(1,8)))", "int 1 to 8, step 1, log", 8),
        ("recipe.epochs=range(1,9,3)", "int 1 to 7, step 3", 3),
        ("recipe.epochs=range(10,1,-3)", "int 4 to 10, step 3", 3),
        ("method.alpha=range(0.0,1.0,0.25)", "float 0 to 0.75, step 0.25", 4),
        ("method.temperature=1,2,4", "choice(1,2,4)", 3),
        ("method.temperature=choice(1,2,2)", "choice(1,2)", 2),
        ("method.stages=choice([layer1],[layer1,layer2])", "choice([layer1],[layer1,layer2])", 2),
        ("method.beta=null,'a b'", "choice(null,a b)", 2),
        ("+student.width=1,2", "choice(1,2)", 2),
    ],
)
def test_hydra_s_grammar_gives_the_values(text: str, described: str, size: int | None) -> None:
    found = dimension(text)
    assert found.describe().replace("'", "") == described
    assert found.size == size
    if size is not None:
        assert len(found.values()) == size


def test_a_range_ends_before_its_stop_as_in_a_sweep() -> None:
    assert dimension("recipe.epochs=range(1,9,2)").values() == [1, 3, 5, 7]
    assert dimension("method.alpha=range(0.0,1.0,0.25)").values() == [0.0, 0.25, 0.5, 0.75]


def test_the_override_of_a_value_is_that_of_its_key() -> None:
    assert dimension("+student.width=1,2").text("2") == "+student.width=2"
    assert dimension("recipe.lr=interval(0.1,1)").text(0.25) == "recipe.lr=0.25"


def test_single_values_are_shared_and_the_last_of_a_key_counts() -> None:
    space = read_space(["recipe.lr=1,2", "method.temperature=choice(4)", "recipe.lr=3,4", "data=shapes"])
    assert [d.describe() for d in space.dimensions] == ["choice(3,4)"]
    assert [one.text for one in space.fixed] == ["method.temperature=4", "data=shapes"]


def test_options_are_drawn_first_and_combined() -> None:
    space = read_space(["recipe.lr=interval(0.1,1)", "method=ce,logit", "student=resnet8,resnet14"])
    assert [d.key for d in space.dimensions] == ["method", "student", "recipe.lr"]
    assert len(list(space.combinations())) == 4
    within = space.within({"method": "ce"})
    assert [d.key for d in within.dimensions] == ["student", "recipe.lr"]
    assert [one.text for one in within.fixed] == ["method=ce"]


@pytest.mark.parametrize(
    ("text", "value", "held"),
    [
        ("recipe.lr=interval(0.1,1)", 0.5, 0.5),
        ("recipe.lr=interval(0.1,1)", 2, None),
        ("recipe.lr=interval(0.1,1)", None, None),
        ("recipe.lr=interval(0,1)", True, None),
        ("recipe.epochs=range(1,9,3)", 4, 4),
        ("recipe.epochs=range(1,9,3)", 5, None),
        ("method.temperature=1,2,4", 2.0, "2"),
        ("method.temperature=1,2,4", 3, None),
        ("method.stages=choice([layer1],[layer2])", ["layer2"], "[layer2]"),
        ("method.beta=null,1", None, "null"),
    ],
)
def test_a_default_is_recognised_where_the_space_has_it(text: str, value: Any, held: Any) -> None:
    assert dimension(text).holding(value) == held


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("recipe.lr=interval(1,0.1)", "unreadable_override"),
        ("recipe.lr=interval(1,1)", "unreadable_override"),
        ("recipe.lr=interval(1,inf)", "unreadable_override"),
        ("recipe.lr=tag(log,interval(0,1))", "unreadable_override"),
        ("recipe.lr=tag(logarithmic,interval(1,2))", "unreadable_override"),
        ("recipe.lr=tag(log,choice(1,2))", "unreadable_override"),
        ("recipe.epochs=tag(log,range(1,9,2))", "unreadable_override"),
        ("recipe.epochs=range(5,5)", "empty_sweep"),
        ("recipe.epochs=range(1,5,step=0)", "unreadable_override"),
        ("recipe.lr=interval(1,", "unreadable_override"),
        ("recipe.lr=0.1", "empty_sweep"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(text: str, code: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_space([text])
    assert raised.value.code == code


def test_a_draw_depends_on_what_was_drawn_before_and_not_on_the_process() -> None:
    assert derived_seed(0, "a", 3) == derived_seed(0, "a", 3)
    assert (
        len({derived_seed(0, "a", 3), derived_seed(1, "a", 3), derived_seed(0, "b", 3), derived_seed(0, "a", 4)}) == 4
    )


def test_a_storage_is_a_file_or_a_url(tmp_path: Any) -> None:
    assert storage_url(None, tmp_path / "s.db") == f"sqlite:///{tmp_path}/s.db"
    assert storage_url(f"{tmp_path}/x.db", tmp_path) == f"sqlite:///{tmp_path}/x.db"
    assert storage_url(f"{tmp_path}/x.journal", tmp_path) == f"journal:///{tmp_path}/x.journal"
    assert storage_url("postgresql://host/base", tmp_path) == "postgresql://host/base"
