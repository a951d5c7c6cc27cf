"""Runs of networks, teachers and first weights as people bring them."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from kdbench.config import ModelConfig, RunConfig
from kdbench.data import load
from kdbench.data.batches import plain_batches
from kdbench.errors import ConfigError
from kdbench.rundir.identity import architecture_identity, model_identity, teacher_config
from kdbench.rundir.student import load_student
from kdbench.runner.build import build_parts
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import check_run, resolve_run
from tests import networks
from tests.conftest import NARROW, SMALL, complete, composed_once, killed_after, rest_wide
from tests.runner.test_resume import STEPS, assert_same_numbers

Small = Callable[..., RunConfig]


def brought(name: str, stages: Any = None, logits: Any = None, **arguments: Any) -> ModelConfig:
    """Return the config of a network of tests/networks.py."""
    return ModelConfig(name, f"tests.networks.{name}", networks.STAGES if stages is None else stages, arguments, logits)


def with_student(config: RunConfig, student: ModelConfig) -> RunConfig:
    """Return a config with another student."""
    return dataclasses.replace(config, student=student)


def with_teacher(config: RunConfig, model: ModelConfig, **changes: Any) -> RunConfig:
    """Return a config with another network as teacher."""
    assert config.teacher is not None
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, model=model, **changes))


def refusal(config: RunConfig) -> ConfigError:
    """Return the error that refuses a run before it starts."""
    with pytest.raises(ConfigError) as error:
        check_run(config)
    return error.value


# Random numbers and counters


@pytest.mark.parametrize(
    "name",
    rest_wide(["SetUpByTheFirstBatch", "Schedule", "StochasticDepth", "NumpyNoise", "CountsEpochs", "OddBuffers"], 2),
)
def test_a_resumed_run_computes_what_an_uninterrupted_one_does(small: Small, tmp_path: Path, name: str) -> None:
    config = with_student(small("method=ce", *STEPS), brought(name))
    expected = complete(dataclasses.replace(config, output_root=str(tmp_path / "whole")))
    with killed_after(epoch=1, step=1):
        complete(config)
    np.random.seed(1)  # another process has another state
    assert_same_numbers(complete(config), expected)


def test_what_a_network_draws_on_the_host_does_not_depend_on_its_group(small: Small, tmp_path: Path) -> None:
    config = with_student(small("method=ce"), brought("StochasticDepth"))
    alone = complete(dataclasses.replace(config, output_root=str(tmp_path / "alone")))
    other = with_student(config, brought("NumpyNoise"))
    results = run_with_retries([other, config], ["other", "this"])
    assert results[1].directory is not None
    assert_same_numbers(results[1].directory, alone)


def test_first_weights_do_not_depend_on_the_state_of_the_process(small: Small) -> None:
    config = with_student(small("method=ce"), brought("drawn_on_the_host"))
    states = []
    for seed in (1, 2):
        np.random.seed(seed)
        states.append(build_parts(config).student.body.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_compiled_code_is_refused_for_what_it_would_freeze(small: Small) -> None:
    error = refusal(with_student(small("method=ce", "runtime.compile=true"), brought("StochasticDepth")))
    assert (error.code, error.key) == ("not_compilable", "runtime.compile")


def test_a_teacher_that_draws_in_evaluation_is_refused_and_a_student_repeats(small: Small, tmp_path: Path) -> None:
    config = small()
    error = refusal(with_teacher(config, brought("RandomInEvaluation")))
    assert (error.code, error.key) == ("not_repeatable", "teacher")
    student = with_student(small("method=ce"), brought("RandomInEvaluation"))
    first = complete(student)
    torch.manual_seed(5)
    assert_same_numbers(complete(dataclasses.replace(student, output_root=str(tmp_path / "again"))), first)


# Results that load elsewhere


def test_weights_load_into_the_architecture_itself_and_give_the_recorded_logits(small: Small) -> None:
    config = with_student(small("method=ce"), brought("OddBuffers"))
    run = complete(config)
    own = networks.OddBuffers()
    own.load_state_dict(load_file(run.weights), strict=True)
    dataset = load(config.data, "cpu")
    with torch.no_grad():
        logits = torch.cat([own.eval()(images) for images in plain_batches(dataset, dataset.test, 128, False)])
    recorded = load_file(run.logits)["test_logits"]
    torch.testing.assert_close(logits, recorded)
    student = load_student(run.path, trusted=["tests.networks"])
    images = dataset.test.images.permute(0, 3, 1, 2)
    torch.testing.assert_close(student(images).detach(), recorded)


def test_objects_in_arguments_are_code_that_must_be_trusted(small: Small) -> None:
    student = brought("Plain", act={"_target_": "torch.nn.GELU"})
    run = complete(with_student(small("method=ce"), student))
    with pytest.raises(ConfigError) as error:
        load_student(run.path, trusted=["tests.networks"])
    assert (error.value.code, error.value.key) == ("untrusted", "student.act._target_")
    load_student(run.path, trusted=["tests.networks", "torch.nn"])


# Batches of one image


def test_a_network_without_batch_norm_trains_on_a_single_image(small: Small) -> None:
    config = with_student(small("method=ce", "recipe.batch_size=63"), brought("with_group_norm"))
    assert complete(config).is_complete()
    error = refusal(with_student(config, brought("Plain")))
    assert (error.code, error.key) == ("single_image_batch", "recipe.batch_size")
    error = refusal(with_student(config, brought("of_one_image_fails")))
    assert (error.code, error.key) == ("single_image_batch", "recipe.batch_size")


def test_a_single_image_left_for_evaluation_is_refused_for_a_network_that_fails_on_it(small: Small) -> None:
    config = with_student(small("method=ce", "data.num_val=129"), brought("of_one_image_fails"))
    error = refusal(config)
    assert (error.code, error.key) == ("single_image_batch", "data.num_val")
    check_run(with_student(config, brought("Plain")))


def test_the_batches_of_a_teacher_are_checked_with_its_own_recipe(small: Small) -> None:
    config = small("teacher.recipe.batch_size=63")
    assert refusal(config).key == "teacher.recipe.batch_size"
    check_run(with_teacher(config, brought("with_group_norm")))


# Stages and layouts


def test_a_network_that_cannot_be_traced_learns_by_feature_distillation(small: Small, trained_teachers: None) -> None:
    summary = complete(with_student(small("method=feature"), brought("Untraceable"))).read_summary()
    assert summary.student == "Untraceable"


def test_maps_that_look_permuted_are_refused_where_a_method_reads_them(small: Small) -> None:
    permuted = brought("ChannelsLast", {"layer1": "patches", "layer2": "more"})
    error = refusal(with_teacher(small("method=feature"), permuted))
    assert (error.code, error.key) == ("unusable_stage", "teacher.stages.layer1")
    check_run(with_teacher(small("method=logit"), permuted))
    only = small("method=feature", "method.stages=[layer2]")
    assert refusal(with_teacher(only, permuted)).key == "teacher.stages.layer2"
    stated = brought("ChannelsLast", {"layer1": "patches", "layer2": {"node": "more", "layout": "nhwc"}})
    check_run(with_teacher(only, stated))


# Teachers


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, networks.Plain]:
    """A file with weights and their average, as training scripts write it, and the network of the average."""
    torch.manual_seed(3)
    network = networks.Plain().eval()
    with torch.no_grad():
        network.fc.bias += torch.linspace(0, 2, 10)
    ema = network.state_dict()
    zeros = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in ema.items()}
    file = tmp_path / "epoch=3.ckpt"
    torch.save({"state_dict": zeros, "state_dict_ema": {f"module.{n}": t for n, t in ema.items()}, "epoch": 3}, file)
    return file, network


def test_the_key_of_a_checkpoint_chooses_among_several_weights(small: Small, foreign: tuple[Path, Any]) -> None:
    file, _ = foreign
    config = with_teacher(small(), brought("Plain"), checkpoint=str(file))
    error = refusal(config)
    assert (error.code, error.key) == ("ambiguous", "teacher.checkpoint_key")
    assert "teacher.checkpoint_key=state_dict_ema" in str(error)
    both = [with_teacher(config, brought("Plain"), checkpoint_key=key) for key in ("state_dict", "state_dict_ema")]
    assert resolve_run(both[0])[1].key != resolve_run(both[1])[1].key
    assert refusal(with_teacher(config, brought("Plain"), checkpoint_key="optimizer")).key == "teacher.checkpoint_key"
    summary = complete(both[1]).read_summary()
    stored = next(Path(config.output_root, "runs").glob(f"*_{summary.teacher_key}"))
    assert json.loads((stored / "summary.json").read_text())["method_params"]["key"] == "state_dict_ema"


def test_a_teacher_has_its_own_normalisation(small: Small, foreign: tuple[Path, Any]) -> None:
    file, network = foreign
    own = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    given = {"checkpoint": str(file), "checkpoint_key": "state_dict_ema", **own}
    config = with_teacher(small(), brought("Plain"), **given)
    summary = complete(config).read_summary()
    stored = next(Path(config.output_root, "runs").glob(f"*_{summary.teacher_key}"))
    images = load(config.data, "cpu").test.images.permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(own[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = network((images - mean) / std)
    torch.testing.assert_close(load_file(stored / "logits.safetensors")["test_logits"], expected, atol=1e-4, rtol=1e-4)
    trained = teacher_config(with_teacher(small(), brought("Plain"), **own))
    assert (trained.data.params.mean, trained.data.params.std) == (own["mean"], own["std"])
    assert summary.teacher_key != complete(with_teacher(config, brought("Plain"), mean=None, std=None)).key


@pytest.mark.parametrize("at_chance", [True, False])
def test_a_teacher_at_chance_level_is_named_in_one_line(
    small: Small, foreign: tuple[Path, Any], caplog: pytest.LogCaptureFixture, at_chance: bool
) -> None:
    file, network = foreign
    config = small()
    if not at_chance:  # fit the classifier to the validation images
        dataset = load(config.data, "cpu")
        network.train()
        images = torch.cat(list(plain_batches(dataset, dataset.val, 128, False)))
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), dataset.val.labels).backward()
            optimizer.step()
    torch.save(network.state_dict(), file)
    with caplog.at_level(logging.INFO, "kdbench"):
        complete(with_teacher(config, brought("Plain"), checkpoint=str(file)))
    assert sum("at chance level" in line for line in caplog.messages) == at_chance


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_teacher_that_torch_cannot_copy_teaches(small: Small) -> None:
    complete(with_teacher(small(), brought("old_weight_norm")))


def test_a_given_teacher_needs_to_work_in_evaluation_only(small: Small, tmp_path: Path) -> None:
    torch.save(networks.TwoHeads().state_dict(), tmp_path / "two.pth")
    complete(with_teacher(small(), brought("TwoHeads"), checkpoint=str(tmp_path / "two.pth")))


def test_a_student_stage_without_a_gradient_is_refused(small: Small) -> None:
    error = refusal(with_student(small("method=feature"), brought("Detached")))
    assert (error.code, error.key) == ("unusable_stage", "student.stages.layer1")
    check_run(with_student(small("method=feature", "method.stages=[layer2]"), brought("Detached")))
    check_run(with_teacher(small("method=feature"), brought("Detached")))


# First weights


def test_first_weights_are_loaded_but_for_a_classifier_of_other_classes(small: Small, tmp_path: Path) -> None:
    published = networks.Plain(num_classes=1000)
    file = tmp_path / "published.safetensors"
    save_file(published.state_dict(), file)
    plain = with_student(small("method=ce"), brought("Plain"))
    config = with_student(plain, dataclasses.replace(plain.student, weights=str(file)))
    body, fresh = build_parts(config).student.body, build_parts(plain).student.body
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, (fresh if name.startswith("fc.") else published).state_dict()[name])
    assert resolve_run(config)[1].key != resolve_run(plain)[1].key
    assert architecture_identity(config.student) == architecture_identity(plain.student)
    moved = dataclasses.replace(config.student, weights=str(file.rename(tmp_path / "moved.safetensors")))
    assert model_identity(moved) == model_identity(plain.student) | {
        "weights_hash": model_identity(moved)["weights_hash"]
    }
    run = complete(with_student(config, moved))
    (tmp_path / "moved.safetensors").unlink()
    load_student(run.path, trusted=["tests.networks"])  # needs the first weights no more


@pytest.mark.slow
def test_weights_that_torchvision_publishes_are_named(small: Small, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    published = torchvision.models.resnet18()
    name = Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.save(published.state_dict(), folder / name)
    config = composed_once(*SMALL, "student=resnet18", "student.stem=imagenet", "method=ce", "student.weights=DEFAULT")
    body = build_parts(config).student.body
    assert torch.equal(body.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert body.fc.weight.shape == (10, 512)
    with pytest.raises(ConfigError) as error:
        build_parts(
            with_student(config, dataclasses.replace(config.student, arguments={"arch": "resnet18", "stem": "cifar"}))
        )
    assert error.value.key == "student.weights"
    assert "only the head may differ" in str(error.value)
    with pytest.raises(ConfigError) as error:
        resolve_run(with_student(config, dataclasses.replace(config.student, weights="IMAGENET1K_V9")))
    assert "IMAGENET1K_V1" in str(error.value)
    with pytest.raises(ConfigError) as error:
        resolve_run(with_student(config, dataclasses.replace(brought("Plain"), weights="DEFAULT")))
    assert error.value.code == "not_found"


# The whole way, with networks of torchvision and timm


SIZES = ("data.num_train=256", "data.num_val=100", "data.num_test=100")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_mobilenet_of_timm_learns_from_a_resnet18_by_feature_distillation(small: Small) -> None:
    config = composed_once(
        *SMALL, *SIZES, "student=timm/mobilenetv3_small_100", "teacher=resnet18", "method=feature",
        f"output_root={small().output_root}",
    )  # fmt: skip
    run = complete(config)
    summary = run.read_summary()
    assert (summary.student, summary.teacher) == ("timm-mobilenetv3_small_100", "resnet18")
    assert summary.environment is not None
    assert summary.environment["timm"]
    import timm

    own = timm.create_model("mobilenetv3_small_100", num_classes=10)
    own.load_state_dict(load_file(run.weights), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", rest_wide(["vit", "swin"]))
def test_transformers_teach_a_resnet8_by_logits_and_the_run_is_resumed(
    small: Small, tmp_path: Path, teacher: str
) -> None:
    overrides = (*SMALL, *NARROW[:1], *STEPS, f"teacher={teacher}", "method=logit")
    config = composed_once(*overrides, f"output_root={tmp_path / 'out'}")
    with killed_after(epoch=1, step=1, epochs=3):
        complete(config)
    resumed = complete(config)
    whole = complete(composed_once(*overrides, f"output_root={tmp_path / 'whole'}"))
    assert_same_numbers(resumed, whole)


# Networks of other kinds that ship


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "teacher", "method"),
    [
        ("vgg11", "none", "ce"), ("vgg11", "resnet20", "logit"), ("resnet8", "vgg11", "logit"),
        ("vgg11", "vgg11", "logit"), ("vgg11", "resnet20", "feature"), ("resnet8", "vgg11", "feature"),
        ("vit_tiny", "none", "ce"), ("vit_tiny", "resnet20", "logit"), ("resnet8", "vit_tiny", "logit"),
        ("vit_tiny", "vit_tiny", "logit"), ("vit_tiny", "resnet20", "feature"),
    ],
)  # fmt: skip
def test_networks_of_other_kinds_train_two_steps_as_students_and_teachers(
    tmp_path: Path, student: str, teacher: str, method: str
) -> None:
    networks = (f"student={student}", f"teacher={teacher}", f"method={method}")
    sizes = [text for text in SMALL if teacher != "none" or not text.startswith("teacher.")]
    config = composed_once(*sizes, *networks, "teacher.seed=1", f"output_root={tmp_path}")
    run = complete(config)
    before, after = build_parts(config).student.body.state_dict(), load_file(run.path / "best.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == set(before)  # every parameter, and the statistics of batch norm
