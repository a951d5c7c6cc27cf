"""Runs on data sets as people bring them, and by recipes beyond the reference study's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.models import build
from kdbench.report.command import report
from kdbench.rundir.load import load_run
from kdbench.rundir.student import load_student
from kdbench.runner.run import check_run, resolve_run
from kdbench.verify.command import verify_runs
from tests.conftest import NARROW, SMALL, complete, composed_once
from tests.networks import SPEC

Small = Callable[..., RunConfig]
ALL_IMAGES = ("data.num_train=null", "data.num_val=null", "data.num_test=null")
CLASSES = ("heron", "kite", "owl")


@pytest.fixture(scope="module")
def photos_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 24 noisy images of 64 x 64 pixels for each of three classes, each of its own colour."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for channel, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(24):
            pixels = random.integers(0, 120, (64, 64, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture
def photos(photos_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(photos_once, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def of_folder(small: Small) -> Callable[..., RunConfig]:
    """Return a run of seconds on a folder of images."""

    def make(root: Path, *overrides: str) -> RunConfig:
        sizes = (
            "recipe.batch_size=8", "recipe.epochs=2", "teacher.recipe.batch_size=8", "runtime.channels_last=false"
        )  # fmt: skip
        return small("data=image_folder", f"data.root={root}", "data.size=64", *ALL_IMAGES, *sizes, *overrides)

    return make


@pytest.mark.slow
def test_a_folder_of_larger_images_is_distilled_verified_loaded_and_reported(
    photos: Path, of_folder: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = complete(of_folder(photos))
    summary = run.read_summary()
    assert summary.class_names == list(CLASSES)
    assert summary.input_shape == [3, 64, 64]
    assert (summary.num_train, summary.num_val, summary.num_test) == (60, 6, 6)
    assert len(summary.per_class_acc or ()) == 3
    assert verify_runs([str(run.path.parent)]) == 0
    logits = load_student(run.path)(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert logits.shape == (2, 3)
    assert load_run(run.path).logits["test_logits"].shape == (6, 3)
    report([str(run.path.parent), "--out", str(tmp_path / "report"), "--no-figures"])
    assert {f"class_{name}" for name in CLASSES} <= set(pd.read_csv(tmp_path / "report" / "per_class.csv").columns)
    capsys.readouterr()


def test_the_same_images_elsewhere_are_the_same_run_and_a_changed_image_is_another(
    photos: Path, of_folder: Callable[..., RunConfig], tmp_path: Path
) -> None:
    def key(root: Path) -> str:
        return resolve_run(of_folder(root, "method=ce"))[1].key

    first = key(photos)
    shutil.copytree(photos, tmp_path / "moved")
    assert key(tmp_path / "moved") == first
    changed = tmp_path / "moved" / "owl" / "03.png"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    shutil.copytree(tmp_path / "moved", tmp_path / "changed")
    assert key(tmp_path / "changed") != first


def test_sizes_and_normalisation_that_are_null_are_recorded_as_numbers(
    photos: Path, of_folder: Callable[..., RunConfig]
) -> None:
    config = of_folder(photos, "method=ce")
    assert (config.data.params.num_train, config.data.params.mean) == (None, None)
    resolved = resolve_run(config)[0].data
    assert resolved.params.num_train == 60
    assert resolved.params.mean == pytest.approx([92.5 / 255 + 100 / 765 - 33 / 255] * 3, abs=0.05)
    assert len(resolved.content or "") == 64
    assert resolve_run(of_folder(photos, "method=ce", "data.num_train=60"))[0].data.content == resolved.content


def test_a_convolution_that_the_cpu_cannot_train_is_refused_with_its_path(
    photos: Path, of_folder: Callable[..., RunConfig]
) -> None:
    """Eight channels and a stride: half as wide as the usual network."""
    with pytest.raises(ConfigError, match=r"layer2\.0\.shortcut\.0.*use runtime\.channels_last=false") as error:
        check_run(of_folder(photos, "method=ce", "runtime.channels_last=true"))
    assert (error.value.code, error.value.key) == ("unsafe_convolution", "runtime.channels_last")
    check_run(of_folder(photos, "method=ce", "runtime.channels_last=true", "student.widths=[16,16,32,64]"))
    check_run(of_folder(photos, "method=ce", "runtime.channels_last=true", "data.size=32"))


def test_given_weights_for_another_number_of_classes_are_refused_with_both_numbers(
    small: Small, tmp_path: Path
) -> None:
    ten = small()
    assert ten.teacher is not None
    save_file(build(ten.teacher.model, SPEC).body.state_dict(), tmp_path / "ten.safetensors")
    with pytest.raises(ConfigError, match=r"\b10 classes.*\b100\b|\b100\b.*\b10 classes") as error:
        check_run(small("data=shapes100", "data.num_train=200", f"teacher.checkpoint={tmp_path / 'ten.safetensors'}"))
    assert error.value.key.startswith("teacher.checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["device", pytest.param("host", marks=pytest.mark.wide)])
def test_a_hundred_classes_train_with_a_logit_cache_of_their_own_width(small: Small, kept: str) -> None:
    settings = ("data=shapes100", "data.num_train=200", "data.augment=false", "teacher.cache=on", f"data.memory={kept}")
    run = complete(small(*settings))
    summary = run.read_summary()
    assert summary.logit_cache is True
    assert summary.class_names is not None
    assert summary.class_names[:2] == ["disk-disk", "disk-ring"]
    (cache,) = run.path.parent.glob("*/logits-cpu.npy")
    assert np.load(cache).shape == (200, 1, 100)


@pytest.mark.slow
def test_the_recipe_of_published_tables_distils_resnets_on_cifar100(small: Small, cifar100_root: Path) -> None:
    """The pair resnet32x4 to resnet8x4 by `recipe=crd`, shortened, on 100 real images."""
    sizes = ("data.num_train=100", "data.num_val=100", "data.num_test=100")
    recipe = tuple(
        f"{path}.{key}"
        for path in ("recipe", "teacher.recipe")
        for key in ("epochs=3", "milestones=[1,2]", "batch_size=32")
    )
    config = small(
        "data=cifar100", f"data.root={cifar100_root}", *sizes, "student=resnet8x4", "teacher=resnet32x4",
        "student.widths=[32,64,128,256]", "teacher.widths=[32,64,128,256]", "recipe=crd", *recipe,
    )  # fmt: skip
    run = complete(config)
    metrics = pd.read_csv(run.metrics)
    assert metrics.lr.tolist() == pytest.approx([0.05, 0.005, 0.0005])
    assert metrics.train_loss.iloc[-1] < metrics.train_loss.iloc[0]
    summary = run.read_summary()
    assert (summary.num_params, len(summary.class_names or ())) == (1_233_540, 100)


@pytest.mark.slow
def test_a_small_vision_transformer_learns_by_logits_with_adamw_warm_up_and_mixup(tmp_path: Path) -> None:
    recipe = (
        "recipe=vit", "recipe.epochs=8", "recipe.warmup_epochs=1", "recipe.batch_size=32", "recipe.lr=1e-3",
        "recipe.label_smoothing=0", "recipe.mixup=0.2", "recipe.cutmix=0", "recipe.policy=null", "recipe.erasing=0",
        "teacher.recipe.epochs=3", "method.alpha=0.9", "student.patch_size=8", "student.hidden_dim=96",
        "student.mlp_dim=192",
    )  # fmt: skip
    sizes = ("data.num_train=3000", "data.num_val=300", "data.num_test=300")
    run = complete(composed_once(*SMALL, NARROW[1], *sizes, "student=vit", *recipe, f"output_root={tmp_path}"))
    metrics = pd.read_csv(run.metrics)
    assert metrics.lr.iloc[0] == pytest.approx(1e-6)
    assert metrics.lr.idxmax() == 1
    assert metrics.train_loss.iloc[-1] < 0.85 * metrics.train_loss.iloc[0]
    assert metrics.train_acc.iloc[-1] > 0.13  # chance: 0.1, with a standard error of 0.005
    assert "recipe.mixup=0.2 makes images that are no views" in run.log.read_text()
