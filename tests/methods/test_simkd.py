import itertools
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import kdbench
from kdbench import metrics
from kdbench.data import load
from kdbench.errors import ConfigError
from kdbench.methods import SimKD, projected_map_distance
from kdbench.models.checkpoint_files import read_checkpoint
from kdbench.rundir.recorded_config import read_config
from kdbench.verify.command import verify_runs
from tests.conftest import NARROW, SMALL
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


class TestProjectedMapDistance(LossTests):
    method = SimKD

    def inputs(self, draw):
        return [draw(4, 6, 4, 4)], [draw(4, 6, 4, 4)]

    def loss(self, student, teacher):
        return projected_map_distance(student[0], teacher[0])

    def reference(self, student, teacher):
        return ((student[0] - teacher[0]) ** 2).sum() / student[0].size


def test_case_by_hand():
    # One channel, two positions: ((1 - 0)^2 + (3 - 1)^2) / 2 = 2.5
    student, teacher = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2), torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert float(projected_map_distance(student, teacher)) == 2.5


def test_the_larger_map_is_pooled_to_the_smaller():
    large, small = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    for pair in ((large, small), (small, large)):
        assert float(projected_map_distance(*pair)) == pytest.approx(float(F.mse_loss(pooled, small)))


@pytest.mark.parametrize("teacher", ["resnet20", "resnet18"])
def test_predictions_are_the_teachers_classifier_of_the_projected_maps(teacher):
    built = build_method("simkd", f"teacher={teacher}")
    logits = built.predict()
    body = built.teacher.network.body
    maps = F.adaptive_avg_pool2d(
        built.student(built.batch.images).features["layer3"], built.method.pair.size
    )  # in evaluation mode, by `predict`
    with torch.no_grad():
        expected = body.fc(built.method.pairs.projections[0](maps).mean((2, 3)))
    assert torch.allclose(logits, expected, atol=1e-5)


def test_the_last_stages_of_both_are_paired_whatever_their_names():
    built = build_method("simkd", "teacher=resnet18")
    assert (built.method.pair.student, built.method.pair.teacher) == ("layer3", "layer4")
    assert built.method.pair.size == (4, 4)


def test_the_projector_has_twice_the_teachers_width_and_is_all_that_is_trained():
    built = build_method("simkd")
    convolutions = [m for m in built.method.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in convolutions] == [
        (64, 128, 1), (128, 128, 3), (128, 64, 1)
    ]  # fmt: skip
    trained = {name.split(".")[0] for name, p in built.method.named_parameters() if p.requires_grad}
    assert trained == {"pairs"}


def test_the_classifier_is_a_copy_so_that_runs_with_the_same_teacher_do_not_share_it():
    built = build_method("simkd")
    own, teachers = built.method.classifier, built.teacher.network.body.fc
    assert own is not teachers
    assert torch.equal(own.weight, teachers.weight)
    assert own.weight.data_ptr() != teachers.weight.data_ptr()


def test_batch_norm_of_the_projector_counts_one_batch_a_step():
    built = build_method("simkd")
    built.step()
    built.step()
    counts = [int(m.num_batches_tracked) for m in built.method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [2, 2, 2]


def test_there_is_no_cross_entropy_and_the_total_is_the_weighted_distance():
    terms = {
        name: float(term.detach()) for name, term in build_method("simkd", "method.kd_weight=3").step().terms.items()
    }
    assert set(terms) == {"total", "kd"}
    assert terms["total"] == pytest.approx(3 * terms["kd"])


def test_a_teacher_whose_logits_are_no_linear_layer_of_a_pooled_stage_is_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("simkd", "teacher=vit")  # its classifier reads the class token, not the mean of the tokens
    assert (error.value.code, error.value.key) == ("no_classifier", "method.pairs")


def test_two_pairs_are_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("simkd", "method.pairs={layer2: layer2, layer3: layer3}")
    assert (error.value.code, error.value.key) == ("mismatch", "method.pairs")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    overrides = (*SMALL, *NARROW, "method=simkd", f"output_root={tmp_path_factory.mktemp('simkd')}")
    return kdbench.run(kdbench.compose(overrides))


def test_a_stored_student_predicts_with_projector_and_classifier(stored):
    student = kdbench.load_student(stored.path)
    config = read_config(stored.path / "config.yaml")
    images = load(config.data, "cpu").test.images
    with torch.no_grad():
        logits = student(images.permute(0, 3, 1, 2) if images.shape[-1] == 3 else images)
    assert torch.allclose(logits, torch.from_numpy(stored.logits["test_logits"]), atol=1e-3)
    nn.init.zeros_(student.method.classifier.weight)
    assert not torch.allclose(student(torch.zeros(1, 3, 32, 32)), logits[:1])


def test_a_stored_student_passes_verification(stored, capsys):
    verify_runs([str(stored.path)])
    printed = capsys.readouterr().out
    assert "test_logits from the weights" in printed
    assert "FAIL" not in printed


def test_the_size_of_a_prediction_includes_projector_and_classifier(stored):
    # 32 channels of both networks' last maps of 8 x 8: convolutions 32 -> 64 -> 64 -> 32, batch norm, linear layer.
    convolutions, batch_norm, classifier = 32 * 64 + 9 * 64 * 64 + 64 * 32, 2 * (64 + 64 + 32), 32 * 10
    summary = stored.summary
    assert summary.inference_params - summary.num_params == convolutions + batch_norm + classifier + 10
    assert summary.inference_macs - summary.macs == 64 * convolutions + classifier


@pytest.mark.slow
@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_the_stored_parts_are_those_of_the_best_epoch(tmp_path, monkeypatch, ema):
    falling = itertools.count(1)
    worse = SimpleNamespace(nll=metrics.nll, accuracy=lambda *_: 1 / next(falling))
    monkeypatch.setattr("kdbench.train.learner.metrics", worse)
    keys = ("recipe.epochs=3", f"recipe.ema={ema}", f"output_root={tmp_path}")
    run = kdbench.run(kdbench.compose([*SMALL, *NARROW, "method=simkd", *keys]))
    assert run.summary.best_val_epoch == 1
    student = kdbench.load_student(run.path)
    data = load(read_config(run.path / "config.yaml").data, "cpu")
    for name, split in (("val", data.val), ("test", data.test)):
        with torch.no_grad():
            logits = student(split.images.permute(0, 3, 1, 2))
        torch.testing.assert_close(logits, torch.from_numpy(run.logits[f"{name}_logits"]), atol=1e-3, rtol=1e-3)


def test_weights_hold_student_and_method_under_prefixes_and_no_more(stored):
    names = set(load_file(stored.path / "best.safetensors"))
    parts = {".".join(name.split(".")[:2]) for name in names if name.startswith("method.")}
    assert parts == {"method.pairs", "method.classifier"}
    assert "student.conv1.weight" in names


def test_it_is_no_teacher_without_its_projector(stored):
    with pytest.raises(ConfigError) as error:
        read_checkpoint(stored.path / "best.safetensors", {}, None)
    assert error.value.code == "no_student"
