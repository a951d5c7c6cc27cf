"""Overrides as text: what is written is read back as the same value, and sweeps expand as `kdbench -m` expands them."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kdbench.config import compose
from kdbench.errors import ConfigError
from kdbench.sweep.overrides import expand, key_of, options_of, override, value_of
from tests.conftest import rest_wide

TEXTS = [
    "layer1", "a b", " a", "a,b", "(x)", "f(x, y)", "it's", 'say "x"', "'", "a=b", "$", "$HOME", "${seed}", "${",
    "\\${seed}", "~", "~/runs", "Möbel", "模型", "", "null", "NULL", "1e-3", "1e3", "-1", "0", "true", "False", "nan",
    "-inf", "[a]", "{a: 1}", "]", "a:b", "a\\b", "a\\", "\\'", "\\\\'", "a#b", "100%", "a@b", "a*b", "?", "|", "+x",
    "-x", "a;b", "a\tb", "a\nb", "range(1,3)", "choice(a,b)", "/tmp/R&D (1)/data", "a.b-c_d/e", ".5",
]  # fmt: skip
PLAIN_VALUES = (
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.sampled_from(TEXTS)
) | st.text(max_size=8)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True).filter(
    lambda key: key.lower() not in ("null", "true", "false", "nan", "inf")
)
VALUES = st.recursive(
    PLAIN_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=6
)


def literal(value: Any) -> Any:
    """Return a value as OmegaConf gives it once interpolations are resolved."""
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # type: ignore[index]  # a mapping


def pasted(*overrides: str) -> list[str]:
    """Return the overrides that `kdbench -m` receives from a printed command line."""
    line = shlex.join(["kdbench", "-m", *overrides])
    return list(get_args_parser().parse_args(shlex.split(line)[1:]).overrides)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_any_characters_is_one_value_and_stays_a_text(text: str) -> None:
    (run,) = expand(pasted(override("method.name", text)))
    assert literal(value_of(run[0])) == text


@settings(max_examples=20, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3))
@example([[["layer1"], ["layer1", "layer2"]]])
@example([["layer1"], ["layer1", "layer2"]])
@example(["${", "a\\${b}", {"a": "${b}"}])
@example([1, 1.0, True, "1", "1.0", "true", None, "null", ""])
def test_values_survive_a_printed_command_line(values: list[Any]) -> None:
    runs = expand(pasted(override("seed", 1, 2), override("method.x", *values)))
    assert len(runs) == 2 * len(values)
    found = [literal(value_of(text)) for _, text in runs]
    assert list(map(repr, found)) == list(map(repr, [*values, *values]))


@pytest.mark.parametrize("key", ["true", "é", "1.5x'", ""])
def test_a_value_that_has_no_text_in_hydras_grammar_is_refused(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        override("student.stages", {key: "layer1"})
    assert (error.value.code, error.value.key) == ("unreadable_override", "student.stages")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("method.stages=[layer1],[layer1,layer2]", ["[layer1]", "[layer1,layer2]"]),
        ("method.stages=[[layer1],[layer1,layer2]]", ["[[layer1],[layer1,layer2]]"]),
        ("seed=range(0,3)", ["0", "1", "2"]),
        ("recipe.lr=range(0.1,0.3,step=0.1)", ["0.1", "0.2"]),
        ("method=choice(ce,logit)", ["ce", "logit"]),
        ("method=sort(logit,ce)", ["ce", "logit"]),
        ("pair=glob(resnet20_*)", ["resnet20_resnet14", "resnet20_resnet8"]),
        ("student=glob(resnet8*,exclude=*x4)", ["resnet8"]),
        ("output_root='a,b'", ["'a,b'"]),
        ("output_root='a,b','(c)'", ["'a,b'", "'(c)'"]),
        ("student={a:[1,2],b:'x,y'}", ["{a:[1,2],b:'x,y'}"]),
        ("report=", [""]),
        ("recipe.clip_norm=null,1", ["null", "1"]),
    ],
)
def test_sweeps_expand_by_hydras_grammar(text: str, values: list[str]) -> None:
    key = key_of(text)
    assert expand([text]) == [(f"{key}={value}",) for value in values]


def test_the_last_key_varies_fastest_and_the_last_value_of_a_key_counts() -> None:
    assert expand(["seed=0,1", "method=ce,logit", "seed=3,4"]) == [
        ("seed=3", "method=ce"), ("seed=3", "method=logit"), ("seed=4", "method=ce"), ("seed=4", "method=logit"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code", "key"),
    [
        ("student=glob(alexnet*)", "empty_sweep", "student"),
        ("seed=range(3,3)", "empty_sweep", "seed"),
        ("seed=range(3,5,0)", "unreadable_override", "seed"),
        ("recipe.lr=range(0.1,0.5,0)", "unreadable_override", "recipe.lr"),
        ("recipe.lr=interval(0.1,0.5)", "unreadable_override", "recipe.lr"),
        ("output_root=(a)", "unreadable_override", "output_root"),
        ("seed", "unreadable_override", "seed"),
    ],
)
def test_a_sweep_without_values_or_without_sense_is_refused(text: str, code: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        expand(["method=ce", text])
    assert (error.value.code, error.value.key) == (code, key)


FOLDERS = [
    "R&D (1)", "${HOME}, it's", "a\\b", "Möbel ü", 'say "x"', "a#b", "100%", "%20", "a,b", "[x]", "{y}", "a=b",
    "${HOME}", "it's", "end\\", "~x", "$x",
]  # fmt: skip


@pytest.mark.parametrize("name", rest_wide(FOLDERS, 3))
def test_a_folder_of_options_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "pair").mkdir(parents=True)
    (tmp_path / name / "pair" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /teacher: resnet20\n  - override /student: resnet14\n"
    )
    assert compose(["pair=mine", "method=logit"], tmp_path / name).student.name == "resnet14"
    assert ("pair=mine",) in expand(["pair=glob(*)"], options_of(tmp_path / name))
