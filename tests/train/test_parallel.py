"""Several processes that train one run: the same losses and weights as one process."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kdbench.system.world import World
from kdbench.train.synced_batch_norm import SyncedBatchNorm
from tests.every_method import METHODS
from tests.ranks import Ranks
from tests.train.compare_processes import main

ROOT = Path(__file__).parents[2]
COMMON = (
    "student=smooth", "data=shapes", "recipe=smoke", "data.num_train=320", "data.num_val=40", "data.num_test=40",
    "recipe.batch_size=32", "runtime.precision=fp32", "runtime.device=cpu", "runtime.threads=1",
    "runtime.channels_last=false",
)  # fmt: skip
"""Contiguous images: torch's batch norm of channels-last images has relative errors of 1e-5 on the CPU by itself."""
TEACHER = ("teacher=smooth", "teacher.width=16")
OWN = {"crd": ("method.negatives=16",), "fitnet": ("recipe.lr=0.005",)}
"""FitNet's weight of 100 makes larger steps unstable, so that rounding grows from step to step."""
RECIPES = {
    "parts of a batch": ("method=logit", "recipe.accumulate=2"),
    "moving average": ("method=logit", "recipe.ema=0.9", "recipe.optimizer=adamw", "recipe.lr=0.001"),
    "mixed images": ("method=logit", "recipe.mixup=0.4", "recipe.cutmix=1.0"),
    "clipped gradients": ("method=logit", "recipe.clip_norm=0.1"),
    "unequal parts": ("method=feature", "recipe.batch_size=27"),
}
SMOOTH = """_target_: tests.train.smooth.Smooth
width: 8
stages: {layer1: layer1, layer2: layer2, layer3: layer3, layer4: layer4}
"""


@pytest.fixture(scope="module")
def config_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options") / "conf"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "smooth.yaml").write_text(SMOOTH)
    return folder


def compare(config_dir, tmp_path, processes, *runs):
    """Return the largest relative differences between each run in one process and in several, over 20 steps."""
    arguments = [word for run in runs for word in ("--", *run)][1:]
    out = tmp_path / "found.json"
    ranks = Ranks(ROOT, processes, str(config_dir), str(out), "20", *arguments, program=main)
    assert ranks.finish(seconds=900) == [0] * processes, ranks.output()[-3000:]
    return json.loads(out.read_text())


def check_equal(found, runs):
    assert len(found) == len(runs)
    for name, differences in found.items():
        assert differences["loss"] < 1e-5, (name, differences)
        assert differences["weights"] < 1e-5, (name, differences)
        assert differences["moved"] > 5e-4, (name, differences)
        assert differences["between processes"] == 0, (name, differences)


def with_method(method):
    teacher = ("teacher=none",) if method in ("ce", "label_smoothing") else TEACHER
    return (*COMMON, "recipe.lr=0.05", *teacher, f"method={method}", *OWN.get(method, ()))


@pytest.mark.slow
def test_two_processes_compute_the_batch_norm_network_of_one_with_every_method(config_dir, tmp_path):
    runs = [with_method(method) for method in METHODS]
    check_equal(compare(config_dir, tmp_path, 2, *runs), runs)


@pytest.mark.wide
def test_three_processes_compute_what_one_does_with_every_kind_of_recipe(config_dir, tmp_path):
    common = [*COMMON[1:], "recipe.batch_size=33", "teacher.recipe.batch_size=33"]
    runs = [("student=smooth", *common, "recipe.lr=0.05", *TEACHER, *recipe) for recipe in RECIPES.values()]
    common = [*COMMON[1:], "recipe.batch_size=33"]
    with_layer_norm = ("student=vit_tiny", *common, "teacher=none", "method=ce", "recipe.lr=0.01")
    with_kinks = ("student=resnet8", *common, "teacher=none", "method=ce", "recipe.lr=0.0003")  # see docs/scaling.md
    runs += [with_layer_norm, with_kinks]
    check_equal(compare(config_dir, tmp_path, 3, *runs), runs)


def test_rows_of_all_processes_are_the_batch():
    for size in (1, 2, 3, 7):
        for images in (7, 8, 64):
            parts = [World(rank, size).rows(images) for rank in range(size)]
            assert torch.cat([torch.arange(images)[part] for part in parts]).tolist() == list(range(images))
            lengths = [part.stop - part.start for part in parts]
            assert max(lengths) - min(lengths) <= 1


class Alone(World):
    """One process that communicates with itself."""

    def gather(self, own, images):
        return own.clone()

    def add(self, tensor):
        return tensor


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_over_one_process_is_that_of_torch(shape, affine):
    torch.manual_seed(0)
    x, upstream = torch.randn(shape, dtype=torch.float64) * 3 + 1, torch.randn(shape, dtype=torch.float64)
    results = []
    for world in (None, Alone()):
        inputs = x.clone().requires_grad_()
        mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        weight = torch.linspace(0.5, 2, 3, dtype=torch.float64).requires_grad_() if affine else None
        bias = torch.linspace(-1, 1, 3, dtype=torch.float64).requires_grad_() if affine else None
        if world:
            with SyncedBatchNorm(world):
                output = F.batch_norm(inputs, mean, var, weight, bias, training=True, momentum=0.3)
        else:
            output = F.batch_norm(inputs, mean, var, weight, bias, training=True, momentum=0.3)
        output.backward(upstream)
        gradients = [inputs.grad, *([weight.grad, bias.grad] if weight is not None and bias is not None else [])]
        results.append([output.detach(), mean, var, *gradients])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_batch_norm_in_evaluation_mode_is_not_synchronised():
    x, mean, var = torch.randn(4, 3), torch.randn(3), torch.rand(3)
    with SyncedBatchNorm(World(0, 2)):  # any communication would fail
        output = F.batch_norm(x, mean, var)
    torch.testing.assert_close(output, F.batch_norm(x, mean, var))
