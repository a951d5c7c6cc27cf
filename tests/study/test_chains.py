"""Chains of compressions and measurements as stages of a study."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdbench.errors import ConfigError
from kdbench.rundir.summary import RunSummary, read_unverified
from kdbench.runner import measuring
from kdbench.study.command import study as study_command
from kdbench.study.read import read_study
from kdbench.study.stages import ChainConfig
from tests.conftest import rest_wide

CHAINS = """
question: What is left of a network that is made small?
overrides:
  [data=shapes, data.num_train=64, data.num_val=50, data.num_test=60, recipe=smoke, runtime.device=cpu,
   runtime.precision=fp32, recipe.batch_size=32, teacher.recipe.batch_size=32, 'student.widths=[8,8,16,32]']
selection_seeds: []
final_seeds: [0, 1]
teacher_seeds: [0]
select_baseline: false
stages:
  networks:
    students: [resnet8]
    seeds: ${final_seeds}
  pruned:
    chains:
      zeros: {of: [networks], steps: [magnitude], settings: [magnitude.sparsity=0.5]}
      small: {of: [networks], networks: [resnet8], steps: [structured, finetune], settings: [finetune.recipe.epochs=1]}
  measured:
    measures: [networks, pruned]
    overrides: [rounds=3, 'batches=[1]', 'engines=[torch]']
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "study").mkdir(parents=True)
    (tmp_path / "own" / "study" / "chains.yaml").write_text(CHAINS)
    return tmp_path / "own"


def edited(folder: Path, stage: str, **changes: Any) -> None:
    file = folder / "study" / "chains.yaml"
    content = yaml.safe_load(file.read_text())
    content["stages"].setdefault(stage, {}).update(changes)
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def read(folder: Path, *arguments: str) -> Any:
    return read_study(["study=chains", "output_root=out", *arguments], folder)


def test_chains_and_measures_are_read(folder: Path) -> None:
    stages = read(folder).config.stages
    assert stages["pruned"].chains["zeros"] == ChainConfig(
        of=["networks"], steps=["magnitude"], settings=["magnitude.sparsity=0.5"]
    )
    assert stages["measured"].measures == ["networks", "pruned"]
    assert stages["measured"].overrides == ["rounds=3", "batches=[1]", "engines=[torch]"]


ZEROS = {"of": ["networks"], "steps": ["magnitude"]}


@pytest.mark.parametrize(
    ("stage", "changes", "code", "key"),
    [
        (
            "pruned",
            {"chains": {"zeros": ZEROS | {"of": ["nowhere"]}}},
            "unknown_stage",
            "stages.pruned.chains.zeros.of",
        ),
        (
            "pruned",
            {"chains": {"zeros": ZEROS | {"of": ["measured"]}}},
            "unknown_stage",
            "stages.pruned.chains.zeros.of",
        ),
        ("pruned", {"chains": {"zeros": ZEROS | {"of": ["pruned"]}}}, "unknown_stage", "stages.pruned.chains.zeros.of"),
        ("measured", {"measures": ["networks", "later"]}, "unknown_stage", "stages.measured.measures"),
        ("measured", {"students": ["resnet8"], "seeds": [0]}, "mismatch", "stages.measured.measures"),
        ("measured", {"chains": {"zeros": ZEROS}}, "mismatch", "stages.measured.measures"),
        ("pruned", {"chains": {"zeros": ZEROS | {"of": []}}}, "out_of_range", "stages.pruned.chains.zeros.of"),
        ("pruned", {"chains": {"zeros": ZEROS | {"steps": []}}}, "out_of_range", "stages.pruned.chains.zeros.steps"),
        ("pruned", {"chains": {"zeros": ZEROS | {"step": ["x"]}}}, "unknown_key", "stages.pruned.chains.zeros.step"),
    ],
)
def test_chains_that_cannot_begin_are_refused(
    folder: Path, stage: str, changes: dict[str, Any], code: str, key: str
) -> None:
    edited(folder, stage, **changes)
    with pytest.raises(ConfigError) as error:
        read(folder)
    assert error.value.code == code
    assert error.value.key.removeprefix("study=chains.") == key
    assert "\n" not in str(error.value)


def test_a_stage_that_chooses_has_no_chains(folder: Path) -> None:
    edited(folder, "pruned", pairs=["resnet20_resnet8"], methods={"logit": None}, seeds=[0], choose="best_val_acc")
    with pytest.raises(ConfigError) as error:
        read(folder)
    assert (error.value.code, error.value.key) == ("mismatch", "stages.pruned.choose")


def command(folder: Path, *arguments: str) -> int:
    return study_command(["study=chains", "output_root=out", "--config-dir", str(folder), *arguments])


@pytest.mark.parametrize(
    ("chain", "code"),
    rest_wide(
        [
            (ZEROS | {"steps": ["int8", "structured"]}, "wrong_order"),
            (ZEROS | {"steps": ["nonsense"]}, "unknown_option"),
            (ZEROS | {"settings": ["structured.ratio=0.5"]}, "unused_key"),
            (ZEROS | {"networks": ["resnet20"]}, "mismatch"),
        ]
    ),
)
def test_a_chain_that_is_not_possible_is_refused_before_anything_runs(
    folder: Path, chain: dict[str, Any], code: str
) -> None:
    edited(folder, "pruned", chains={"zeros": chain})
    with pytest.raises(ConfigError) as error:
        command(folder, "--dry-run")
    assert error.value.code == code
    assert not (folder.parent / "out").exists()


@pytest.mark.slow
def test_a_study_executes_its_chains_and_measures_all_networks_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "peak_memory", lambda *_: 12345)
    assert command(folder) == 0, capsys.readouterr().out
    runs: dict[str, list[RunSummary]] = {}
    for path in (folder.parent / "out" / "runs").iterdir():
        summary = read_unverified(path)[0]
        runs.setdefault(f"{summary.kind} {summary.student}", []).append(summary)
    counts = {name: len(found) for name, found in runs.items()}
    networks = ("resnet8", "resnet8-magnitude", "resnet8-structured", "resnet8-structured-tuned")
    trained = ("resnet8", "resnet8-structured-tuned")
    assert counts == {
        **{f"{'train' if name in trained else 'compress'} {name}": 2 for name in networks},
        **{f"measure {name}": 2 for name in networks},
    }
    together = {tuple((run.measurement or {})["together"]) for name in networks for run in runs[f"measure {name}"]}
    keys = {
        run.run_key for name in networks for kind in ("train", "compress") for run in runs.get(f"{kind} {name}", [])
    }
    assert together == {tuple(sorted(keys))}
    assert all(run.sparsity == pytest.approx(0.5, abs=1e-3) for run in runs["compress resnet8-magnitude"])
    capsys.readouterr()
    assert command(folder) == 0
    assert "16 of 16 runs done" in capsys.readouterr().out
    (report,) = (folder.parent / "out" / "studies").glob("*/report/report.html")
    assert report.stat().st_size > 10_000
