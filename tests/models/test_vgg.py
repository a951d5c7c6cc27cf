"""torchvision's VGGs with the classifier for small images."""

import pytest
import torch
import torchvision
from torch import nn

from kdbench.errors import ConfigError
from kdbench.models import build, summarize
from kdbench.models.vgg import torchvision_vgg
from tests.conftest import composed_once, rest_wide
from tests.networks import SPEC

PUBLISHED = {
    ("vgg11", False): 132_863_336, ("vgg13", False): 133_047_848, ("vgg16", False): 138_357_544,
    ("vgg19", False): 143_667_240, ("vgg11", True): 132_868_840, ("vgg13", True): 133_053_736,
    ("vgg16", True): 138_365_992, ("vgg19", True): 143_678_248,
}  # fmt: skip
"""Parameters for ImageNet by architecture and batch norm, as torchvision publishes them."""
CLASSIFIER = (512 * 7 * 7 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000


def vgg11(*overrides):
    return composed_once("student=vgg11", "method=ce", *overrides).student


@pytest.mark.parametrize(("arch", "batch_norm"), PUBLISHED)
def test_parameters_are_the_published_ones_but_for_the_classifier(arch, batch_norm):
    with torch.device("meta"):
        network = torchvision_vgg(arch, batch_norm, num_classes=10)
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == PUBLISHED[arch, batch_norm] - CLASSIFIER + (512 + 1) * 10
    if (arch, batch_norm) == ("vgg11", True):
        assert found == 9_231_114


def test_stages_have_the_shapes_of_a_resnets_where_both_have_one():
    summary = summarize(vgg11(), SPEC, "student")
    assert summary.shapes == {
        "layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8), "layer4": (512, 4, 4),
        "layer5": (512, 2, 2), "pooled": (512,),
    }  # fmt: skip
    assert not summary.refused
    assert len(summary.fusable) == 8


@pytest.mark.parametrize("overrides", rest_wide([(("student.batch_norm=false",),), (("student.arch=vgg16",),)]))
def test_stages_have_the_same_names_in_every_variant(overrides):
    assert summarize(vgg11(*overrides), SPEC, "student").shapes == summarize(vgg11(), SPEC, "student").shapes


def test_features_are_those_of_torchvision_and_the_classifier_reads_their_mean():
    torch.manual_seed(0)
    network = build(vgg11(), SPEC, ("layer1", "layer5", "pooled")).eval()
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True).eval()
    own = [value for name, value in network.body.state_dict().items() if not name.startswith("fc.")]
    features.load_state_dict(dict(zip(features.state_dict(), own, strict=True)))
    images = torch.randn(2, 3, 64, 64)
    output = network(images)
    assert output.logits.shape == (2, 10)
    assert torch.equal(output.features["layer1"], features[:3](images))
    assert torch.equal(output.features["layer5"], features[:-1](images))
    assert torch.allclose(output.features["pooled"], features(images).mean((2, 3)))
    assert torch.equal(output.logits, network.body.fc(output.features["pooled"]))


def test_initial_weights_are_those_of_torchvision():
    torch.manual_seed(0)
    network = torchvision_vgg("vgg11", True, num_classes=100)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (9 * module.out_channels)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.05)
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert not module.bias.any()
    assert float(network.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_images_that_five_max_pools_leave_nothing_of_are_refused():
    with pytest.raises(ConfigError) as error:
        summarize(vgg11(), SPEC._replace(input_shape=(3, 31, 31)), "student")
    assert (error.value.code, error.value.key) == ("mismatch", "student")
    assert summarize(vgg11(), SPEC._replace(input_shape=(3, 48, 48)), "student").shapes["layer5"] == (512, 3, 3)


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("student.arch=vgg12", "unknown_option"),
        ("student.arch=null", "unknown_option"),
        ("student.batch_norm=1", "wrong_type"),
    ],
)
def test_a_wrong_argument_is_an_error_with_its_key(override, code):
    with pytest.raises(ConfigError) as error:
        summarize(vgg11(override), SPEC, "student")
    assert (error.value.code, error.value.key) == (code, override.partition("=")[0])
