"""Weights by the names of torchvision and timm: loaded there strictly, they give the same logits."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from kdbench.deploy.names import renamed_weights
from kdbench.errors import ConfigError
from tests.compress.subjects import named, own, some_images, subject_of
from tests.conftest import rest_wide
from tests.networks import SPEC


def with_cifar_stem(network: nn.Module) -> nn.Module:
    """Return a ResNet with the first layers for small images, by the two changes that an export states."""
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    return network


CHANGES = ["conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)", "maxpool = nn.Identity()"]


@pytest.mark.parametrize(("package", "stem"), rest_wide([("torchvision", "cifar"), ("torchvision", "imagenet"),
                                                         ("timm", "cifar"), ("timm", "imagenet")]))  # fmt: skip
def test_a_resnet_loads_strictly_in_the_other_package(package: str, stem: str) -> None:
    subject = subject_of(named("student=resnet18", f"student.stem={stem}"))
    body = copy.deepcopy(subject.body)
    state, _, told = renamed_weights(body, subject.model, SPEC, package, None)
    if package == "torchvision":
        other = torchvision.models.resnet18(num_classes=10)
        assert told["network"] == "torchvision.models.resnet18"
    else:
        other = timm.create_model("resnet18", num_classes=10)
        assert told["network"] == "timm.create_model('resnet18')"
    assert told["changes"] == (CHANGES if stem == "cifar" else [])
    other = with_cifar_stem(other) if stem == "cifar" else other
    other.load_state_dict(state, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(some_images()), body(some_images()), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_network_of_timm_has_the_names_of_timm() -> None:
    subject = subject_of(named("student=timm/mobilenetv3_small_100"))
    state, _, told = renamed_weights(subject.body, subject.model, SPEC, "timm", None)
    other = timm.create_model("mobilenetv3_small_100", num_classes=10)
    other.load_state_dict(state, strict=True)
    assert told == {"package": "timm", "network": "timm.create_model('mobilenetv3_small_100')", "changes": []}
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(some_images()), subject.body(some_images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "code", "key"),
    [(None, "not_found", "--names"), ("resnet9000", "not_found", "--architecture"), ("alexnet", None, "--names")],
)
def test_a_network_that_is_not_there_is_refused(name: str | None, code: str | None, key: str) -> None:
    subject = subject_of(own("TwoConvolutions"))
    with pytest.raises(ConfigError) as error:
        renamed_weights(subject.body, subject.model, SPEC, "torchvision", name)
    assert error.value.key == key
    assert code in (None, error.value.code)
    assert "use --names plain" in str(error.value)
    assert ".safetensors" not in str(error.value)
