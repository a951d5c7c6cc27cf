"""No command line ends in a traceback: it runs, or it is refused in one line before anything is written.

Command lines are composed at random from the options in conf/, so that new options and keys are included without an
edit here. KDBENCH_CONFIGS is their number, KDBENCH_FAULTS_SEED selects them, and KDBENCH_FAULTS_RECORD is a JSON file
to which the counts are written.
"""

import csv
import functools
import json
import math
import os
import pickle
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kdbench import cli
from kdbench.bench import execute as bench
from kdbench.config import CONF_DIR, compose
from kdbench.config.options import groups, options
from kdbench.errors import RunError
from kdbench.models import build
from kdbench.rundir.summary import read_summary
from kdbench.system import signals
from kdbench.teachers import cache, store
from tests.conftest import SMALL, composed_once, same_root_logger
from tests.networks import SPEC

NUM_EXAMPLES = int(os.environ.get("KDBENCH_CONFIGS", "30"))
SEED = int(os.environ.get("KDBENCH_FAULTS_SEED", "0"))
GIVEN = "../../given"
"""Where a command finds the files made for it, from its own working directory."""

ODD = (
    "0", "-1", "0.5", "1.5", "2", "100", "1e-9", "1e9", "99999999999999999999", "nan", "inf", "-inf", "null",
    "true", "off",
    "auto", "none", "", "''", "' '", "text", "résumé", "層", "'a b'", '"it\'s"', "a\nb", "\"a\nb\"", "x" * 3000,
    "\udcff",
    "[]", "[1,2]", "[a,b]", "[[1]]", "{}", "{a:1}", "{a:{b:1}}", "[1", "{a", "'", "a,b", "1:30", "..", ".",
    "/dev/null",
    "/dev/null/x", "~nobody-here/x", "/proc/none", f"{GIVEN}/damaged.pth", f"{GIVEN}", "cuda:99", "cuda",
    "fp16", "bf16", "cuda:",
    "${seed}", "${recipe}", "${nothing}", "${nothing.here}", "${recipe.lr}", "${oc.env:NOTHING_HERE}",
    "${oc.nothing:1}", "${",
    "${.lr}", "${hydra:job.name}", "choice(1,2)", "range(1,3)", "glob(*)", "sort(3,1)", "int(3)", "shuffle(1,2)",
)  # fmt: skip
"""Values that few keys accept, or none."""
TARGETS = (
    "no.such.path", "kdbench", "kdbench.run", "kdbench.runner.run.Run", "kdbench.nothing", "builtins.print",
    "builtins.int", "math.pi", "torch.nn.Module",
    "torch.nn.Identity", "torchvision.models.resnet18", "torchvision.models.resnet.conv3x3",
    "kdbench.methods.Method",
    "kdbench.methods.base.Weights", "kdbench.methods.logit.LogitDistillation", "kdbench.methods.logit",
    "..a", "kdbench.", "a b",
)  # fmt: skip
WEIGHTS = (
    *["fits.pth"] * 3, "missing.pth", "damaged.pth", "damaged.safetensors", "foreign.pth", "other.pth", "nan.pth",
    "code.pth", "empty.pth", "",
)  # fmt: skip
MALFORMED = (
    "", " ", "=", "=1", "key", "recipe.lr", "recipe.lr=", "recipe..lr=1", ".lr=1", "recipe.=1", "a b=c",
    "recipe.lr==1", "recipe.lr=1,2",
    "a\nb=1", "nothing=\n", "\udcff=1", "@recipe=1", "recipe@other=lab", "recipe@=lab", "pair@student=r50_r18",
    "student/x=1", "~", "~seed",
    "~recipe", "~seed=0", "+", "++", "+=1", "++=1", "+recipe=lab", "++recipe=lab", "+seed=1", "++nothing=1",
    "+nothing.here=1", "seed=1 2",
    "hydra=x", "hydra.nothing=1", "hydra/launcher=nothing", "hydra/sweeper=basic", "+hydra/launcher=nothing",
    "hydra.mode=nothing",
    "hydra.job.chdir=true", "hydra.verbose=true", "hydra.sweeper.params={a:1}", "hydra.searchpath=[nothing]",
    "hydra.job.num=x",
    "study=lab", "model=resnet8", "settings=all", "recipe/settings=all", "_self_=1", "defaults=[]",
    "+defaults=[]", "student.stages=null",
    "student.stages.layer1=nothing", "student.stages.layer1=fc", "++student.stages.new=layer1",
    "++student.stages.layer1=layer1.0.conv1",
    "method.stages=[layer1]", "method.stages=[layer9]", "method.stages=[pooled]", "++teacher.nothing=1",
    "++student.nothing=1",
    "++student.num_classes=3", "++data.more=1", "++method.name=x/y", "++student.name=a\nb", "x" * 3000,
    "x" * 3000 + "=1",
)  # fmt: skip
FLAGS = (
    ("-x",), ("--nothing",), ("--",), ("-m",), ("--run",), ("--cfg",), ("--cfg", "job"), ("--cfg", "nothing"),
    ("--cfg=job", "--resolve"),
    ("--help",), ("--hydra-help",), ("--version",), ("--info", "defaults"), ("--info", "nothing"),
    ("--resolve",), ("--package", "recipe"),
    ("--cfg=job", "--package", "nothing"), ("--cfg=job", "--package", "recipe"), ("--config-name", "nothing"),
    ("--config-name",),
    ("--config-path", "nothing"), ("--config-dir", "nothing"), ("--config-dir", GIVEN), ("--config-dir",),
    ("--config-dir", ""),
    ("--experimental-rerun", "nothing"), ("--cfg=hydra",), ("--cfg=all",), ("--shell-completion",),
)  # fmt: skip

SMALL_VALUES = {
    "recipe.epochs": ("1", "2"), "teacher.recipe.epochs": ("1", "2"),
    "recipe.batch_size": ("32", "16", "20"), "teacher.recipe.batch_size": ("32", "16", "20"),
    "data.num_train": ("64", "40", "52"), "data.num_val": ("10", "25"), "data.num_test": ("10", "25"),
    "runtime.threads": ("1", "2", "auto"), "runtime.device": ("cpu", "auto"),
    "student.depth": ("8", "14"), "student.widths": ("[8,8,8,8]", "[16,16,32,64]"),
    "teacher.depth": ("8", "14"), "teacher.widths": ("[8,8,8,8]", "[16,16,32,64]"),
    "seed": ("0", "1", "2"), "init_seed": ("0", "1"), "data_seed": ("0", "1"), "teacher.seed": ("0", "1"),
    "teacher.cache": ("auto", "on", "off"), "method.normalize": ("none", "teacher_std"),
    "runtime.precision": ("auto", "fp32", "bf16"), "output_root": ("out", "résumé", "'a b'", "out/deep/er"),
    "report": ("null",),
}  # fmt: skip
"""Valid values of keys on which the cost of a run depends, or whose default does not show what is valid."""
NEVER_LARGE, LARGE = ("epochs", "depth", "widths", "arch"), ("1e9", "99", "100")
"""Keys for which any large number is valid and would take as long to execute; and large numbers."""
NOISE = "={}[]()$~+@:,.|/\\'\"<>* \n\t\x85\u2028a0é層"
"""Characters that have a meaning to shells, YAML, Hydra or file systems."""


@functools.cache
def keys() -> dict[str, Any]:
    """Return every key that a run with some option has, and its value there."""
    found: dict[str, Any] = {}
    for group in ("data", "recipe", "runtime", "method"):
        for option in options(group):
            own = {"image_folder": ["data.root=photos"], "torchvision": ["data.dataset=MNIST"]}.get(option, [])
            config = compose(["student=resnet8", "teacher=resnet8", f"{group}={option}", *own])
            found |= dict(flat(config.node()))
    return found


def flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def right_values(key: str) -> tuple[str, ...]:
    """Return values that are valid for `key`, as far as its default shows them."""
    default = keys()[key]
    if key in SMALL_VALUES:
        return SMALL_VALUES[key]
    if isinstance(default, bool):
        return "true", "false"
    if isinstance(default, float):
        return f"{default}", f"{default / 2}", f"{default / 4}"
    return (json.dumps(default),)


def assignment(random: Random) -> str:
    """Return a key with a valid value."""
    key = random.choice([k for k in sorted(keys()) if not k.endswith((".name", "_target_", "data.root"))])
    return f"{key}={random.choice(right_values(key))}"


def odd_override(random: Random) -> str:
    """Return an override that is probably wrong."""
    key, group = random.choice(sorted(keys())), random.choice(sorted(groups()))
    value = noise(random) if random.random() < 0.1 else random.choice(ODD)
    if key.endswith(NEVER_LARGE) and any(large in value for large in LARGE):
        value = "0"
    typo = random.randrange(len(key))
    about_a_key = [
        f"{key}={value}", f"+{key}={value}", f"++{key}={value}", f"~{key}", f"{key[:typo]}{key[typo + 1 :]}=1",
        f"+{key}x=1",
        f"{key}.more=1", f"++{key}.more={value}",
    ]  # fmt: skip
    about_a_group = [
        f"{group}={value}", f"{group}={random.choice(options(random.choice(sorted(groups()))))}", f"+{group}=null",
        f"{random.choice(['student', 'teacher', 'method'])}._target_={random.choice(TARGETS)}", "teacher=none",
        f"teacher.checkpoint={value}",
    ]  # fmt: skip
    kinds = [[f"{key}={value}"], about_a_key, about_a_group, MALFORMED, [noise(random)]]
    return random.choice(random.choices(kinds, [6, 3, 3, 4, 1])[0])


def noise(random: Random) -> str:
    return "".join(random.choices(NOISE, k=random.randint(0, 12)))


def config(random: Random) -> list[str]:
    """Return the overrides of a run: mostly valid, with one or two odd ones in every second config."""
    cheap = ["resnet8"] * 5 + ["resnet14", "resnet20"]
    networks = options("student") if random.random() < 0.03 else cheap
    student, teacher = random.choice(networks), random.choice(networks)
    method = random.choice(["ce", *options("method")])
    if random.random() < (0.3 if method == "ce" else 0.05):
        teacher = "none"
    chosen = [
        f"student={student}", f"teacher={teacher}", f"method={method}",
        f"recipe={random.choice(options('recipe'))}",
        f"data={random.choice(options('data')) if random.random() < 0.1 else 'shapes'}",
    ]  # fmt: skip
    if random.random() < 0.2:  # beside student and teacher, which win over it
        chosen.append(f"pair={random.choice(options('pair'))}")
    if teacher != "none" and random.random() < 0.15:
        chosen.append(f"teacher.checkpoint={GIVEN}/{random.choice(WEIGHTS)}")
    size = {key: random.choice(values) for key, values in SMALL_VALUES.items() if key.startswith(("recipe", "data."))}
    size |= {"teacher.recipe.epochs": "1", "teacher.recipe.batch_size": "32"} if teacher != "none" else {}
    own = OmegaConf.load(CONF_DIR / "method" / f"{method}.yaml")
    right = [assignment(random) for _ in range(random.randint(0, 4))]
    right = [o for o in right if not o.startswith("method.") or o.partition("=")[0].removeprefix("method.") in own]
    right = [o for o in right if not (teacher == "none" and o.startswith("teacher."))]
    overrides = [
        *chosen, *(f"{key}={value}" for key, value in size.items()), "runtime.device=cpu", "output_root=out", *right
    ]  # fmt: skip
    for _ in range(random.choice([0, 0, 0, 1, 2])):
        overrides.insert(random.randint(0, len(overrides)), odd_override(random))
    if random.random() < 0.08:
        place = random.choice([0, random.randint(0, len(overrides))])
        overrides[place:place] = random.choice(FLAGS)
    return overrides


def sweep(random: Random) -> list[str]:
    """Return a config with two values of one or two keys, some of them odd, or an experiment that sweeps."""
    overrides = [override for override in config(random) if not override.startswith("-")]
    if random.random() < 0.15:
        return [*overrides, f"experiment={random.choice(options('experiment'))}", f"report={random.choice(ODD)}"]
    for key in random.sample(sorted(keys()), random.randint(1, 2)):
        values = [*right_values(key), random.choice(ODD)]
        if key.endswith(NEVER_LARGE):
            values = [value for value in values if not any(large in value for large in LARGE)]
        overrides.append(f"{key}={values[0]},{random.choice(values)}")
    return ["-m", *overrides]


@dataclass
class Finished:
    code: int
    out: str
    err: str
    folder: Path
    """Parent of the working directory; it was empty before."""

    @property
    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


Call = Callable[[Callable[[], None], str, Sequence[str]], Finished]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Return a function that calls a command in this process, each time in an empty working directory."""
    make_weights(tmp_path / "given")
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)

    def run(entry: Callable[[], None], program: str, arguments: Sequence[str]) -> Finished:
        folder = tmp_path / "called"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "home").mkdir(parents=True)
        monkeypatch.chdir(folder / "home")
        monkeypatch.setenv("HOME", str(tmp_path))  # libraries keep caches there
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        GlobalHydra.instance().clear()
        store.forget_verified()
        cache.forget_verified()
        signals.uninstall()
        capfd.readouterr()
        code: Any = 0
        with same_root_logger():
            try:
                entry()
            except SystemExit as leaving:
                code = leaving.code
        return Finished(code, *capfd.readouterr(), folder)

    return run


def unreachable(*arguments: Any, **named: Any) -> None:
    raise urllib.error.URLError("no network in a test")


def make_weights(folder: Path) -> None:
    """Write files that a user could give as a teacher; one of them fits resnet8."""
    folder.mkdir()
    fits = build(composed_once(*SMALL).student, SPEC).body.state_dict()
    other = build(composed_once(*SMALL, "student=resnet14").student, SPEC).body.state_dict()
    contents = {
        "fits.pth": fits, "other.pth": other, "foreign.pth": {"a": 1},
        "nan.pth": {name: tensor * math.nan if tensor.is_floating_point() else tensor for name, tensor in fits.items()},
    }  # fmt: skip
    for name, content in contents.items():
        torch.save(content, folder / name)
    (folder / "code.pth").write_bytes(pickle.dumps(os.getcwd))
    (folder / "empty.pth").touch()
    for name in ("damaged.pth", "damaged.safetensors"):
        (folder / name).write_bytes(bytes(range(256)))


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Iterator[dict[str, Counter[str]]]:
    """Count the outcomes, and print them at the end whatever pytest captures."""
    kinds: dict[str, Counter[str]] = {}
    yield kinds
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        for kind, counted in kinds.items():
            print(f"\n{kind}: {', '.join(f'{name} {number}' for name, number in counted.items())}", end="")
    record = os.environ.get("KDBENCH_FAULTS_RECORD")
    if record:
        file = Path(record)
        held = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(held | kinds, indent=2) + "\n")


OUTCOMES = ("tried", "ran", "refused", "failed", "printed")


def check(finished: Finished, arguments: Sequence[str], program: str = "kdbench") -> str:
    """Return the outcome of one call, checked: one line for each job that did not run.

    Raises:
        AssertionError: the call ended in any other way.
    """
    shown = f"{arguments}\nexit code {finished.code}\n{finished.out[-2000:]}\n{finished.err[-4000:]}"
    assert "Traceback" not in finished.out + finished.err, shown
    # torch.compile prints a line of its own where a CUDA toolkit is installed without a device.
    lines = [line for line in finished.err.split("\n")[:-1] if not re.match(r"W\d{4} \d\d:.*torch", line)]
    assert all(line.startswith(f"{program}: error: ") for line in lines), shown
    assert finished.code in (0, 1, 2), shown
    if finished.code == 2:
        assert len(lines) == 1, shown
        assert not finished.files, shown
        return "refused"
    if finished.code == 1:
        assert len(lines) >= 1 if "-m" in arguments or "experiment" in str(arguments) else len(lines) == 1, shown
        return "failed"
    assert not lines, shown
    return "ran" if trained(finished) else "printed"


def trained(finished: Finished) -> bool:
    """Return whether there are finished runs, and check that each made the optimiser steps of its config."""
    summaries = [file for file in finished.files if file.name == "summary.json"]
    for file in summaries:
        summary = read_summary(file.parent)
        if summary.epochs is None:  # weights that were given
            continue
        with (file.parent / "metrics.csv").open() as rows:
            assert len(list(csv.DictReader(rows))) == summary.epochs
        batch_size = summary.recipe["batch_size"]
        steps = summary.epochs * math.ceil(summary.num_train / batch_size)
        assert steps >= 2 or batch_size >= summary.num_train
    return bool(summaries)


def tried(examples: int) -> Callable[[Any], Any]:
    """Run a test with so many examples, the same ones every time, and do not shrink failures, which takes minutes."""

    def decorate(test: Any) -> Any:
        return seed(SEED)(
            settings(
                max_examples=examples, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(test)
        )  # fmt: skip

    return decorate


@dataclass(frozen=True)
class Command:
    """A console command, its flags (None: any value), and the arguments of every call."""

    program: str
    entry: Callable[[], None]
    flags: tuple[tuple[str | None, ...], ...] = ()
    always: tuple[str, ...] = ()


KDBENCH = Command("kdbench", cli.main)
STUDY = Command(
    "kdbench-study", cli.main_study,
    (("--minutes", None), ("--config-dir", None), ("--nothing",), ("stages=[finals]",), ("stages=[nothing]",),
    ("final_seeds=[a]",)),
    ("study=lab", "stages=[teachers]", "--dry-run"),
)  # fmt: skip
REPORT = Command(
    "kdbench-report", cli.main_report,
    (("--out", None), ("--out", "report"), ("--margin", None), ("--select", None), ("--title", None),
    ("--allow-mixed",), ("-x",)),
)  # fmt: skip
BENCH = Command(
    "kdbench-bench", cli.main_bench,
    (("--rounds", None), ("--seconds", None), ("--workers", None), ("--arms", None), ("--set", None),
    ("--out", None), ("-x",)),
    ("student=resnet8", "teacher=resnet8"),
)  # fmt: skip

RANDOMS = st.randoms(use_true_random=True)
"""Drawn piece by piece, examples would mostly repeat pieces of each other."""


def attempt(call: Call, counts: dict[str, Counter[str]], kind: str, command: Command, arguments: list[str]) -> str:
    counted = counts.setdefault(kind, Counter(dict.fromkeys(OUTCOMES, 0)))
    counted["tried"] += 1
    outcome = check(call(command.entry, command.program, arguments), arguments, command.program)
    counted[outcome] += 1
    return outcome


@pytest.mark.wide
@given(random=RANDOMS)
@tried(NUM_EXAMPLES)
def test_every_config_runs_or_is_refused_in_one_line(call, counts, random):
    attempt(call, counts, "configs", KDBENCH, config(random))


@pytest.mark.wide
@given(random=RANDOMS)
@tried(max(1, NUM_EXAMPLES // 10))
def test_every_sweep_prints_one_line_for_each_job_that_does_not_run(call, counts, random):
    attempt(call, counts, "sweeps", KDBENCH, sweep(random))


def other_command(random: Random) -> tuple[Command, list[str]]:
    """Return one of the other commands, with flags and values of which some are wrong."""
    command = random.choice([STUDY, REPORT, BENCH])
    flags = random.choices(command.flags, k=random.randint(0, 3))
    words = random.choices(
        [*MALFORMED, *ODD, f"{GIVEN}/damaged.pth", "@missing", "study=nothing"], k=random.randint(0, 2)
    )
    parts_of = [*flags, *((word,) for word in words)]
    random.shuffle(parts_of)
    arguments = [random.choice(ODD) if part is None else part for parts in parts_of for part in parts]
    return command, [*command.always, *arguments]


@pytest.mark.wide
@given(random=RANDOMS)
@tried(NUM_EXAMPLES)
def test_every_other_command_runs_or_is_refused_in_one_line(call, counts, monkeypatch, random):
    for name in ("measure_case", "measure_lockstep"):
        monkeypatch.setattr(bench, name, nothing_measured)
    attempt(call, counts, "other commands", *other_command(random))


def nothing_measured(*arguments: Any) -> None:
    raise RunError("a test measures nothing", code="not_measured")
