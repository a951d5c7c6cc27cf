"""Keys of runs that begin with other runs, and configs of them that are read back."""

import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdbench.config import RunConfig
from kdbench.config.derived import MEASURE, CompressConfig, MeasureConfig, ParentConfig
from kdbench.errors import ConfigError
from kdbench.pipeline.chain import Link, compress_config, derived_config, link_of
from kdbench.pipeline.steps import compose_compression, compose_measurement
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import baseline_key, group_key, identity_of, run_key
from kdbench.rundir.recorded_config import read_config
from kdbench.runner.run import resolve_run
from tests.derived import Copies, summary_of

DERIVED = ("kind", "parent", "compress", "measure", "trust")
Small = Callable[..., RunConfig]


@pytest.fixture
def config(small: Small) -> RunConfig:
    return resolve_run(small("method=ce", "teacher=none"))[0]


def compression(config: RunConfig, name: str, *settings: str, parent: ParentConfig | None = None) -> RunConfig:
    """Return the run that compresses a planned run's network."""
    link = link_of(config)
    found = compress_config(link, compose_compression(name, settings, None), config)
    return dataclasses.replace(found, parent=parent or link.as_parent())


def measurement(config: RunConfig, together: list[str], device: str = "AMD EPYC", *settings: str) -> RunConfig:
    measure = dataclasses.replace(compose_measurement(settings, None), device=device, together=together)
    return dataclasses.replace(derived_config(link_of(config), MEASURE, config), measure=measure)


def group_of(config: RunConfig) -> str:
    return group_key(identity_of(config), config)


def test_an_ordinary_run_has_no_keys_of_derived_ones(config: RunConfig) -> None:
    assert not {*DERIVED} & {*config.node()}
    assert not {*DERIVED} & {*identity_of(config)}


def test_the_key_of_a_compression_depends_on_parent_and_settings(config: RunConfig) -> None:
    key = run_key(compression(config, "magnitude", "sparsity=0.5"))
    others = [
        compression(config, "magnitude", "sparsity=0.6"),
        compression(config, "structured", "ratio=0.5"),
        compression(dataclasses.replace(config, init_seed=7, data_seed=7, seed=7), "magnitude", "sparsity=0.5"),
        compression(config, "magnitude", "sparsity=0.5", parent=ParentConfig("0" * 16, "1" * 16)),
    ]
    assert len({key, *map(run_key, others)}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"init_seed": 5, "data_seed": 6},
        {"output_root": "elsewhere"},
        {"overwrite": True},
        {"on_busy": "skip"},
        {"trust": ["mine"]},
    ],
)
def test_the_key_of_a_compression_depends_on_nothing_else(config: RunConfig, change: dict[str, Any]) -> None:
    run = compression(config, "magnitude", "sparsity=0.5")
    assert run_key(dataclasses.replace(run, **change)) == run_key(run)
    named = dataclasses.replace(run.student, name="another", arguments={})
    recipe = dataclasses.replace(run.recipe, epochs=99)
    runtime = dataclasses.replace(run.runtime, threads=7)
    assert run_key(dataclasses.replace(run, student=named, recipe=recipe, runtime=runtime)) == run_key(run)
    other_name = CompressConfig("mine", run.compress.target, run.compress.params) if run.compress else None
    assert run_key(dataclasses.replace(run, compress=other_name)) == run_key(run)


@pytest.mark.slow
def test_runs_of_other_seeds_share_the_group_and_not_the_key(config: RunConfig, small: Small) -> None:
    seeds = [resolve_run(small("method=ce", "teacher=none", f"seed={seed}"))[0] for seed in (0, 1, 2)]
    for derive in (
        lambda run: compression(run, "magnitude"),
        lambda run: compression(compression(run, "structured"), "int8"),
        lambda run: measurement(run, [link_of(run).key]),
        lambda run: measurement(compression(run, "fp16"), [link_of(run).key]),
    ):
        runs = [derive(run) for run in seeds]
        assert len({run_key(run) for run in runs}) == 3
        assert len({group_of(run) for run in runs}) == 1
    assert group_of(compression(config, "magnitude")) != group_of(compression(config, "structured"))
    assert group_of(compression(config, "fp16")) != group_of(compression(config, "bf16"))


def test_the_key_of_a_measurement_depends_on_the_processor_and_on_what_is_measured_with_it(config: RunConfig) -> None:
    key = link_of(config).key
    runs = [
        measurement(config, [key]),
        measurement(config, [key, "f" * 16]),
        measurement(config, [key], "Another"),
        measurement(config, [key], "AMD EPYC", "rounds=9"),
        measurement(config, [key], "AMD EPYC", "threads=2"),
    ]
    assert len({run_key(run) for run in runs}) == len(runs)
    assert group_of(runs[0]) == group_of(runs[1]) != group_of(runs[2])


def test_derived_runs_have_no_baseline(config: RunConfig) -> None:
    assert baseline_key(identity_of(compression(config, "magnitude"))) is None
    assert baseline_key(identity_of(measurement(config, ["0" * 16]))) is None
    assert baseline_key(identity_of(config)) is not None


@pytest.mark.slow
def test_a_teacher_named_as_a_run_gives_the_key_of_having_it_trained(small: Small, copies: Copies) -> None:
    run = copies()["root"]
    as_run = small("data.num_train=200", f"teacher.run={run}")
    assert as_run.teacher is not None
    trained = small("data.num_train=200", "teacher=resnet8", "teacher.widths=[8,8,16,32]", "teacher.recipe.epochs=2")
    assert trained.teacher is not None
    by_run, by_training = (resolve_run(config)[0] for config in (as_run, trained))
    assert identity_of(by_run) == identity_of(by_training)
    assert run_key(by_run) == run_key(by_training)


@pytest.mark.slow
def test_the_key_as_text_and_the_folder_name_the_same_run(small: Small, copies: Copies) -> None:
    run = copies("structured")["structured"]
    key = summary_of(run).run_key
    for make in (
        lambda text: small("method=ce", "teacher=none", f"parent='{text}'"),
        lambda t: small(f"teacher.run='{t}'"),
    ):
        assert run_key(resolve_run(make(str(run)))[0]) == run_key(resolve_run(make(key))[0])


# Configs that are read back


@pytest.mark.slow
def test_the_config_of_every_kind_reads_back_with_the_same_key(small: Small, copies: Copies, tmp_path: Path) -> None:
    runs = copies("tuned", "magnitude", "bf16")
    for run in runs.values():
        assert run_key(read_config(run / "config.yaml")) == summary_of(run).run_key
    config = read_config(runs["tuned"] / "config.yaml")
    link = Link(config, summary_of(runs["tuned"]).run_key, "1" * 16)
    measure = dataclasses.replace(compose_measurement([], None), device="AMD EPYC", together=[link.key])
    planned = dataclasses.replace(derived_config(link, MEASURE, config), measure=measure)
    directory = RunDirectory(tmp_path / "measured", run_key(planned))
    directory.create()
    directory.write_config(planned)
    again = read_config(directory.config)
    assert run_key(again) == run_key(planned)
    assert isinstance(again.measure, MeasureConfig)
    assert again.node() == planned.node()


@pytest.mark.parametrize("place", ["compress", "base", "base of base"])
def test_a_config_that_names_foreign_code_is_refused_without_import(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run = copies("structured")["structured"]
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    if place == "compress":
        tree["compress"]["_target_"] = "evil_module.Thing"
    else:
        base = tree["student"]["base"]
        if place == "base of base":
            tree["student"]["base"] = {
                "_target_": "kdbench.models.compressed.masked", "_partial_": True, "base": copy.deepcopy(base),
            }  # fmt: skip
            base = tree["student"]["base"]["base"]
        base["_target_"] = "evil_module.network"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as error:
        read_config(run / "config.yaml")
    assert error.value.code == "untrusted"
    assert error.value.key.endswith("_target_")
    assert "evil_module" not in sys.modules
