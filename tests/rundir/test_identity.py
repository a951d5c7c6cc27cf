"""Run keys: what is part of them, which keys stay as they are, and the hash of code from outside kdbench."""

import dataclasses
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kdbench.config import CONF_DIR, RecipeConfig, compose, parse
from kdbench.config.recipe import is_added
from kdbench.config.schema import number, one_of, whole
from kdbench.config.sections import FileKeys
from kdbench.errors import ConfigError
from kdbench.methods import CrossEntropy
from kdbench.rundir.files import hash_of
from kdbench.rundir.identity import (
    baseline_key,
    group_key,
    method_identity,
    model_identity,
    run_identity,
    run_key,
    section_identity,
    teacher_directory,
    teacher_key,
)
from kdbench.rundir.summary import read_summary
from tests.conftest import composed_once, rest_wide

RESULTS = Path(__file__).parents[2] / "results" / "lab" / "runs"
MACHINE = ("runtime.device=cpu", "runtime.precision=fp32")
METHODS = sorted(file.stem for file in (CONF_DIR / "method").glob("*.yaml"))


def keys(config):
    """Return run key, group key and baseline key."""
    whole = run_identity(config, teacher_key(config) if config.teacher else None)
    return run_key(config), group_key(whole, config), baseline_key(whole)


def key_of(*overrides):
    return hash_of(run_identity(composed_once(*overrides), teacher_key=None))


# Keys of existing runs

KEYS = {
    "": ("150dda4f728f4ef7", "20a1cd9ede788185", "f887f2e0467e644f"),
    "method=ce": ("97b1571d79de42bb", "931e96de02fb09f2", "f887f2e0467e644f"),
    "method=feature": ("fe8c46e06a90171f", "4bb7e090b3207b72", "f887f2e0467e644f"),
    "student=resnet8 teacher=resnet20": ("fdc071dad22e7b9a", "2a253bf452ae7759", "db4746a7da1ea488"),
    "student=resnet8 teacher=resnet20 method=ce": ("8db23e9cf027dd18", "35b2a0d4748b8b3a", "db4746a7da1ea488"),
    "student=resnet8 teacher=resnet20 method=ce teacher=none": (
        "8db23e9cf027dd18",
        "35b2a0d4748b8b3a",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 method=feature": ("e162dd88db419528", "0a3e9a796502fa86", "db4746a7da1ea488"),
    "student=resnet8 teacher=resnet20 method=feature method.stages=[layer1,layer3]": (
        "57ff7cae41b4390e",
        "a5eb1f445482fe18",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 method=feature method.normalize=teacher_std method.beta=0": (
        "88665cad8c856d23",
        "32663ed5b4a0602a",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 method=feature student.stages.layer1=layer1.0": (
        "2bbc3f5828706956",
        "28c105e54dc1d947",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 method=logit student.stages.layer1=layer1.0": (
        "fdc071dad22e7b9a",
        "2a253bf452ae7759",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 method.alpha=null method.ce_weight=1 method.kd_weight=0.5": (
        "34db6fe81da34351",
        "c9bb71fa025affce",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 method.temperature=2 method.alpha=0.9": (
        "3938946a14f90e00",
        "14ed1e3bfd3d284e",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 recipe=short": ("a8ddb7013325a418", "5ef74e0ca34fb5f3", "d6153d111993b0d2"),
    "student=resnet8 teacher=resnet20 recipe=quickstart": ("b731f6e441afa8b4", "045c9407fde5eecf", "aad1819e745398c8"),
    "student=resnet8 teacher=resnet20 recipe=lab recipe.lr=0.02 recipe.epochs=1": (
        "ca74215f78a256ef",
        "a2e1ef81cc327116",
        "ffdd6e93806cc79a",
    ),
    "student=resnet8 teacher=resnet20 recipe=smoke recipe.batch_size=32": (
        "477b242b6c5abe80",
        "275957a9afe5e35f",
        "a935610d868cd86d",
    ),
    "student=resnet8 teacher=resnet20 recipe.clip_norm=null": (
        "b51ad2d40bd2382a",
        "8398b4ea8e82ad19",
        "ba7714b1d57e85f0",
    ),
    "student=resnet8 teacher=resnet20 recipe.clip_projections=false method=feature": (
        "9c8afd151a25233d",
        "c9895973f97ede0e",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 recipe.nesterov=false recipe.momentum=0": (
        "33598c5dabcc72ae",
        "7656e378339fe283",
        "0a220a3e62ffc930",
    ),
    "student=resnet8 teacher=resnet20 recipe.on_nonfinite=skip": (
        "394b6429c90b9864",
        "0d89023ddc594a29",
        "5b66a470fe117f81",
    ),
    "student=resnet8 teacher=resnet20 recipe.nonfinite_limit=3": (
        "fdc071dad22e7b9a",
        "2a253bf452ae7759",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 teacher.recipe.on_nonfinite=skip": (
        "924cae6e4fc78d19",
        "62817de064d2b352",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 teacher.recipe.lr=0.05": (
        "bb6f9fae3d610de5",
        "b0998ac7d0ee3367",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 teacher.seed=3": ("ea689ae5cc52aa1f", "a8a6941b0f69d0fb", "db4746a7da1ea488"),
    "student=resnet8 teacher=resnet20 teacher.seed=3 method=ce": (
        "8db23e9cf027dd18",
        "35b2a0d4748b8b3a",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 seed=7": ("be2c0b721faec336", "2a253bf452ae7759", "76001d43830ac58a"),
    "student=resnet8 teacher=resnet20 seed=7 init_seed=1 data_seed=2": (
        "24d0284f34699853",
        "2a253bf452ae7759",
        "3d1fd6f69e96fc87",
    ),
    "student=resnet8 teacher=resnet20 data=shapes": ("2acef0209b65e5b0", "964bf5f19ae74d34", "836464de472ab69e"),
    "student=resnet8 teacher=resnet20 data=shapes data.num_train=4000 data.augment=false": (
        "73d8f0427af1e995",
        "85e70b85e11227b2",
        "35cdc9dcddd3242d",
    ),
    "student=resnet8 teacher=resnet20 data.num_train=512 data.num_val=100 data.num_test=200": (
        "e666a311e94d08aa",
        "f0d64a43bba59489",
        "e7f3bb2aae9c7862",
    ),
    "student=resnet8 teacher=resnet20 data.mean=[0.5,0.5,0.5]": (
        "e7c7c4dd4944a4ed",
        "0020b69bac039beb",
        "7698c1db33f87a03",
    ),
    "student=resnet8 teacher=resnet20 runtime.precision=bf16": (
        "d93efcc572c53984",
        "8fb57053f627803b",
        "f9fe558e034344e3",
    ),
    "student=resnet8 teacher=resnet20 runtime.profile=repro runtime.threads=3 runtime.compile=true": (
        "fdc071dad22e7b9a",
        "2a253bf452ae7759",
        "db4746a7da1ea488",
    ),
    "student=resnet34 student.stem=imagenet teacher=resnet101": (
        "538dfdbef920639a",
        "78cfd1312f0b1b43",
        "712554945d71c88b",
    ),
    "pair=resnet32x4_resnet8x4 method=feature": ("afd22230f26035cf", "be202746ef829443", "083abc79d4299244"),
    "pair=r101_r34 student.stem=imagenet method=ce": ("8e14bf711df5df16", "bc58d3c086cd3264", "712554945d71c88b"),
    "student=resnet8 teacher=resnet20 student.widths=[8,8,16,32] teacher.widths=[8,8,16,32]": (
        "48a445f3dfa59aa5",
        "347e186bf51efed3",
        "11992e1db92e3349",
    ),
    "student=resnet8 teacher=resnet20 student.depth=14": ("05eec8572167c301", "e65dd8db8d418297", "48365fed4b87a2b3"),
    "student=resnet8 teacher=resnet20 teacher.checkpoint=weights.pth": (
        "f2fe048f0820ca29",
        "56d55a4de27a7164",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 teacher.checkpoint=weights.pth method=feature teacher.seed=4": (
        "850e123652d03e1f",
        "f23992731bc69ac4",
        "db4746a7da1ea488",
    ),
    "student=resnet8 teacher=resnet20 teacher.checkpoint=weights.pth data.augment=false seed=2": (
        "152abcc52ab2ad98",
        "440c8d0f3e0b4b7e",
        "87298a45b58f61ff",
    ),
}
"""Overrides, and the run, group and baseline keys that runs of version 0.1.0 have with them."""
EVERY_DAY = 4
"""One in so many keys is a test of every day: a composition takes a quarter of a second."""


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.pth").write_bytes(b"given weights")


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    "overrides", [pytest.param(o, marks=pytest.mark.wide if n % EVERY_DAY else ()) for n, o in enumerate(KEYS)]
)
def test_keys_are_those_of_earlier_versions(overrides):
    assert keys(composed_once(*MACHINE, *overrides.split())) == KEYS[overrides]


STUDENTS = ("resnet8", "resnet14")


@pytest.mark.parametrize(
    ("student", "teacher", "method"),
    rest_wide([
        *((student, "none", "ce") for student in (*STUDENTS, "resnet20", "resnet32")),
        *(("resnet8", teacher, method) for teacher in ("resnet20", "resnet32") for method in ("logit", "feature")),
        *(("resnet14", "resnet20", method) for method in ("logit", "feature")),
    ], 6),
)  # fmt: skip
def test_runs_of_the_committed_study_keep_their_keys(student, teacher, method):
    overrides = [*MACHINE, "data=cifar10", "data.augment=false", "recipe=lab", f"method={method}"]
    node = composed_once(*overrides, f"student={student}", f"teacher={teacher}").node()
    source = "" if teacher == "none" else f"_from_{teacher}"
    folders = sorted(RESULTS.glob(f"cifar10_{student}_{method}{source}_seed*"))
    assert folders
    for folder in folders:
        summary = read_summary(folder)
        seeds = {"seed": summary.seed, "init_seed": summary.init_seed, "data_seed": summary.data_seed}
        params, recipe = node["method"] | summary.method_params, node["recipe"] | summary.recipe
        run = parse(node | seeds | {"method": params, "recipe": recipe})
        run_and_group, baseline = keys(run)[:2], keys(run)[2]
        assert run_and_group == (folder.name.rpartition("_")[2], summary.group_key)
        assert (teacher_key(run) if run.teacher else None) == summary.teacher_key
        if student in STUDENTS:  # the teachers' baseline keys, which nothing compares, are of an earlier definition
            assert baseline == summary.baseline_key


# What is part of a key


@pytest.mark.parametrize(
    "override",
    [
        "data.root=/elsewhere", "data.download=true", "teacher.cache=on", "runtime.threads=7",
        "runtime.channels_last=false", "runtime.profile=repro", "runtime.graphs=false", "runtime.compile=true",
        "runtime.device=cpu", "output_root=/elsewhere", "overwrite=true", "checkpoint.keep_last=true",
        "on_busy=skip", "recipe.nonfinite_limit=2", "seed=0",
    ],
)  # fmt: skip
def test_a_setting_that_changes_no_number_is_no_part_of_the_key(override):
    assert key_of(override) == key_of()


@pytest.mark.parametrize(
    "override",
    [
        "student=resnet34", "student.stem=imagenet", "method.alpha=0.3", "method.temperature=2", "method=ce",
        "data.num_train=512", "data.augment=false", "recipe.lr=0.05", "recipe.epochs=7", "recipe.on_nonfinite=skip",
        "seed=1", "init_seed=1", "data_seed=1", "runtime.precision=bf16", "data=shapes",
    ],
)  # fmt: skip
def test_a_setting_that_changes_numbers_is_part_of_the_key(override):
    assert key_of(override) != key_of()


def test_the_teacher_is_part_of_the_key():
    config = composed_once()
    assert hash_of(run_identity(config, "one")) != hash_of(run_identity(config, "two"))


def test_stages_are_part_of_the_key_of_a_method_without_a_teacher_that_uses_them(monkeypatch):
    configs = [composed_once(*MACHINE, "method=ce", *more) for more in ((), ("student.stages.layer1=layer1.0",))]
    assert len({run_key(config) for config in configs}) == 1
    monkeypatch.setattr(CrossEntropy, "uses_stages", True)
    assert len({run_key(config) for config in configs}) == 2


def test_names_of_models_and_methods_are_no_part_of_the_key(tmp_path):
    for group, option in (("model", "resnet8"), ("method", "logit")):
        (tmp_path / group).mkdir()
        text = (CONF_DIR / group / f"{option}.yaml").read_text()
        (tmp_path / group / f"mine_{option}.yaml").write_text(text)
    own = compose([*MACHINE, "student=mine_resnet8", "method=mine_logit"], config_dir=tmp_path)
    assert run_key(own) == run_key(compose([*MACHINE, "student=resnet8", "method=logit"]))


def test_runs_that_differ_in_seeds_share_the_group_key_and_no_others_do():
    first, *others = (keys(composed_once(*MACHINE, *o)) for o in ((), ("seed=1",), ("method.alpha=0.1",)))
    assert [other[1] == first[1] for other in others] == [True, False]


def test_a_student_and_its_baseline_share_the_baseline_key_and_no_others_do():
    baseline = keys(composed_once(*MACHINE, "method=ce"))[2]
    students = ((), ("method=feature",), ("recipe.clip_projections=false",), ("seed=1",), ("recipe.lr=0.05",))
    shared = [keys(composed_once(*MACHINE, *overrides))[2] == baseline for overrides in students]
    assert shared == [True, True, True, False, False]


def test_a_teacher_is_the_run_that_its_own_config_would_be():
    student = composed_once(*MACHINE, "student=resnet8", "teacher=resnet20", "teacher.seed=3", "recipe=lab", "seed=5")
    teacher = composed_once(*MACHINE, "student=resnet20", "method=ce", "seed=3", "recipe=lab", "recipe.epochs=4")
    assert teacher_key(student) == run_key(teacher) == teacher_directory(student).key


@pytest.mark.usefixtures("weights")
def test_given_weights_are_known_by_their_content_and_not_by_their_name():
    def key(file):
        return run_key(composed_once(*MACHINE, f"teacher.checkpoint={file}"))

    Path("copy.pth").write_bytes(b"given weights")
    Path("other.pth").write_bytes(b"other weights")
    assert key("weights.pth") == key("copy.pth") != key("other.pth")
    with pytest.raises(ConfigError) as error:
        key("missing.pth")
    assert (error.value.code, error.value.key) == ("not_found", "teacher.checkpoint")


# Neutral values


def section_of(name):
    """Return a filled instance of a section whose settings can be part of a key: recipe, data, or a method's."""
    if name in METHODS:
        return composed_once(f"method={name}").method.params
    return composed_once().recipe if name == "recipe" else composed_once().data.params


@pytest.mark.parametrize("name", ["recipe", "data", *METHODS])
def test_a_setting_at_its_neutral_value_is_no_part_of_the_key(name):
    section = section_of(name)
    for f in dataclasses.fields(section):
        neutral = f.metadata.get("neutral", "???")
        if neutral == "???":  # it has none
            counts = f.metadata.get("identity", True)
            assert (f.name in section_identity(section)) == counts
        else:
            other = object()
            assert f.name not in section_identity(replaced(section, f.name, neutral))
            assert section_identity(replaced(section, f.name, other))[f.name] is other


def replaced(section, name, value):
    copy = dataclasses.replace(section)
    setattr(copy, name, value)
    return copy


def test_some_settings_have_a_neutral_value():
    neutral = {f.name: f.metadata.get("neutral") for f in dataclasses.fields(RecipeConfig) if f.metadata}
    assert neutral["on_nonfinite"] == "stop"
    outside = {f.name for f in dataclasses.fields(FileKeys) if not f.metadata.get("identity", True)}
    assert outside == {"root", "download", "memory"}


NEUTRAL = {
    "optimizer": ("sgd", "adamw", ()),
    "betas": ("[0.9,0.999]", "[0.8,0.999]", ("recipe.optimizer=adam",)),
    "eps": ("1e-8", "1e-6", ("recipe.optimizer=adamw",)),
    "decay_all": ("true", "false", ()),
    "schedule": ("cosine", "constant", ()),
    "schedule_per": ("epoch", "step", ()),
    "milestones": ("[2]", "[3]", ("recipe.schedule=multistep",)),
    "gamma": ("0.1", "0.2", ("recipe.schedule=multistep", "recipe.milestones=[2]")),
    "warmup_epochs": ("0", "2", ()),
    "warmup_lr": ("1e-6", "1e-5", ("recipe.warmup_epochs=1",)),
    "accumulate": ("1", "2", ()),
    "ema": ("null", "0.99", ()),
    "label_smoothing": ("0", "0.1", ()),
    "mixup": ("0", "0.2", ()),
    "cutmix": ("0", "1", ()),
    "policy": ("null", "trivial_augment", ()),
    "policy_ops": ("2", "3", ("recipe.policy=rand_augment",)),
    "policy_magnitude": ("9", "5", ("recipe.policy=rand_augment",)),
    "erasing": ("0", "0.25", ()),
}
"""Keys that were added to recipes: a neutral value, another one, and the keys with which they are used."""


def test_each_added_key_of_a_recipe_has_a_neutral_value():
    added = {f.name for f in dataclasses.fields(RecipeConfig) if is_added(f)}
    assert added == NEUTRAL.keys()


@pytest.mark.parametrize("name", NEUTRAL)
def test_an_added_key_of_a_recipe_changes_the_run_key_unless_it_is_neutral(name):
    neutral, other, beside = NEUTRAL[name]
    given = (f"recipe.{name}={neutral}",) if name == "milestones" else ()
    assert key_of(*beside, f"recipe.{name}={neutral}") == key_of(*beside, *given)
    assert key_of(*beside, f"recipe.{name}={other}") != key_of(*beside, *given)


@pytest.mark.parametrize(
    ("choice", "unused"),
    [
        ("optimizer=sgd", ("betas=[0.5,0.6]", "eps=1e-3")),
        ("optimizer=adam", ("momentum=0.5", "nesterov=false")),
        ("optimizer=adamw", ("momentum=0.5", "nesterov=false")),
        ("schedule=cosine", ("milestones=[1,2]", "gamma=0.5")),
        ("schedule=constant", ("min_lr=0.5", "milestones=[1,2]", "gamma=0.5")),
        ("warmup_epochs=0", ("warmup_lr=0.01",)),
        ("policy=null", ("policy_ops=3", "policy_magnitude=1")),
        ("policy=trivial_augment", ("policy_ops=3", "policy_magnitude=1")),
    ],
)
def test_a_key_of_another_choice_changes_no_run_key(choice, unused):
    key = key_of(f"recipe.{choice}")
    for setting in unused:
        assert key_of(f"recipe.{choice}", f"recipe.{setting}") == key, setting


def test_a_key_of_another_schedule_changes_no_run_key_of_steps_and_one_cycle():
    steps = ("recipe.schedule=multistep", "recipe.milestones=[2]")
    assert key_of(*steps, "recipe.min_lr=0.5") == key_of(*steps)
    cycle = ("recipe.schedule=one_cycle", "recipe.warmup_epochs=2")
    assert key_of(*cycle, "recipe.gamma=0.5") == key_of(*cycle)
    assert key_of(*cycle, "recipe.min_lr=0") != key_of(*cycle)


@pytest.mark.parametrize(
    ("setting", "changes"),
    [("padding=4", False), ("flip=true", False), ("memory=host", False), ("padding=2", True), ("flip=false", True)],
)
def test_views_of_the_data_are_part_of_the_key_and_their_place_in_memory_is_not(setting, changes):
    assert (key_of(f"data.{setting}") != key_of()) == changes


@dataclass
class Before:
    rate: float = number(0)


@dataclass
class Ramp:
    epochs: int = whole(0, neutral=0)
    shape: str = one_of("linear", "cosine", neutral="linear")


@dataclass
class After(Before):
    """The same section with new settings."""

    smoothing: float = number(0, 1, neutral=0.0)
    display: str = one_of("plain", "fancy", identity=False)
    ramp: Ramp = field(default_factory=Ramp)


def test_new_settings_with_a_neutral_value_keep_existing_keys():
    before = hash_of(section_identity(Before(0.1)))
    assert hash_of(section_identity(After(0.1, 0.0, "fancy", Ramp(0, "linear")))) == before
    assert section_identity(After(0.1, 0.2, "fancy", Ramp(0, "linear"))) == {"rate": 0.1, "smoothing": 0.2}
    assert section_identity(After(0.1, 0.0, "plain", Ramp(5, "linear"))) == {"rate": 0.1, "ramp": {"epochs": 5}}


# Code from outside kdbench

OWN = {
    "losses.py": """
        from kdbench.methods import LossOutput
        from kdbench.methods.logit import LogitDistillation
        from scaling import FACTOR
        from parts import layers

        class Scaled(LogitDistillation):
            def forward(self, *args):
                terms, logits = super().forward(*args)
                return LossOutput(terms | {"total": FACTOR * terms["total"]}, logits)

        def net(num_classes):
            return layers.head(num_classes)
    """,
    "scaling.py": "FACTOR = 1.0",
    "parts/__init__.py": "",
    "parts/layers.py": """
        from torch import nn
        from . import widths

        def head(num_classes):
            return nn.Linear(widths.WIDTH, num_classes)
    """,
    "parts/widths.py": "WIDTH = 8",
    "unrelated.py": "X = 1",
}

FORKS = """
import os, sys
from pathlib import Path
from kdbench.config import MethodConfig, ModelConfig
from kdbench.methods.logit import LogitDistillation
from kdbench.rundir import identity

for _ in sys.stdin:  # a new process each time, in which the user's modules are not imported
    if os.fork() == 0:
        model = identity.model_identity(ModelConfig("net", "losses.net", {}, {}))
        from losses import Scaled
        method = identity.method_identity(MethodConfig("own", Scaled, LogitDistillation.Config(0.5, None, None, 4.0)))
        print(model.get("source_sha256"), method.get("source_sha256"), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture
def own(tmp_path):
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    return tmp_path


@pytest.mark.slow
def test_code_of_the_user_is_part_of_the_key_with_the_local_modules_that_it_imports(own):
    with subprocess.Popen(
        [sys.executable, "-B", "-c", FORKS], cwd=own, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def hashes():
            process.stdin.write("\n")
            process.stdin.flush()
            model, method = process.stdout.readline().split()
            assert len(model) == len(method) == 64
            return model, method

        seen = [hashes()]
        assert hashes() == seen[0]
        for name in ("losses.py", "scaling.py", "parts/layers.py", "parts/widths.py"):
            with (own / name).open("a") as file:
                file.write("\n# edited\n")
            seen.append(hashes())
        assert all(len(set(column)) == len(seen) for column in zip(*seen, strict=True))
        (own / "unrelated.py").write_text("X = 2")
        assert hashes() == seen[-1]
        process.stdin.close()


def test_code_of_kdbench_and_of_installed_packages_has_no_hash():
    config = composed_once("student=resnet8", "teacher=resnet18", "method=feature")
    mobile = dataclasses.replace(config.student, target="torchvision.models.mobilenet_v3_small")
    for model in (config.student, config.teacher.model, mobile):
        assert "source_sha256" not in model_identity(model)
    assert "source_sha256" not in method_identity(config.method)


def test_code_and_files_that_arguments_name_are_part_of_the_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config = composed_once("student=resnet8", "method=ce").student

    def identities(width, content):
        (tmp_path / "own_activations.py").write_text(f"class Act:\n    width = {width}\n")
        sys.modules.pop("own_activations", None)
        (tmp_path / "net.json").write_text(content)
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / "a.txt").write_text(content)
        return [
            model_identity(dataclasses.replace(config, target="torchvision.models.resnet18", arguments=arguments))
            for arguments in (
                {"acts": [{"_target_": "own_activations.Act"}]},
                {"spec": {"file": str(tmp_path / "net.json")}},
                {"folder": f"{tmp_path}/parts"},
                {"network": "own_activations.Act"},
                {"name": "parts"},  # a name, not a path
            )
        ]

    first, again, edited = identities(8, "{}"), identities(8, "{}"), identities(9, "[1]")
    assert first == again
    assert [a == b for a, b in zip(first, edited, strict=True)] == [False, False, False, False, True]
    sys.modules.pop("own_activations", None)
