"""Reading a study: its file, the command line, and the folder that both give."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser

from kdbench.config import compose
from kdbench.errors import ConfigError
from kdbench.rundir.identity import teacher_key
from kdbench.runner.run import resolve_run
from kdbench.study.read import read_study
from kdbench.study.stages import Study
from kdbench.study.winners import Winner
from kdbench.sweep.overrides import expand, key_of, value_of
from tests.conftest import rest_wide
from tests.study.conftest import TINY


def winner(pair: str, method: str, override: str) -> Winner:
    return Winner(
        pair=pair, student="-", teacher="-", method=method, overrides=[override], method_params={}, recipe={},
        data={}, score=50.0, runner_up=None, margin=None, tie=False, noise=None, noise_images=None, noise_seeds=None,
        seed_std=None, candidates=[], seed_scores=[],
    )  # fmt: skip


def test_capacity_has_the_runs_of_the_reference_study() -> None:
    study = read_study(["study=capacity"])
    stages = study.config.stages
    pairs = stages["selection"].pairs
    winners = [
        winner(pair, method, f"method.alpha=0.{index}")
        for index, pair in enumerate(pairs, 1)
        for method in ("logit", "feature")
    ]
    counts = {
        title: sum(len(study.expand(s)) for s in study.sweeps_of(stage, winners if stage.winners_of else []))
        for title, stage in stages.items()
    }
    assert counts == {
        "teachers": 9, "selection": 48, "finals": 50, "stem": 6, "stem_teacher": 1, "clipping": 5, "more_teachers": 80,
    }  # fmt: skip
    assert "more_teachers" not in study.stages
    assert [study.count_waiting(stages[title]) for title in ("finals", "clipping", "more_teachers")] == [40, 5, 80]
    assert not set(study.config.selection_seeds) & set(study.config.final_seeds)


def test_teachers_train_by_the_teachers_recipe_so_that_their_students_find_them() -> None:
    study = read_study(["study=capacity", "teacher.recipe.lr=0.05"])
    sweep = study.sweeps_of(study.config.stages["teachers"], [])[0]
    assert "recipe.epochs=200" in sweep
    trained = resolve_run(compose(study.expand(sweep)[3]))[1].key
    student = compose([*study.overrides, "pair=r50_r18", "method=logit"])
    assert trained == teacher_key(resolve_run(student)[0])


@pytest.mark.slow
def test_baselines_get_as_many_selection_runs_as_logit_on_request() -> None:
    study = read_study(["study=capacity", "select_baseline=true"])
    sweeps = study.sweeps_of(study.config.stages["selection"], [])
    (own,) = [sweep for sweep in sweeps if "method=ce" in sweep]
    assert len(study.expand(own)) == 2 * 9
    assert study.count_waiting(study.config.stages["finals"]) == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", rest_wide(["distilled", "self_distillation", "temperature", "capacity", "vgg11", "vit_tiny"])
)
def test_students_of_the_functional_study_learn_from_teachers_that_it_trains(stage: str) -> None:
    study = read_study(["study=functional_resnet18"])
    stages = study.config.stages
    teaching = [sweep for s in stages.values() if s.teachers for sweep in study.sweeps_of(s, [])]
    trained = {resolve_run(compose(run))[1].key for sweep in teaching for run in study.expand(sweep)}
    assert len(trained) == 7
    (logit,) = [sweep for sweep in study.sweeps_of(stages[stage], []) if "method=logit" in sweep]
    assert teacher_key(resolve_run(compose(study.expand(logit)[-1]))[0]) in trained


@pytest.mark.slow
def test_the_functional_study_has_the_runs_that_its_file_states() -> None:
    study = read_study(["study=functional_resnet18"])
    counts = {
        title: sum(len(study.expand(sweep)) for sweep in study.sweeps_of(stage, []))
        for title, stage in study.config.stages.items()
    }
    assert sum(counts[title] for title in study.stages) == 285
    assert {title: count for title, count in counts.items() if title not in study.stages} == {
        "vgg11_teacher": 1, "vgg11": 110, "vgg11_other_seeds": 20,
        "vit_tiny_teacher": 1, "vit_tiny": 110, "vit_tiny_other_seeds": 20,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["capacity", "lab", "functional", "functional_resnet18"])
def test_every_study_that_ships_can_be_read_and_its_sweeps_compose(name: str) -> None:
    study = read_study([f"study={name}"])
    for stage in study.config.stages.values():
        for sweep in study.sweeps_of(stage, []):
            compose(study.expand(sweep)[-1])


# The command line


def label(*arguments: str) -> str:
    return read_study(["study=capacity", *arguments]).label


def test_a_recipe_on_the_command_line_replaces_that_of_the_study() -> None:
    study = read_study(["study=capacity", "recipe=short"])
    assert study.overrides == ("data=cifar10", "recipe=short")
    assert study.changes == {"settings": {}, "overrides": {"recipe": "short"}}


@pytest.mark.parametrize(
    "unchanged",
    rest_wide([
        "on_busy=skip", "overwrite=false", "checkpoint.every_minutes=5", "runtime.threads=1", "runtime=default",
        "output_root=elsewhere", "data.root=/data", "data.download=true", "report=r", "teacher.cache=off",
        "recipe=paper", "final_seeds=[1,2,3,4,5]", "select_baseline=false",
    ], 5),
)  # fmt: skip
def test_what_changes_no_result_is_no_part_of_the_folders_name(unchanged: str) -> None:
    assert label(unchanged) == "capacity"


def test_what_changes_results_is_hashed_into_the_folders_name() -> None:
    changed = label("recipe=short", "data.num_train=100")
    name, _, digest = changed.partition("_")
    assert (name, len(digest)) == ("capacity", 8)
    assert int(digest, 16) >= 0
    others = [
        label("recipe=short"), label("recipe=short", "data.num_train=200"), label("final_seeds=[1,2]"),
        label("select_baseline=true"), label("runtime.precision=bf16"),
    ]  # fmt: skip
    assert len({changed, *others}) == 6


def test_the_folders_name_does_not_depend_on_order_spelling_or_length() -> None:
    expected = label("recipe=short", "data.num_train=100")
    assert label("data.num_train=100", "recipe=short") == expected
    assert label("data.num_train=200", "recipe=short", "data.root=/data", "data.num_train='100'") != expected
    assert label("data.num_train=200", "recipe=short", "data.root=/data", "data.num_train=100") == expected
    assert label("recipe.lr=0.10") == label("recipe.lr=0.1")
    assert len(label(*(f"method.key{n}=a_long_value_of_a_long_key" for n in range(50))).encode()) < 30


@pytest.mark.parametrize(
    ("argument", "settings"),
    [
        ("final_seeds=[3,4]", [3, 4]), ("final_seeds=3,4", [3, 4]), ("final_seeds=range(3,5)", [3, 4]),
        ("final_seeds=[7]", [7]),
    ],
)  # fmt: skip
def test_settings_of_a_study_follow_hydras_grammar(argument: str, settings: list[int]) -> None:
    assert read_study(["study=capacity", argument]).config.final_seeds == settings


@pytest.mark.parametrize("stages", ["stages=[selection,teachers]", "stages=teachers,selection"])
def test_stages_run_in_the_files_order(stages: str) -> None:
    assert read_study(["study=capacity", stages]).stages == ("teachers", "selection")


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        ([], "missing_value", "study"),
        (["study=tinyy"], "unknown_option", "study"),
        (["study=tiny,lab"], "unknown_option", "study"),
        (["study=tiny", "stages=[finale]"], "unknown_stage", "stages"),
        (["study=tiny", "stages=[]"], "unknown_stage", "stages"),
        (["study=tiny", "final_seeds=[-1]"], "out_of_range", "study=tiny.stages.finals.seeds"),
        (["study=tiny", "final_seeds=[0,0]"], "out_of_range", "study=tiny.stages.finals.seeds"),
        (["study=tiny", "final_seeds=x"], "wrong_type", "final_seeds"),
        (["study=tiny", "select_baseline=perhaps"], "wrong_type", "select_baseline"),
        (["study=tiny", "seed"], "unreadable_override", "seed"),
        (["study=tiny", "recipe.lr=0.1,0.2"], "needs_multirun", "recipe.lr"),
        (["study=tiny", "recipe.lr=choice(0.1)"], "needs_multirun", "recipe.lr"),
        (["study=tiny", "teacher.seed=range(0,2)"], "needs_multirun", "teacher.seed"),
        (["study=tiny", "student=glob(*)"], "needs_multirun", "student"),
        (["study=tiny", "output_root=(a)"], "unreadable_override", "output_root"),
        (["study=tiny", "~recipe.lr"], "unreadable_override", "~recipe.lr"),
        (["study=tiny", "~recipe.lr=0.1"], "usage", "recipe.lr"),
        (["study=tiny", "hydra/sweeper=basic"], "usage", "hydra/sweeper"),
        (["study=tiny", "overwrite=true"], "usage", "overwrite"),
        (["study=tiny", "hydra.sweep.dir=x"], "usage", "hydra.sweep.dir"),
    ],
)
def test_mistakes_on_the_command_line_are_refused(studies: Path, arguments: list[str], code: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_study(arguments, studies)
    assert (error.value.code, error.value.key) == (code, key)


def test_a_mistake_in_the_file_names_the_study_beside_settings_of_the_command_line(studies: Path) -> None:
    file = studies / "study" / "tiny.yaml"
    file.write_text(file.read_text().replace("select_baseline: false", "select_baseline: perhaps"))
    with pytest.raises(ConfigError) as error:
        read_study(["study=tiny", "final_seeds=[0,1]"], studies)
    assert (error.value.code, error.value.key) == ("wrong_type", "study=tiny.select_baseline")


@pytest.mark.parametrize(
    ("old", "new", "code", "key"),
    [
        ("choose: best_val_acc", "choose: test_acc_best", "out_of_range", "stages.selection.choose"),
        ("winners_of: selection", "winners_of: teachers", "unknown_stage", "stages.finals.winners_of"),
        ("    students: [resnet8]\n    pairs: [resnet20_resnet8]\n", "", "missing_value", "stages.finals"),
        ("{method.temperature: [2, 4]}", "{method.temperature: 2}", "wrong_type", "stages.selection.methods.logit"),
        ("baseline: {recipe.lr: [0.1, 0.2]}", "baseline: {seed: [1]}", "unknown_key", "stages.selection.baseline"),
        ("    winners_of: selection\n", "", "missing_value", "stages.finals.methods"),
        ("    winners_of: selection", "    winners_of: selection\n    choose: best_val_acc", "mismatch",
         "stages.finals.choose"),
        ("question: Does it work?", "qestion: Does it work?", "unknown_key", "study=tiny.qestion"),
        ("stages:", "stages: [", "invalid_yaml", "study=tiny"),
        ("recipe=smoke", '"recipe=smoke,short"', "needs_multirun", "recipe"),
        ("recipe=smoke", "seed=5", "set_by_study", "overrides"),
        ("{method.temperature: [2, 4]}", "{seed: [2, 4]}", "set_by_study", "stages.selection.overrides"),
        ("    winners_of: selection", "    winners_of: selection\n    overrides: [student=resnet14]", "set_by_study",
         "stages.finals.overrides"),
        ("    winners_of: selection", "    winners_of: selection\n    winning_methods: [feature]", "mismatch",
         "stages.finals.winning_methods"),
        ("    baseline: {recipe.lr: [0.1, 0.2]}\n", "    baseline: {}\n", "mismatch", "select_baseline"),
    ],
)  # fmt: skip
def test_mistakes_in_a_study_are_refused(studies: Path, old: str, new: str, code: str, key: str) -> None:
    assert old in TINY
    (studies / "study" / "tiny.yaml").write_text(TINY.replace(old, new))
    with pytest.raises(ConfigError) as error:
        read_study(["study=tiny", *(["select_baseline=true"] if key == "select_baseline" else [])], studies)
    assert (error.value.code, error.value.key) == (code, key)


# Grids


def selection_of(studies: Path, grid: str) -> tuple[Study, list[tuple[str, ...]]]:
    """Return the study with another grid of logit distillation, and the runs of its selection."""
    (studies / "study" / "tiny.yaml").write_text(TINY.replace("{method.temperature: [2, 4]}", grid))
    study = read_study(["study=tiny"], studies)
    (sweep,) = study.sweeps_of(study.config.stages["selection"], [])
    return study, study.expand(sweep)


@pytest.mark.parametrize(
    ("grid", "values"),
    [
        ("{method.stages: [[layer1], [layer1, layer2]]}", [["layer1"], ["layer1", "layer2"]]),
        ("{method.stages: [[[a, b], c], null]}", [[["a", "b"], "c"], None]),
        ("{student.note: ['a, b', 'R&D (1)']}", ["a, b", "R&D (1)"]),
        ("{student.note: ['', 'null', 'true', '1e-3']}", ["", "null", "true", "1e-3"]),
        ("{recipe.nesterov: [true, false]}", [True, False]),
        ("{recipe.lr: [2e-4, 0.1, 1]}", [0.0002, 0.1, 1]),
        ("{student.stages: [{a: x, b: 'y, z'}]}", [{"a": "x", "b": "y, z"}]),
        ("{student.note: ['\\${seed}']}", ["\\${seed}"]),  # OmegaConf's escape of a literal ${seed}
        ("{recipe.lr: [0.1, '${teacher_seeds}']}", [0.1, [0]]),
    ],
)
def test_each_value_of_a_grid_is_one_run_whatever_it_is(studies: Path, grid: str, values: list[Any]) -> None:
    study, runs = selection_of(studies, grid)
    key = grid[1:].partition(":")[0]
    found = [value_of(text) for run in runs for text in run if key_of(text) == key]
    assert list(map(repr, found)) == list(map(repr, values))
    (sweep,) = study.sweeps_of(study.config.stages["selection"], [])
    printed = shlex.join(study.command_line(sweep))
    pasted = get_args_parser().parse_args(shlex.split(printed)[1:])
    assert (pasted.multirun, pasted.config_dir) == (True, str(studies))
    assert expand(pasted.overrides) == runs
