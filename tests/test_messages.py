"""Every message of an error that a user can meet, held in tests/messages.txt: `code | key | message`.

`KDBENCH_UPDATE_MESSAGES=1 pytest -m "" tests/test_messages.py` writes the file anew; read the difference before it is
committed.
"""

import ast
import dataclasses
import difflib
import json
import os
import pickle
import re
import shutil
import socket
import sys
import types
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image
from safetensors.numpy import load_file, save_file

import kdbench
from kdbench import cli
from kdbench.bench.command import bench
from kdbench.compare import features
from kdbench.compare.command import compare
from kdbench.compare.read import read_run
from kdbench.config import ModelConfig, compose, parse
from kdbench.data import ImageData, Split, memory
from kdbench.data import load as read_data
from kdbench.data.embedded import Shapes
from kdbench.errors import KdbenchError
from kdbench.methods import CrossEntropy, LossOutput, Method, Requires
from kdbench.methods.logit import LogitDistillation
from kdbench.models import build, weights
from kdbench.models.checkpoint_files import read_checkpoint
from kdbench.models.weights import METHOD_PART, with_method
from kdbench.report.command import report
from kdbench.report.plan import hash_of
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import check_no_links, check_writable
from kdbench.rundir.identity import model_identity
from kdbench.rundir.lock import Lock
from kdbench.rundir.recorded_config import read_config, read_data_config
from kdbench.rundir.summary import Status, checksum_of, read_summary
from kdbench.rundir.unfinished import Failure
from kdbench.runner.images import data_config
from kdbench.runner.policy import run_with_retries
from kdbench.runner.resources import check_disk_space, user_error
from kdbench.runner.run import check_run
from kdbench.runner.settings import METADATA, NumericSettings, check_settings
from kdbench.study.command import study
from kdbench.study.plan import StudyPlan
from kdbench.study.read import read_study
from kdbench.sweep.execute import raise_failures
from kdbench.sweep.plan import PlannedRun
from kdbench.train.evaluate import check_finite
from kdbench.verify.command import verify_runs
from tests.conftest import NARROW, SMALL, composed_once
from tests.errors import recorded_errors
from tests.messages_of_deployment import TRAINED_CASES
from tests.messages_of_launchers import LAUNCHER_CASES
from tests.messages_of_processes import PROCESSES_CASES
from tests.messages_of_ray import RAY_CASES
from tests.messages_of_search import SEARCH_CASES
from tests.messages_of_sharing import SHARING_CASES
from tests.messages_of_slurm import SLURM_CASES
from tests.messages_of_study_engines import STUDY_ENGINE_CASES
from tests.messages_of_trackers import TRACKER_CASES
from tests.networks import SPEC, Plain
from tests.rundir.test_lock import FOREIGN

SOURCE = Path(kdbench.__file__).parents[1]
GOLDEN = Path(__file__).with_name("messages.txt")

NEEDS_A_FAULT = {
    "lock_lost": "needs a process that was suspended for a minute; tests/rundir/test_lock.py has it",
}
"""Codes without a message in the file, with the reason and the test that has them."""

# Configs: one tree, composed once, in which a case changes one key


def edited(override: str, *base: str) -> None:
    """Check the run of a small config in which one key has another value."""
    config = OmegaConf.create(composed_once(*SMALL, *base).node())
    (read,) = OverridesParser.create().parse_overrides([override])
    OmegaConf.update(config, read.key_or_group, read.value(), force_add=True)
    check_run(parse(config))


ALL_IMAGES = ("data.num_train=null", "data.num_val=null", "data.num_test=null")
OF_DATA = (
    "FailingData", "ReturnsATuple", "FloatImages", "OneClass", "EmptySplit", "OtherSize", "LargeLabel", "MissingClass"
)  # fmt: skip
OF_A_METHOD = ("Config", "Teacher", "Forward", "Requires", "Stages", "Arguments")
VALUES = {
    (): [
        "recipe.lr=nan", "recipe.lr=abc", "recipe.lr=null", "recipe.epochs=0", "recipe.epochs=1.5",
        "recipe.batch_size=99999999999999999999", "recipe.batch_size=63", "recipe.min_lr=1", "recipe.momentum=0",
        "recipe.momentum=2", "recipe.epcohs=3", "recipe.clip_norm=0", "recipe.on_nonfinite=ignore", "recipe=paper",
        "teacher.recipe.epochs=0", "teacher.seed=-1", "teacher.cache=maybe", "teacher.checkpoint=nowhere.pth",
        "teacher.checkpoint=damaged.pth", "teacher.checkpoint=wrong.pth", f"teacher.checkpoint={'x' * 300}",
        "data.augment=2", "data.num_val=0", "data.num_train=200000", "data.std=[1,1]", "data.mean=[a]",
        "data.mean=null", "data.padding=-1", "data.flip=1", "data.memory=disk", "data.name='a b'",
        "data.num_classes=20", "parent=3", "parent=nowhere", "parent=0123456789abcdef", "teacher.run=nowhere",
        "+kind=measure",
        "compress={name:x,_target_:collections.Counter}",
        "data._target_=null", "data._target_=no.such.Data", "data._target_=collections.Counter",
        "data._target_=tests.test_messages.WithoutLoad", "data._target_=tests.test_messages.WithoutKeys",
        *(f"data._target_=tests.test_messages.{name}" for name in OF_DATA),
        "recipe.optimizer=lion", "recipe.betas=[0.9]", "recipe.eps=0", "recipe.schedule=step",
        "recipe.schedule_per=day",
        "recipe.schedule=multistep", "recipe.schedule=one_cycle", "recipe.milestones=[3,2]", "recipe.gamma=0",
        "recipe.warmup_epochs=1", "recipe.warmup_epochs=0.5", "recipe.accumulate=99", "recipe.ema=5e-4",
        "recipe.label_smoothing=1", "recipe.mixup=-1", "recipe.policy=auto_augment", "recipe.policy_ops=0",
        "recipe.policy_magnitude=31", "recipe.erasing=2", "recipe.momentun=0.9",
        "runtime.device=gpu", "runtime.device=cuda:99",
        "runtime.device=mps", "runtime.precision=fp16",
        "runtime.precision=fp8", "runtime.threads=0", "overwrite=yep", "on_busy=queue", "checkpoint.grace_seconds=0",
        "checkpoint.every_epochs=0", "output_root=null", "output_root=''", "output_root=file/runs",
        "output_root='~nobody-here/runs'", "report=''", "seed=1.5", "seed=-1", "seed='${nothing}'",
        "student.name='a b'", "student.stages=null", "student.stages.layer1=nope", "student._target_=5",
        "student._target_=no.such.path", "student.stem=small", "student.depth=9", "student.widths=[1]",
        "student.widths=8",
        "method.temperature=0", "method.temperature=2000", "method.temprature=3", "method.alpha=1.5",
        "method.alpha=null", "method.ce_weight=1", "method._target_=os.system", "method._target_=collections.Counter",
        "method._target_=tests.test_messages.WithoutRole", "method._target_=null",
        *(f"method._target_=tests.test_messages.Without{name}" for name in OF_A_METHOD),
        "method._target_=tests.test_messages.FailingMethod", "method.name=../../away", "nothing=1",
    ],
    ("method=feature",): [
        "method.stages=[layer9]", "method.stages=[]", "method.stages=layer1", "method.normalize=max",
        "method.pairs={layer1: layer9}", "method.pairs={layer9: layer1}", "method.pairs={pooled: layer1}",
        "method.pairs=layer1",
    ],
    ("method=crd",): ["method.negatives=99999", "method.negatives=0", "method.momentum=2"],
    ("method=dkd",): ["method.kd_weight=-1", "method.temperature=0", "method.betta=1", "method.ramp_epochs=-1"],
    ("method=dkd", "method.alpha=0"): ["method.beta=0"],
    ("method=vid",): ["method.variant=papr", "method.pairs={layer3: layer9}"],
    ("method=feature", "method.stages=[layer1]"): ["method.pairs={layer1: layer2}"],
    ("method=feature", "method.normalize=teacher_std"): ["recipe.accumulate=2"],
    ("method=logit_std", "method.kd_weight=0"): ["method.ce_weight=0"],
    ("method=sdd",): [
        "method.pairs={layer2: layer3}", "method.pairs={layer2: layer2, layer3: layer3}", "method.scales=[2]",
        "method.scales=[1,16]",
    ],
    ("student=resnet18",): ["student.stem=small", "student.arch=resnet19"],
    ("student=vgg11",): ["student.arch=vgg12", "student.batch_norm=1"],
    ("student=wrn16_2",): ["student.depth=18", "student.width=0", "student.dropout=1"],
    ("recipe.epochs=9", "recipe.schedule=multistep", "recipe.milestones=[4,6]"): [
        "recipe.epochs=6", "recipe.epochs=2", "recipe.warmup_epochs=5",
    ],
    ("recipe.epochs=9", "recipe.warmup_epochs=2"): ["recipe.warmup_lr=0.2"],
    ("recipe.ema=0.999",): ["recipe.weight_decay=0.9"],
    ("recipe.mixup=0.2",): ["method._target_=tests.test_messages.IntegerLabels"],
    ("data=image_folder", "data.root=photos", *ALL_IMAGES): [
        "data.root=nowhere", "data.root=empty", "data.root=one_class", "data.root=one_empty", "data.root=corrupt",
        "data.root=differing", "data.test_fraction=0.95", "data.size=0", "data.num_train=500", "data.mean=[0.5]",
        "student.widths=[8,8,16,32]",
    ],
    ("data=torchvision", "data.dataset=FakeData", "+data.arguments.size=60", *ALL_IMAGES): [
        "data.dataset=mnst", "data.dataset=VOCSegmentation", "data.dataset=ImageFolder", "data.dataset=MNIST",
        "data.arguments.colour=1", "data.size=-1",
    ],
    ("data=cifar100",): ["data.labels=medium", "data.root=nowhere"],
    ("data=svhn",): ["data.root=nowhere"],
    ("data=cifar10",): ["data.root=nowhere", "data.root=incomplete", "data.download=true"],
}  # fmt: skip
"""Values that cannot run, by the options that their key needs."""


class WithoutLoad(ImageData):
    pass


class WithoutKeys(Shapes):
    Config = dict


class FailingData(Shapes):
    fixed = False

    def load(self):
        return Path("nowhere/images.npz").read_bytes()


class ReturnsATuple(FailingData):
    def load(self):
        return tuple(Shapes.load(self))


class FloatImages(FailingData):
    def load(self):
        images = torch.rand(4, 8, 8, 3)
        return Split.of(images, [0, 1, 0, 1])


class OneClass(FailingData):
    def load(self):
        return Shapes.load(self)._replace(class_names=["all"])


class EmptySplit(FailingData):
    def load(self):
        source = Shapes.load(self)
        return source._replace(val=source.val.take(torch.arange(0)))


class OtherSize(FailingData):
    def load(self):
        source = Shapes.load(self)
        return source._replace(test=Split(source.test.images[:, :16], source.test.labels, source.test.indices))


class LargeLabel(FailingData):
    def load(self):
        return Shapes.load(self)._replace(class_names=["a", "b"])


class MissingClass(FailingData):
    def load(self):
        return Shapes.load(self)._replace(class_names=[*map(str, range(11))])


class IntegerLabels(LogitDistillation):
    soft_labels = False


class WithoutRole(LogitDistillation):
    role = "assistant"


class WithoutConfig(CrossEntropy):
    Config = dict


class WithoutTeacher(CrossEntropy):
    needs_teacher = None


class WithoutForward(Method):
    role = "distilled"


class WithoutRequires(LogitDistillation):
    def __init__(self, *args):
        super().__init__(*args)
        self.requires = None


class WithoutStages(LogitDistillation):
    requires = Requires(student_stages=("layer1",))


class WithoutArguments(LogitDistillation):
    def __init__(self):
        pass


class TakenName(CrossEntropy):
    def forward(self, *args):
        terms, logits = super().forward(*args)
        return LossOutput(terms | {"lr": terms["ce"]}, logits)


class NotATensor(CrossEntropy):
    def forward(self, *args):
        terms, logits = super().forward(*args)
        return LossOutput(terms | {"weight": 0.5}, logits)


class WithoutTotal(CrossEntropy):
    def forward(self, *args):
        terms, logits = super().forward(*args)
        return LossOutput({"ce": terms["ce"]}, logits)


class WithoutTerms(CrossEntropy):
    def forward(self, *args):
        return super().forward(*args).terms["total"]


class WithoutLogits(CrossEntropy):
    def forward(self, *args):
        return LossOutput(super().forward(*args).terms, None)


class WithoutGradient(CrossEntropy):
    def forward(self, *args):
        terms, logits = super().forward(*args)
        return LossOutput({"total": terms["total"].detach()}, logits)


class FailingMethod(LogitDistillation):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.width = context.student.shapes["layer9"][0]


COMMAND_LINES = [
    ["metod=ce"], ["method=lgit"], ["student=resnet19"], ["+recipe.epcohs=3"], ["+seed=1"], ["student={a:1}"],
    ["recipe=null"], ["recipe=5"], ["hydra.mode=nothing"], ["hydra.searchpath=[nothing]"], ["hydra.foo=1"],
    ["method=ce,logit"],
    ["recipe.betas=[0.5,0.9]"], ["recipe.optimizer=adamw", "recipe.momentum=0.5"], ["recipe.warmup_lr=0.01"],
    ["method=srd", "method.correlation_weight=2"], ["method=srd", "method.variant=deit", "method.exponent=2"],
    ["method=at", "method.pairs={layer1: layer2, layer1: layer3}"],
    ["-m", "method=at", "method.pairs={layer1: layer1, layer1: layer2},{layer2: layer2}"], ["method=DKD"],
    ["teacher=none", "method=ce", "teacher.widths=[8,8,8,8]"],
    ["method._target_=kdbench.methods.logit.LogitDistilation"],
    ["method=logit", "method._target_=kdbench.methods.ce.CrossEntropy"],
    ["teacher.recipe.policy_ops=3"], ["recipe.ema.weight_decay=1e-4"], ["recipe.ema_decay=0.9"],
    ["recipe.optimiser=adam"], ["data=cifar"], ["data=image_folder"],
    ["recipe.lr=0,1"], ["seed=0,1"], ["method=[ce,logit]"], ["recipe.lr=[1"],
    ["output_root=a=1,b=2"], ["recipe"], ["=1"], ["teacher=none"],
    ["recipe.lr='${nothing}'"], ["output_root=out/${hydra:job.num}"], ["-m", "report=a,b"],
    ["~seed"], ["--nonsense"], ["-m"], ["--config-dir", "nowhere"], ["--config-dir", "broken"],
    ["--config-dir", "list"], ["--config-dir", "own", "pair=headless"], ["--config-dir", "own", "pair=mistyped"],
    ["--config-dir", "own", "pair=keys"], ["--config-dir", "own", "pair=plain"],
    ["--config-dir", "own", "pair=twice"], ["--config-dir", "own", "pair=broken"],
    ["--config-dir", "own", "pair=chosen"], ["--config-dir", "own", "student=own", "student.widths=[8,8,16,32]"],
    ["--config-dir", "own", "method=away"], ["--config-name", "nothing"], ["-m", "seed=range(3,3)"],
    ["-m", "student=glob(resnt*)"], ["-m", "recipe.lr=glob(*)"], ["student=glob(resnet*)"], ["hydra.launcher=lockstep"],
    ["-m", "seed=interval(0,1)"], ["--config-path", "nowhere", "recipe.lr=1"], ["--config-path", "recorded", "seed=1"],
    ["-m", "hydra/launcher=lockstep", "hydra.launcher.max_learners=0"], ["hydra.sweeper.pruner=median"],
    ["-m", "hydra/sweeper=optuna", "hydra/sweeper/pruner=medium", "recipe.lr=interval(0.1,1)"],
    ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trails=3", "recipe.lr=interval(0.1,1)"],
    ["recipe.lr=interval(0.1,1)"], ["hydra.run.dir=a,b"], ["hydra.job.nam=a"],
    ["-m", "hydra/launcher=joblib", "hydra.launcher.n_job=2"],
    ["-m", "hydra/launcher=joblib", "hydra.launcher.devices=cuda:0,cuda:1"], ["-m", "hydra/launcher=joblib,lockstep"],
    ["hydra/sweeper=optuna"], ["hydra/launcher=joblib", "hydra/launcher=slurm"], ["hydra/launcher=[joblib,slurm]"],
    ["-m", "hydra.launcher.devices=[cpu]"], ["-m", "hydra.launcher.max_learners=2"], ["-m", "hydra/launchr=joblib"],
    ["-m", "hydra/launcher=lockstep", "hydra.launcher.devices=[cpu]"], ["-m", "hydra/sweeper/pruner=median"],
    ["-m", "hydra/sweeper=optuna", "recipe.lr=loguniform(0.1,1)"], ["-m", "runtime.device=[cuda:0,cuda:1]"],
    ["-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler.name=random"], ["-m", "+hydra.launcher.devices=[cpu]"],
]  # fmt: skip
"""Arguments of `kdbench` after those of a small run, flags first."""


def command_line(arguments: list[str]) -> None:
    """Call `kdbench` and raise the error that it reports."""
    overrides = [a for a in arguments if "=" in a or not arguments[0].startswith("-")]
    flags = arguments[: len(arguments) - len(overrides)]
    run = [] if arguments == ["-m"] or arguments[-1] == "pair=keys" else list(SMALL)
    sys.argv = ["kdbench", *flags, *run, *(["method=ce"] if not run else []), *overrides]
    if arguments == ["-m"]:
        sys.argv = ["kdbench", "method=ce", "-m", "seed=0,1"]  # a flag after an override
    with recorded_errors() as made, pytest.raises(SystemExit):
        cli.main()
    if made:
        raise made[-1]


def registered(output_root: str, *arguments: str) -> None:
    """Register a small study."""
    study(["study=to_register", "--config-dir", "own", f"output_root={output_root}", *arguments, "--register"])


def registered_late() -> None:
    """Register a small study of which a run that reports was started."""
    arguments = ["study=to_register", "output_root=late"]
    StudyPlan(read_study(arguments, Path("own"))).runs_of("finals")[0].directory.path.mkdir(parents=True)
    registered("late")


# Files that cases need


def prepare(folder: Path) -> None:
    """Fill the working directory of the cases."""
    (folder / "file").touch()
    (folder / "empty").mkdir()
    (folder / "damaged.pth").write_bytes(bytes(range(256)))
    torch.save({"fc.weight": torch.zeros(1)}, folder / "wrong.pth")
    torch.save([1], folder / "list.pth")
    (folder / "code.pth").write_bytes(pickle.dumps(os.getcwd))
    (folder / "damaged.safetensors").write_bytes(b"\xff" * 64)
    with zipfile.ZipFile(folder / "script.pt", "w") as archive:
        archive.writestr("net/constants.pkl", "x")
    (folder / "link").symlink_to(folder / "elsewhere")
    image = Image.new("RGB", (12, 10), (90, 120, 30))
    for place in ("photos/cat", "photos/dog", "one_class/cat", "one_empty/cat", "corrupt/cat", "corrupt/dog"):
        (folder / place).mkdir(parents=True)
        for number in range(4):
            image.putpixel((number, 0), (255, 0, number))
            image.save(folder / place / f"{number}.png")
    (folder / "one_empty" / "dog").mkdir()
    for number, content in enumerate((b"", b"no image", (folder / "photos/cat/0.png").read_bytes()[:60])):
        (folder / "corrupt" / "dog" / f"bad{number}.png").write_bytes(content)
    shutil.copytree(folder / "photos", folder / "differing" / "train")
    shutil.copytree(folder / "photos", folder / "differing" / "test")
    (folder / "differing" / "test" / "dog").rename(folder / "differing" / "test" / "fox")
    (folder / "incomplete" / "cifar-10-batches-py").mkdir(parents=True)
    for name, content in {"broken": "{a: [", "list": "- a\n"}.items():
        for group in ("model", "study"):
            (folder / name / group).mkdir(parents=True)
        (folder / name / "model" / "mine.yaml").write_text(content)
    for name in ("broken", "list"):
        (folder / "studies" / "study").mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name / "model" / "mine.yaml", folder / "studies" / "study" / f"{name}.yaml")
    for name, change in STUDIES.items():
        (folder / "studies" / "study" / f"{name}.yaml").write_text(yaml.safe_dump(STUDY | change))
    (folder / "recorded").mkdir()
    (folder / "recorded" / "config.yaml").write_text("seed: 0\ninit_seed: 0\ndata_seed: 5\n")
    (folder / "own" / "pair").mkdir(parents=True)
    (folder / "own" / "pair" / "headless.yaml").write_text("defaults:\n  - override /teacher: resnet20\n")
    (folder / "own" / "pair" / "mistyped.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /techer: resnet20\n"
    )
    for name in ("keys", "plain"):
        (folder / "own" / "pair" / f"{name}.yaml").write_text("teacher: resnet20\nstudent: resnet8\n")
    (folder / "own" / "pair" / "twice.yaml").write_text("# @package _global_\ndefaults:\n  - /teacher: resnet20\n")
    (folder / "own" / "pair" / "broken.yaml").write_text("defaults:\n- a\n  - b: c\n")
    (folder / "own" / "pair" / "chosen.yaml").write_text("# @package _global_\nteacher: resnet20\n")
    (folder / "own" / "model").mkdir()
    (folder / "own" / "model" / "own.yaml").write_text(
        "{_target_: kdbench.models.cifar_resnet.CifarResNet, depth: 8, stages: {}}\n"
    )
    (folder / "own" / "method").mkdir()
    (folder / "own" / "method" / "away.yaml").write_text("_target_: not_on_the_path.Mine\n")
    (folder / "selected.yaml").write_text("a: 1\n")
    (folder / "own" / "study").mkdir()
    (folder / "own" / "study" / "to_register.yaml").write_text(yaml.safe_dump(TO_REGISTER))
    (folder / "plans").mkdir()
    (folder / "plans" / "changed.yaml").write_text("schema: 1\nsha256: other\n")
    other = {"schema": 2, "version": "9.9"}
    (folder / "plans" / "other_version.yaml").write_text(yaml.safe_dump(other | {"sha256": hash_of(other)}))
    (folder / "plans" / "other_version.json").write_text('{"schema": 2}')
    for name, change in RUNS.items():
        run = folder / "runs" / name
        shutil.copytree(RESULTS / "cifar10_resnet8_ce_seed0_10e8c82757fa64f7", run)
        content = json.loads((run / "summary.json").read_text()) | change
        content = {key: value for key, value in content.items() if value != "absent"}
        content["checksum"] = "0" * 64 if name == "edited" else checksum_of(content)
        (run / "summary.json").write_text(json.dumps(content))
    (folder / "runs" / "changed" / "metrics.csv").write_text("epoch\n1\n")
    for name, content in {"broken": "{", "array": "[]"}.items():
        (folder / "runs" / name).mkdir()
        (folder / "runs" / name / "summary.json").write_text(content)
    weights.save(with_method(Plain().state_dict(), {"scale": torch.ones(1)}), folder / "of_a_method.safetensors",
                 {METHOD_PART: "simkd"})  # fmt: skip
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "config.yaml").touch()
    shutil.copytree(RESULTS / "cifar10_resnet8_ce_seed0_10e8c82757fa64f7", folder / "damaged_run")
    (folder / "damaged_run" / "logits.safetensors").write_bytes(b"\xff")
    node = composed_once(*SMALL).node()
    configs = {
        "text": "[1, 2]", "unreadable": "a: [",
        "interpolated": yaml.safe_dump(node | {"output_root": "${oc.env:HOME}"}),
        "foreign": yaml.safe_dump(node | {"student": node["student"] | {"_target_": "os.system"}}),
        "no_model": yaml.safe_dump(node | {"student": node["student"] | {"_target_": "kdbench.models.weights.read"}}),
        "no_method": yaml.safe_dump(
            node | {"method": node["method"] | {"_target_": "kdbench.methods.logit.LogitDistillation.Config"}}
        ),
        "gone": yaml.safe_dump(node | {"student": node["student"] | {"_target_": "kdbench.models.gone.Net"}}),
        "value": yaml.safe_dump(node | {"seed": -1}),
    }  # fmt: skip
    for name, content in configs.items():
        (folder / f"{name}.yaml").write_text(content)


TO_REGISTER = {
    "question": "Does it work?", "overrides": list(SMALL[2:]),
    "stages": {
        "teachers": {"teachers": ["resnet20"], "seeds": [0]},
        "finals": {
            "students": ["resnet8"], "pairs": ["resnet20_resnet8"], "methods": {"logit": None}, "seeds": [0, 1],
        },
    },
}  # fmt: skip
RESULTS = Path(__file__).parents[1] / "results" / "lab" / "runs"
RUNS: dict[str, dict[str, Any]] = {
    "right": {}, "edited": {"test_acc_best": 0.99}, "changed": {"metrics_sha256": "0" * 64},
    "lacking": {"test_acc_best": "absent"},
    "wrong": {"macs": "many"}, "without_seed": {"seed": None, "run_key": "1" * 16},
    "other_data": {"dataset": "shapes", "run_key": "2" * 16}, "other_version": {"schema_version": 2},
    "other_names": {"class_names": [*"abcdefghij"], "run_key": "3" * 16},
}  # fmt: skip
"""Changes of a committed run's summary."""
STUDY: dict[str, Any] = {
    "question": "Why?", "overrides": [], "selection_seeds": [100], "final_seeds": [0], "teacher_seeds": [0],
    "select_baseline": False, "stages": {"one": {"students": ["resnet8"], "seeds": [0]}},
}  # fmt: skip
ONE: dict[str, Any] = {"pairs": ["resnet20_resnet8"], "seeds": [0]}
CHOOSING: dict[str, Any] = ONE | {"methods": {"logit": {"method.alpha": [0.1, 0.5]}}, "choose": "best_val_acc"}
STUDIES: dict[str, dict[str, Any]] = {
    "idle": {"stages": {"one": {"seeds": [0]}}},
    "on_test": {"stages": {"one": CHOOSING | {"choose": "test_acc_best"}}},
    "twice": {"stages": {"one": CHOOSING, "two": CHOOSING}},
    "winners": {"stages": {"one": ONE | {"winners_of": "none"}}},
    "others": {"stages": {"one": CHOOSING, "two": ONE | {"pairs": ["r50_r18"], "winners_of": "one"}}},
    "unpaired": {"stages": {"one": {"students": ["resnet8"], "methods": {"logit": None}, "seeds": [0]}}},
    "methodless": {"stages": {"one": ONE}},
    "grid": {"stages": {"one": ONE | {"methods": {"logit": {"method.alpha": 0.1}}}}},
    "baseline": {"stages": {"one": CHOOSING | {"baseline": {"data.num_train": [1, 2]}}}},
    "trained_on": {"overrides": ["data.validation=false"], "stages": {"one": CHOOSING}},
    "unresolved": {"question": "${nothing}"},
    "typo": {"qestion": "Why?"},
    "listed": {"stages": ["one"]},
    "listed_methods": {"stages": {"one": ONE | {"methods": ["logit"]}}},
    "one_seed": {"stages": {"one": ONE | {"seeds": 0}}},
    "one_pair": {"stages": {"one": ONE | {"pairs": "resnet20_resnet8"}}},
}
"""Studies that cannot be executed, as changes of one that can."""


# Calls


def lock_of_another_process(content: str, wait: bool) -> None:
    Path("key.lock").write_text(content)
    with Lock(Path("key.lock"), "run shapes_resnet8").held(wait):
        raise AssertionError("it is held")


def held_by_this_process() -> None:
    with Lock(Path("own.lock"), "run x").held(), Lock(Path("own.lock"), "run x").held(wait=False):
        raise AssertionError("two hold it")


def load_weights(change: Callable[[dict[str, Any]], Any]) -> None:
    own = build(composed_once(*SMALL).student, SPEC)
    content = dict(own.body.state_dict())
    change(content)
    weights.load_into(own, content, "given.pth")


def small_run() -> tuple[Any, RunDirectory]:
    return composed_once(*SMALL), RunDirectory(Path("outputs/runs/shapes_resnet8_0"), "0" * 16)


def ended_by(error: Exception) -> None:
    raise user_error(error, *small_run())


def full_disk() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1_000_000))
        check_disk_space(small_run()[1], torch.nn.Linear(1000, 1000), 100, num_classes=10, copies=3)


def full_memory(**changes: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda device: 100_000)
        config = composed_once(*SMALL).data
        params = dataclasses.replace(config.params, num_train=640, **changes)
        read_data(dataclasses.replace(config, params=params), "cpu")


def changed_settings(**changes: Any) -> None:
    settings = NumericSettings(2, True, "fast", False, None, "ab", "cd")
    directory = small_run()[1]
    directory.path.mkdir(parents=True, exist_ok=True)
    metadata = dataclasses.asdict(settings) | changes
    directory.save_checkpoint({METADATA: metadata}, b"")
    check_settings(settings, directory)


def finished_sweep(*statuses: str) -> None:
    runs = [PlannedRun((), "") for _ in statuses]
    for run, status in zip(runs, statuses, strict=True):
        run.status = status
    raise_failures(runs)


def trained(*overrides: str) -> None:
    (result,) = run_with_retries([compose([*SMALL, *NARROW, "output_root=trained", *overrides])])
    if result.error:
        raise result.error


def unimportable_model() -> None:
    module = types.ModuleType("__main__")
    exec("def net(num_classes): ...", vars(module))  # as in an interactive session
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", module)
        model_identity(dataclasses.replace(composed_once(*SMALL).student, target="__main__.net"))


def network(name: str, stages: dict[str, Any] | None = None, logits: Any = None, **arguments: Any) -> ModelConfig:
    return ModelConfig(name, f"tests.networks.{name}", stages or {}, arguments, logits)


def brought(model: ModelConfig, *overrides: str, group: str = "student") -> None:
    """Check a small run with another network."""
    config = composed_once(*SMALL, *overrides)
    if group == "student":
        check_run(dataclasses.replace(config, student=model))
    assert config.teacher is not None
    check_run(dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, model=model)))


def without_stage() -> None:
    found = build(network("Plain", {"layer2": "layer2"}), SPEC, ("layer2",))
    found.body.forward = lambda images: found.body.fc(images.flatten(1)[:, :32])
    found(torch.zeros(1, 3, 32, 32))


def checkpoint(content: Any) -> None:
    torch.save(content, "given.pth")
    read_checkpoint(Path("given.pth"), Plain().state_dict(), None)


def first_weights(**changes: Any) -> None:
    config = composed_once(*SMALL, "student=resnet18", "student.stem=imagenet", "method=ce")
    check_run(dataclasses.replace(config, student=dataclasses.replace(config.student, **changes)))


def changed_config() -> None:
    config = compose([*SMALL, "method=ce"])
    config.seed = 5
    kdbench.run(config)


A_FAILURE = Failure("not_finite", "epoch 3: the loss is nan", 3, {"run_key": "4" * 16, "student": "resnet8",
                                                                     "method": "ce"})  # fmt: skip


def changed_run(config: str = "", failure: str = "", **changes: Any) -> Path:
    """Write a run that differs from another one in tensors, given as functions, or keys of its summary; return it."""
    folder = Path("compared")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("runs/right", folder)
    file, edits = folder / "logits.safetensors", {name: changes.pop(name) for name in TENSORS if name in changes}
    tensors = load_file(file)
    for name, edit in edits.items():
        tensors[name] = np.ascontiguousarray(edit(tensors[name])) if edit else tensors[name]
    save_file(tensors, file)
    if None in edits.values():
        file.unlink()
    content = json.loads((folder / "summary.json").read_text()) | changes
    (folder / "summary.json").write_text(json.dumps(content | {"checksum": None}))
    if config:
        (folder / "config.yaml").write_text(config)
    if failure:
        (folder / "summary.json").unlink()
        (folder / "failure.json").write_text(failure)
    return folder


TENSORS = ("test_logits", "test_labels")


def compare_right(**changes: Any) -> None:
    """Compare a run with a changed one."""
    compare(["runs/right", str(changed_run(**changes))])


def compare_other_images() -> None:
    """Compare two runs with equal labels and other test images."""
    shutil.copytree(changed_run(data_sha256={"test": "ab" * 32}), "other_images")
    compare(["other_images", str(changed_run(data_sha256={"test": "cd" * 32}))])


def images_of_others() -> None:
    """Read test images whose labels are others than those of the logits."""
    few = changed_run(
        test_logits=lambda logits: logits[:60], test_labels=lambda labels: labels[:60], num_test=60, data_sha256=None,
        config=yaml.safe_dump({"data": composed_once(*SMALL).node()["data"]}),
    )  # fmt: skip
    features.test_images(read_run(few, "RUN_A"), None, ())


CALLS: dict[str, list[Callable[[], Any]]] = {
    "compose": [
        lambda: compose("method=ce"), lambda: compose([1]), lambda: compose({"method": "ce"}),
        lambda: compose(config_dir="nowhere"), lambda: kdbench.run(["method=ce"]),
        lambda: compose(config_dir=5), changed_config,
    ],
    "run directories": [
        lambda: kdbench.load_run("nowhere"), lambda: kdbench.load_run("unfinished"),
        lambda: kdbench.load_run("damaged_run"), lambda: kdbench.load_runs("nowhere"),
        lambda: kdbench.load_runs("file"), lambda: kdbench.load_student("nowhere"),
        lambda: kdbench.load_run(None), lambda: kdbench.load_runs(["runs"]), lambda: kdbench.load_student(5),
        lambda: kdbench.load_student("runs/right", trusted="tests"),
        lambda: kdbench.load_student("runs/right"),
        *(lambda name=name: read_summary(Path("runs") / name)
          for name in ("edited", "lacking", "wrong", "broken", "array", "nowhere")),
        *(lambda name=name: read_config(Path(f"{name}.yaml"))
          for name in ("text", "unreadable", "interpolated", "foreign", "no_model", "no_method", "gone", "value")),
        lambda: read_data_config(Path("selected.yaml")),
        lambda: data_config(Path("empty"), dataclasses.replace(read_summary(Path("runs/right")), dataset="mine")),
        lambda: check_no_links(Path("link")), lambda: check_writable(Path("file") / "x"),
        lambda: check_writable(Path("x" * 300), "--out"), unimportable_model,
    ],
    "locks": [
        held_by_this_process, lambda: lock_of_another_process(FOREIGN.format(pid=7, lease=7.5), wait=True),
    ],
    "weights": [
        *(lambda name=name: weights.read(Path(name))
          for name in ("nowhere.pth", "damaged.pth", "code.pth", "list.pth", "damaged.safetensors")),
        lambda: weights.read_metadata(Path("damaged.safetensors")),
        lambda: load_weights(lambda content: content.pop("fc.weight")),
        lambda: load_weights(lambda content: content.update({"fc.weight": torch.zeros(100, 64)})),
        lambda: load_weights(lambda content: content.update({"fc.weight": content["fc.weight"] * torch.nan})),
        lambda: load_weights(lambda content: content.update({"fc.bias": torch.zeros(10, dtype=torch.int64)})),
    ],
    "networks": [
        lambda: brought(network("LogitsFirst")), lambda: brought(network("LogitsFirst", logits="nothing")),
        lambda: brought(network("TwoHeads"), group="teacher"), lambda: brought(network("swallows_num_classes")),
        lambda: brought(network("OfOther", change="transposed")), lambda: brought(network("fails_while_it_is_built")),
        lambda: brought(network("Plain", {"layer1": "layer9"})),
        lambda: brought(network("Shared", {"layer1": "relu"}), "method=feature"),
        lambda: brought(network("WithList", {"layer1": "blocks"}), "method=feature"),
        lambda: brought(network("WithList", {"layer1": "stem"}), "method=feature"),
        lambda: brought(network("ChannelsLast", {"layer1": "more"}), "method=feature", group="teacher"),
        lambda: brought(network("OwnGenerator")), lambda: brought(network("RandomBuffer")),
        lambda: brought(network("ExtraState")), lambda: brought(network("RandomInEvaluation"), group="teacher"),
        lambda: brought(network("StochasticDepth"), "runtime.compile=true"),
        lambda: brought(network("of_one_image_fails"), "data.num_val=129"), without_stage,
        lambda: brought(network("OfAnotherKind", kind="images")),
        lambda: brought(network("OfAnotherKind", kind="backward")),
        lambda: brought(network("Detached", {"layer1": "layer1"}), "method=feature"),
        *(lambda stage=stage: edited(f"student.stages.layer1={stage}") for stage in ("5", "{node: a, input_of: b}",
          "{node: layer1, layout: chw}")),
        *(lambda override=override: edited(override) for override in ("student.logits={a: 1}", "student.weights=5",
          "teacher.mean=[0,0,0]", "teacher.checkpoint_key=ema")),
        lambda: edited("teacher.weights=DEFAULT", "teacher.checkpoint=wrong.pth"),
        lambda: first_weights(weights="IMAGENET1K_V9"), lambda: first_weights(weights="nowhere.pth"),
        lambda: brought(dataclasses.replace(network("Plain"), weights="DEFAULT")),
    ],
    "checkpoint files": [
        lambda: checkpoint([1]), lambda: checkpoint({"a": Plain().state_dict(), "b": Plain().state_dict()}),
        lambda: checkpoint(Plain(100).state_dict()), lambda: checkpoint(Plain(width=4).state_dict()),
        lambda: read_checkpoint(Path("script.pt"), Plain().state_dict(), None),
        lambda: read_checkpoint(Path("of_a_method.safetensors"), Plain().state_dict(), None),
    ],
    "runs": [
        full_disk, full_memory, lambda: full_memory(memory="host"),
        lambda: ended_by(OSError(28, "No space left on device", "outputs/runs/last.ckpt")),
        lambda: ended_by(OSError(5, "Input/output error", "outputs/runs/last.ckpt")),
        lambda: ended_by(OSError(13, "Permission denied", "outputs/runs/last.ckpt")),
        lambda: ended_by(OSError(2, "No such file or directory", "outputs/runs/last.ckpt")),
        lambda: ended_by(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")),
        lambda: changed_settings(threads=4), lambda: changed_settings(teacher_weights_sha256="ef"),
        lambda: changed_settings(train_data_sha256="ef"),
        lambda: check_finite(torch.tensor([[torch.nan]]), 3),
        lambda: trained("method=ce", "recipe.lr=1e30", "recipe.clip_norm=null"),
        lambda: trained("teacher.recipe.lr=1e30", "teacher.recipe.clip_norm=null"),
        *(lambda name=name: trained("method=ce", f"method._target_=tests.test_messages.{name}")
          for name in ("WithoutTotal", "WithoutTerms", "WithoutLogits", "WithoutGradient", "TakenName", "NotATensor")),
        lambda: finished_sweep(Status.COMPLETE, Status.FAILED),
        lambda: finished_sweep(Status.COMPLETE, Status.SKIPPED),
        lambda: finished_sweep(Status.COMPLETE, Status.INTERRUPTED),
    ],
    "kdbench-report": [
        lambda: report([]), lambda: report(["nowhere", "--out", "out"]), lambda: report(["empty", "--out", "out"]),
        lambda: report(["runs", "--out", "out"]), lambda: report(["@missing", "--out", "out"]),
        lambda: report(["runs/changed", "--out", "out"]), lambda: report(["runs/without_seed", "--out", "out"]),
        lambda: report(["runs/right", "runs/other_data", "--out", "out"]),
        lambda: report(["runs/right", "runs/other_names", "--out", "out"]),
        lambda: report(["runs/other_version", "--out", "out"]),
        lambda: report(["runs/right", "--out", "out", "--data-root", "nowhere"]),
        lambda: report(["runs/right", "--out", "file/out"]),
        lambda: report(["runs/right", "--out", "out", "--margin", "0"]),
        lambda: report(["runs/right", "--out", "out", "--analysis", "anova"]),
        *(lambda flag=flag, file=file: report(["runs/right", "--out", "out", flag, file])
          for flag in ("--plan", "--against") for file in ("nowhere", "selected.yaml")),
        *(lambda name=name: report(["runs/right", "--out", "out", "--plan", f"plans/{name}.yaml"])
          for name in ("changed", "other_version")),
        lambda: report(["runs/right", "--out", "out", "--against", "plans/other_version.json"]),
        lambda: report(["runs/right", "--out", "out", "--select", "nowhere.yaml"]),
        lambda: report(["runs/right", "--out", "out", "--select", "selected.yaml"]),
        lambda: report(["runs/right", "--out", "out", "--select", str(RESULTS.parent / "selected.yaml")]),
    ],
    "kdbench-study": [
        *(lambda arguments=arguments: study([*arguments, "--dry-run"]) for arguments in (
            [], ["study=labs"], ["study"], ["study=lab", "--nonsense"], ["study=lab", "--minutes", "0"],
            ["study=lab", "--max-learners", "0"], ["study=lab", "--config-dir", "nowhere"],
            ["study=lab", "stages=[final]"], ["study=lab", "final_seeds=5"], ["study=lab", "--minutes", "abc"],
            ["study=lab", "stages=[]"], ["study=lab", "final_seeds=[a]"],
            ["study=lab", "seed=1"], ["study=lab", "recipe.lr=0.1,0.2"], ["study=lab", "~seed"],
            ["study=lab", "hydra.mode=RUN"],
        )),
        *(lambda name=name: study([f"study={name}", "--config-dir", "studies", "--dry-run"])
          for name in ("broken", "list", *STUDIES)),
        lambda: registered("nothing", "stages=[teachers]"),
        lambda: [registered("twice"), registered("twice", "--margin", "0.5")],
        registered_late,
    ],
    "kdbench-bench": [
        *(lambda arguments=arguments: bench(arguments) for arguments in (
            ["student=resnet8", "method=ce", "recipe=vit"],
            ["--rounds", "0"], ["--arms", "nothing", *SMALL], ["--arms", "logit cache", *SMALL, "method=ce"],
            ["--lockstep", *SMALL], ["hydra/launcher=slurm", *SMALL], [*SMALL, "recipe.batch_size=128"],
            ["--out", "file/x.json", *SMALL, "method=ce"],
        )),
    ],
    "kdbench-compare": [
        *(lambda arguments=arguments: compare(arguments) for arguments in (
            [], ["runs/right"], ["nowhere", "runs/right"], ["file", "runs/right"], ["empty", "runs/right"],
            ["runs", "runs/right"], ["runs/right", "unfinished"], ["runs/right", "runs/right", "--teacher", "nowhere"],
            ["runs/right", "runs/right", "--trust", "a"], ["runs/right", "runs/right", "--data-root", "."],
            ["runs/right", "runs/right", "--features", "--trust", "a b"],
            ["runs/right", "runs/right", "--features", "--data-root", "nowhere"],
            ["runs/right", "runs/right", "--features"], ["runs/right", "damaged_run"], ["runs/edited", "runs/right"],
            ["runs/other_names", "runs/right"], ["runs/changed", "runs/right"],
        )),
        lambda: compare_right(status="failed"), lambda: compare_right(failure="{"),
        lambda: compare_right(failure=json.dumps(dataclasses.asdict(A_FAILURE))),
        lambda: compare_right(test_logits=None), lambda: compare_right(test_logits=None, method="checkpoint"),
        lambda: compare_right(test_logits=None, config="a: 1"),
        lambda: compare_right(test_logits=lambda logits: logits * np.float16(np.inf)),
        lambda: compare_right(test_logits=lambda logits: logits[:, 0]),
        lambda: compare_right(test_labels=lambda labels: labels[1:]),
        lambda: compare_right(test_labels=lambda labels: labels + np.uint8(10)),
        lambda: compare_right(test_logits=lambda logits: logits.astype(np.float32), logits_sha256="0" * 64),
        lambda: compare_right(test_labels=lambda labels: labels[::-1]),
        lambda: compare_right(test_logits=lambda logits: logits[:, :9], test_labels=lambda labels: labels % 9,
                              class_names=None),
        compare_other_images, images_of_others,
        lambda: features.test_images(read_run(Path("runs/right"), "RUN_A"), None, ()),
    ],
    "deployment": TRAINED_CASES,
    "launchers": LAUNCHER_CASES,
    "sharing": SHARING_CASES,
    "studies on engines": STUDY_ENGINE_CASES,
    "several processes": PROCESSES_CASES,
    "slurm": SLURM_CASES,
    "trackers": TRACKER_CASES,
    "ray": RAY_CASES,
    "search": SEARCH_CASES,
    "kdbench-verify": [
        *(lambda arguments=arguments: verify_runs(arguments) for arguments in (
            [], ["nowhere"], ["empty"], ["--trust", "a b", "runs/right"], ["--data-root", "nowhere", "runs/right"],
        )),
    ],
}  # fmt: skip


SECTIONS: dict[str, list[tuple[str, Callable[[], Any]]]] = {
    "values of a config": [
        (" ".join((*base, override)), lambda override=override, base=base: edited(override, *base))
        for base, overrides in VALUES.items()
        for override in overrides
    ],
    "kdbench": [(" ".join(line), lambda line=line: command_line(line)) for line in COMMAND_LINES],
} | {title: [(f"number {n}", call) for n, call in enumerate(calls, 1)] for title, calls in CALLS.items()}
"""Name and call of each case, by section of the file."""
SLOW = ("kdbench", "kdbench-study", "studies on engines", "deployment", "search", "trackers", "values of a config")
"""Sections whose cases each compose a config: slow."""


def line_of(error: KdbenchError, folder: Path) -> str:
    """Return the line of an error, with the parts that differ from machine to machine replaced."""
    text = str(error).replace(str(folder), "FOLDER").replace(str(SOURCE.parent), "REPOSITORY")
    text = text.replace(socket.gethostname(), "HOST").replace(f"process {os.getpid()}", "process PID")
    text = re.sub(r"\b(?=\d*[a-f])[0-9a-f]{12,64}\b", "HASH", text)
    text = re.sub(r"_[0-9a-f]{16}\b", "_HASH", text)
    text = re.sub(r"x{100,}", "x...x", text)
    text = re.sub(r"\.py, line \d+", ".py, line N", text)
    return f"{error.code} | {error.key} | {text}"


def unreachable(*_: Any, **__: Any) -> None:
    raise OSError("no network in a test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messages").resolve()
    prepare(folder)
    return folder


def sections_of_the_file() -> dict[str, list[str]]:
    """Return the lines of each section of messages.txt."""
    parts = [part.splitlines() for part in GOLDEN.read_text().removeprefix("# ").split("\n\n# ")]
    return {title: lines for title, *lines in parts}


@pytest.mark.parametrize(
    "section", [pytest.param(title, marks=pytest.mark.slow if title in SLOW else ()) for title in SECTIONS]
)
def test_messages_are_those_of_the_file(folder, monkeypatch, section):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["kdbench"])
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    lines = []
    for name, call in SECTIONS[section]:
        try:
            call()
        except KdbenchError as error:
            lines.append(line_of(error, folder))
        else:
            lines.append(f"NO ERROR: {name}")
    if os.environ.get("KDBENCH_UPDATE_MESSAGES") == "1":
        assert "PYTEST_XDIST_WORKER" not in os.environ, "one process alone may write the file"
        content = sections_of_the_file() | {section: lines}
        GOLDEN.write_text("\n\n".join("\n".join([f"# {title}", *content.get(title, [])]) for title in SECTIONS) + "\n")
    expected = sections_of_the_file().get(section, [])
    changes = difflib.unified_diff(expected, lines, "messages.txt", "now", lineterm="", n=0)
    assert lines == expected, "\n".join(["messages differ (KDBENCH_UPDATE_MESSAGES=1 accepts them):", *changes])


def test_the_file_has_the_sections_of_the_cases():
    assert list(sections_of_the_file()) == list(SECTIONS)


def test_every_code_has_a_message():
    lines = [line for section in sections_of_the_file().values() for line in section]
    shown = {line.split(" | ")[0] for line in lines}
    raised = set(codes_in_source())
    assert raised - shown - set(NEEDS_A_FAULT) == set()
    assert set(NEEDS_A_FAULT) <= raised - shown


def codes_in_source() -> Iterator[str]:
    """Yield every text that is the `code` of an error in the source: as an argument, or in a table of codes."""
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code":
                yield from (
                    part.value for part in ast.walk(node.value)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )  # fmt: skip


def test_every_error_has_a_code_and_names_a_key_of_one_word():
    for line in (line for section in sections_of_the_file().values() for line in section):
        code, key, text = line.split(" | ", 2)
        assert re.fullmatch(r"[a-z_]+", code), line
        assert " " not in key, line
        assert text, line
