"""torchvision's ResNets, with a stem for small images."""

import torchvision
from torch import nn

from kdbench.errors import ConfigError, nearest

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
STEMS = ("cifar", "imagenet")


def torchvision_resnet(arch: str, stem: str, num_classes: int) -> nn.Module:
    """Return a ResNet of He et al. 2015 (arXiv 1512.03385) with torchvision's definition and initialisation.

    Args:
        arch: one of `ARCHITECTURES`.
        stem: "cifar" replaces the first convolution by 3x3 with stride 1 and drops the max-pool, so that a 32 x 32
            image is 4 x 4 after the last stage; "imagenet" keeps both, and it is 1 x 1 there.
        num_classes: outputs of the last layer.

    Raises:
        ConfigError: an unknown `arch` or `stem`.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(f"arch is {arch!r}; {nearest(str(arch), ARCHITECTURES)}", code="unknown_option", key="arch")
    if stem not in STEMS:
        raise ConfigError(f"stem is {stem!r}; {nearest(str(stem), STEMS)}", code="unknown_option", key="stem")
    network = getattr(torchvision.models, arch)(num_classes=num_classes)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network
