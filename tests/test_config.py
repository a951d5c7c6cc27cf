"""Every YAML file composes, means something, and says what it refuses."""

import pytest

from kdbench.config import CONF_DIR, parse, register_models
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.models import describe
from kdbench.runs import identity, key_of
from tests.conftest import SMALL, composed, composed_once, every_model


def options(group):
    return sorted(file.stem for file in (CONF_DIR / group).glob("*.yaml"))


def key(*overrides):
    return key_of(identity(composed_once(*overrides), teacher_key=None))


def test_default_run_is_the_reference_studys():
    config = composed_once()
    assert (config.student.name, config.teacher.model.name, config.method.name) == ("resnet18", "resnet50", "logit")
    assert (config.recipe.epochs, config.teacher.recipe.epochs) == (100, 200)
    assert (config.method.params.alpha, config.method.params.temperature) == (0.5, 4.0)
    recipe = config.recipe
    assert (recipe.lr, recipe.min_lr, recipe.momentum, recipe.weight_decay) == (0.1, 1e-4, 0.9, 5e-4)
    assert (recipe.batch_size, recipe.nesterov, recipe.clip_norm, recipe.clip_projections) == (128, True, 1.0, True)
    assert (config.data.num_train, config.data.num_val, config.data.num_test) == (45_000, 5_000, 10_000)
    assert (config.data.mean, config.data.std) == ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])


@pytest.mark.parametrize("name", every_model())
def test_every_model_serves_as_student_and_as_teacher(name):
    config = composed(f"student={name}", f"teacher={name}")
    assert config.student == config.teacher.model
    assert config.student.name == name
    shapes = describe(config.student, NUM_CLASSES, IMAGE_SHAPE, "student").shapes
    assert {"layer1", "layer2", "layer3", "pooled"} <= set(shapes)


@pytest.mark.parametrize("name", options("method"))
def test_every_method_composes_and_instantiates(name):
    config = composed_once(f"method={name}")
    shapes = {"layer1": (8, 4, 4), "layer2": (16, 2, 2), "pooled": (16,)}
    method = config.method.target(config.method.params, shapes, shapes)
    assert config.method.name == name
    assert (config.teacher is not None) == method.needs_teacher


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in ("pair", "data", "recipe", "runtime", "experiment") for n in options(g)]
)
def test_every_other_option_composes(group, name):
    composed_once(f"{group}={name}")


@pytest.mark.parametrize("name", [n for n in options("pair") if n.startswith("r") and "resnet" not in n])
def test_pairs_are_what_their_names_say(name):
    teacher, student = name.split("_")
    config = composed_once(f"pair={name}")
    assert config.teacher.model.name == f"resnet{teacher[1:]}"
    assert config.student.name == f"resnet{student[1:]}"


def test_student_and_teacher_given_apart_win_over_the_pair():
    config = composed("pair=r101_r34", "student=resnet8")
    assert (config.student.name, config.teacher.model.name) == ("resnet8", "resnet101")


def test_one_recipe_option_sets_both_and_a_key_only_one():
    config = composed("recipe=short", "recipe.lr=0.05", "teacher.recipe.epochs=7")
    assert (config.recipe.epochs, config.recipe.lr) == (30, 0.05)
    assert (config.teacher.recipe.epochs, config.teacher.recipe.lr) == (7, 0.1)


def test_seeds():
    config = composed("seed=3")
    assert (config.init_seed, config.data_seed, config.teacher.seed) == (3, 3, 0)
    config = composed("seed=3", "init_seed=1", "teacher.seed=2")
    assert (config.init_seed, config.data_seed, config.teacher.seed) == (1, 3, 2)


@pytest.mark.parametrize("overrides", [(), ("method=ce",), ("method=feature", "student=resnet8", "teacher=resnet20")])
def test_recorded_config_reads_back(overrides):
    config = composed_once(*overrides)
    assert parse(config.node()) == config


@pytest.mark.parametrize(
    "override",
    [
        "data.root=/elsewhere", "data.download=true", "teacher.table=on", "runtime.threads=7",
        "runtime.channels_last=false", "runtime.profile=repro",
        "runtime.graphs=false", "runtime.compile=true", "runtime.device=cpu", "output_root=/elsewhere",
        "overwrite=true", "checkpoint.keep_last=true", "seed=0",
    ],
)  # fmt: skip
def test_what_cannot_change_a_number_is_no_part_of_the_key(override):
    assert key(override) == key()


@pytest.mark.parametrize(
    "override",
    [
        "student=resnet34", "student.stem=imagenet", "method.alpha=0.3", "method.temperature=2", "method=ce",
        "data.num_train=512", "data.augment=false", "recipe.lr=0.05", "recipe.epochs=7", "seed=1", "init_seed=1",
        "data_seed=1", "runtime.precision=bf16", "data=shapes",
    ],
)  # fmt: skip
def test_what_can_change_a_number_is_part_of_the_key(override):
    assert key(override) != key()


def test_methods_with_equal_settings_but_other_teachers_differ():
    config = composed_once()
    assert key_of(identity(config, "one")) != key_of(identity(config, "two"))


BAD = {
    "metod=ce": "metod is no known key; did you mean method?",
    "method=lgit": "method=lgit is no option; did you mean logit? valid: ce, feature, logit",
    "student=resnet19": "student=resnet19 is no option; did you mean resnet",
    "pair=r50": "pair=r50 is no option",
    "method.temprature=3": "method.temprature is no known key; did you mean temperature?",
    "recipe.epcohs=3": "recipe.epcohs is no known key; did you mean epochs?",
    "+recipe.epcohs=3": "recipe.epcohs is no known key; did you mean epochs?",
    "+teacher.recipe.foo=1": "teacher.recipe.foo is no known key; valid: batch_size",
    "+method.foo=1": "method.foo is no known key; valid: alpha",
    "+student.dpth=8": "student.dpth is no known key; did you mean depth",
    "+teacher.sed=1": "teacher.sed is no known key; did you mean seed?",
    "+seed=1": "seed is there already, and one value is all that it takes; write seed=VALUE",
    "student={a:1}": "student is there already",
    "student=[a,b]": "student=b is no option; valid: resnet101",
    "study=lab": "study is no known key; did you mean student?",
    "+foo=1": "foo is no known key",
    "recipe.lr=nan": "recipe.lr is nan; it may be a finite number above 0",
    "recipe.lr=abc": "recipe.lr is 'abc'; it may be a finite number above 0",
    "recipe.lr=-1": "recipe.lr is -1.0",
    "recipe.epochs=0": "recipe.epochs is 0; it may be a whole number of at least 1",
    "recipe.epochs=1.5": "recipe.epochs is 1.5; it may be a whole number",
    "recipe.batch_size=99999999999999999999": "it may be a whole number of at least 2, below 2**63",
    "recipe.batch_size=1": "recipe.batch_size is 1",
    "recipe.batch_size=63": "which leaves one of data.num_train=64 images alone",
    "recipe.min_lr=1": "recipe.min_lr is 1; it may be at most recipe.lr",
    "recipe.momentum=0": "recipe.nesterov=true does not allow",
    "recipe=null": "recipe=null: recipe takes the name of one option; valid: lab, paper, quickstart, short, smoke",
    "method=[ce,logit]": "method takes one option by name; a sweep over several is -m method=A,B",
    "data.augment=2": "data.augment is 2; it may be true or false",
    "overwrite=yep": "overwrite is 'yep'; it may be true or false",
    "teacher.recipe=paper": "teacher.recipe is 'paper'; it is a section with the keys epochs",
    "output_root=null": "output_root is None; it may be a folder",
    f"output_root={'x' * 300}": "it may be a folder whose path this system can have",
    "output_root='~nobody-here/runs'": "it may be a folder whose path this system can have",
    f"data.root={'x' * 300}": "it may be a folder whose path this system can have",
    f"teacher.checkpoint={'x' * 300}": "it may be a file whose path this system can have",
    f"++student.name={'x' * 65}": "underscores, at most 64",
    "hydra.mode=nothing": "expected one of [RUN, MULTIRUN]",
    "hydra.searchpath=[nothing]": "path=nothing is not available",
    f"{'x' * 300}=1": "File name too long",
    "hydra.foo=1": "hydra.foo is no key of Hydra's own config",
    "~seed": "~seed: no key of a run can be deleted",
    "student.stages.layer1=nope": "names the node 'nope'",
    "method.temperature=0": "method.temperature is 0.0; it may be a finite number above 0",
    "method.temperature=1e300": "it may be a finite number above 0 and at most 1000",
    "method.temperature=inf": "method.temperature is inf",
    "method.alpha=1.5": "method.alpha is 1.5; it may be a finite number of at least 0 and at most 1",
    "method.ce_weight=1": "for these weights set method.alpha=null",
    "method.alpha=null": "needs both method.ce_weight and method.kd_weight",
    "method._target_=os.system": "method._target_ is 'os.system'",
    "teacher=none": "method=logit needs a teacher and teacher=none was given",
    "++method.name=../../away": "method.name is '../../away'",
    "++student.name=../../away": "student.name is '../../away'",
    "teacher.recipe.epochs=0": "teacher.recipe.epochs is 0",
    "teacher.seed=-1": "teacher.seed is -1",
    "teacher.checkpoint=/nowhere.pth": "there is no such file",
    "seed=1.5": "seed is 1.5; it may be a whole number of at least 0",
    "data.num_train=200000": "draws at most 100000 images",
    "data.num_val=0": "data.num_val is 0",
    "data.std=[1,1]": "data.std is [1.0, 1.0]; it may be three numbers above 0",
    "data.name='a\nb'": "data.name is 'a\\nb'",
    "student='a\nb\u2028'": "student=a\\nb\\u2028 is no option",
    "data=cifar11": "data=cifar11 is no option; did you mean cifar10?",
    "runtime.device=gpu": "runtime.device is 'gpu'; it may be auto, cpu, cuda",
    "runtime.device=cuda:99": "runtime.device=cuda:99 and this machine has",
    "runtime.precision=fp16": "runtime.precision=fp16 needs a CUDA device",
    "runtime.precision=fp8": "runtime.precision is 'fp8'",
    "runtime.threads=0": "runtime.threads is 0",
    "runtime.threads=100000": "runtime.threads is 100000; it may be auto or a whole number from 1 to 1024",
    "output_root=/dev/null/x": "but /dev/null is a file",
    "output_root=/proc/nothing": "output_root",
    "method=ce,logit": "several values need -m",
    "recipe.lr=[1": "cannot be read",
    "recipe": "cannot be read",
    "--nonsense": "unrecognized arguments: --nonsense",
    "--config-dir=/nowhere": "/nowhere",
    "experiment=nothing": "experiment=nothing is no option; valid: quickstart",
    "student.stem=small": "student",
}


EVERY_DAY = (
    "metod=ce", "method=lgit", "+recipe.epcohs=3", "student={a:1}", "recipe.lr=nan", "recipe.batch_size=63",
    "method=[ce,logit]", "hydra.mode=nothing", "~seed", "student.stages.layer1=nope", "method.alpha=null",
    "method._target_=os.system", "teacher=none", "++student.name=../../away", "teacher.checkpoint=/nowhere.pth",
    "output_root=/dev/null/x", "method=ce,logit", "recipe.lr=[1", "--nonsense",
)  # fmt: skip
"""One of each kind: every call composes the config twice, half a second. The others are slow tests."""
assert set(EVERY_DAY) <= set(BAD)


@pytest.mark.parametrize(
    ("override", "message"),
    [pytest.param(*case, marks=() if case[0] in EVERY_DAY else pytest.mark.slow) for case in BAD.items()],
)
def test_bad_input_is_one_line_with_exit_code_2_and_nothing_written(kdbench, tmp_path, override, message):
    result = kdbench(*SMALL, "output_root=out", override)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("kdbench: error: ")
    assert result.err.count("\n") == 1
    assert not list((tmp_path / "home").iterdir())


def test_keys_of_a_teacher_that_the_method_does_not_use_are_checked_too(kdbench):
    result = kdbench(*SMALL, "method=ce", "teacher.recipe.lr=nan")
    assert result.code == 2
    assert "teacher.recipe.lr is nan" in result.err


def test_own_models_are_offered_for_both_roles(tmp_path):
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "mobile.yaml"
    file.write_text("_target_: torchvision.models.mobilenet_v3_small\nstages: {layer1: features.1, pooled: flatten}\n")
    register_models(tmp_path)
    config = composed("student=mobile", "teacher=mobile")
    assert config.student.name == "mobile"
    assert describe(config.student, 10, IMAGE_SHAPE, "student").shapes["pooled"] == (576,)
