"""Parts of the networks that a method keeps: `Method.bind_student`, `Method.bind_teachers`, and stages for them."""

import dataclasses

import pytest
import torch

import kdbench
from kdbench.bench.arms import KDBENCH, KDBENCH_CACHE, REFERENCE
from kdbench.bench.lockstep import build_group
from kdbench.bench.trainee import Bench, Trainee
from kdbench.data import load
from kdbench.errors import ConfigError
from kdbench.methods import Requires
from kdbench.methods.logit import LogitDistillation
from kdbench.runner.run import resolve_run
from kdbench.system.device import torch_settings
from kdbench.teachers.cache import can_answer
from tests.conftest import complete


class Reversed(LogitDistillation):
    """Predicts by the student's own classifier of the embedding with the opposite sign."""

    uses_stages = True

    def __init__(self, config, context):
        super().__init__(config, context)
        self.requires = Requires(teacher_logits=True, student_stages=("pooled",))
        self.bound = []

    def bind_student(self, network):
        self.bound.append("student")
        self.classifier = (network.body.fc,)

    def bind_teachers(self, networks):
        assert not networks[0].training
        self.bound.append("teachers")

    def forward(self, *args):
        assert self.bound == ["student", "teachers"]
        return super().forward(*args)

    def predict(self, output):
        return self.classifier[0](-output.features["pooled"])


def test_a_loaded_student_predicts_with_its_own_modules(small):
    path = complete(small(f"method._target_={__name__}.Reversed", "runtime.threads=1")).path
    student = kdbench.load_student(path, trusted=[__name__])
    assert student.method.bound == ["student", "teachers"]
    assert student.method.classifier[0] is student.network.body.fc
    images = load(small("method=logit").data, "cpu").test.images.permute(0, 3, 1, 2)
    expected = torch.from_numpy(kdbench.load_run(path).logits["test_logits"])
    torch.testing.assert_close(student(images).detach(), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(student.network(images / 255).logits, expected, atol=1e-3)


class Faulty(LogitDistillation):
    """Fails in one of its methods, or names a part that it does not have."""

    fails = ""

    def bind_student(self, network):
        if self.fails == "bind_student":
            raise ValueError("no such layer")

    def bind_teachers(self, networks):
        if self.fails == "bind_teachers":
            raise ValueError("no such layer")

    def predict(self, output):
        return output.logits


@pytest.mark.parametrize("fails", ["bind_student", "bind_teachers"])
def test_mistakes_in_binding_are_one_line_with_their_place(small, monkeypatch, fails):
    monkeypatch.setattr(Faulty, "fails", fails)
    monkeypatch.setattr("kdbench.runner.build.check_first_step", lambda *_: None)  # it finds them before
    with pytest.raises(
        ConfigError, match=r"Faulty cannot take the networks: ValueError: no such layer \(test_binding"
    ) as error:
        complete(small(f"method._target_={__name__}.Faulty", "runtime.threads=1"))
    assert (error.value.code, error.value.key) == ("no_method", "method._target_")


def test_a_part_for_inference_that_the_method_does_not_have_is_refused_before_training(small, monkeypatch):
    monkeypatch.setattr(Faulty, "inference", ("projector",))
    with pytest.raises(ConfigError, match=r"Faulty\.inference has 'projector'") as error:
        complete(small(f"method._target_={__name__}.Faulty", "runtime.threads=1"))
    assert (error.value.code, error.value.key) == ("no_method", "method._target_")


@pytest.mark.parametrize(
    ("method", "arm"),
    [("simkd", KDBENCH), ("sdd", KDBENCH), ("sdd", REFERENCE), ("wkd_l", KDBENCH), ("wkd_l", KDBENCH_CACHE)],
    ids=lambda value: getattr(value, "name", value),
)
def test_such_methods_can_be_benchmarked(small, method, arm):
    config, _ = resolve_run(small(f"method={method}", "recipe.batch_size=8"))
    with torch_settings(config.runtime):
        trainee = Trainee(arm, Bench(config, workers=0))
        trainee.train(2)
    assert all(p.isfinite().all() for p in trainee.student.parameters())


def test_such_methods_can_be_benchmarked_in_lockstep(small):
    configs = [resolve_run(small(f"method={method}"))[0] for method in ("sdd", "wkd_l", "ce")]
    with torch_settings(configs[0].runtime):
        build_group(configs).train(2)


def test_stages_for_binding_are_computed_by_the_network_and_no_part_of_a_step():
    several = [
        Requires(teacher_logits=True, teacher_setup_stages=("layer3",)),
        Requires(teacher_stages=("layer2",), teacher_setup_stages=("layer2", "layer3")),
    ]
    union = Requires.of_teacher(several)
    assert union.teacher_logits
    assert union.teacher_stages == ("layer2",)
    assert union.teacher_network_stages == ("layer2", "layer3")


def test_a_cache_answers_where_stages_are_read_by_binding_alone(small):
    recipe = small("method=logit").recipe
    alone = Requires(teacher_logits=True, teacher_setup_stages=("layer3",))
    assert can_answer(alone, recipe)
    assert not can_answer(dataclasses.replace(alone, teacher_stages=("layer3",)), recipe)
