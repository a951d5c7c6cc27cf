"""torchvision's VGGs, with a classifier for small images."""

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from kdbench.errors import ConfigError, nearest

ARCHITECTURES = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
"""Name to the configuration in table 1 of the paper."""


def torchvision_vgg(arch: str, batch_norm: bool, num_classes: int) -> nn.Module:
    """Return a VGG of Simonyan and Zisserman 2015 (arXiv 1409.1556) with torchvision's features and initialisation.

    Global average pooling and one linear layer take the place of torchvision's pooling to 7x7 and classifier of three
    layers. The modules `layer1` to `layer5` are the convolutions at one resolution, each with a max-pool after it: a
    32 x 32 image is 2 x 2 in `layer5`. Smaller images are less than a pixel after the last max-pool.

    Args:
        arch: one of `ARCHITECTURES`.
        batch_norm: whether a batch norm follows each convolution.
        num_classes: outputs of the last layer.

    Raises:
        ConfigError: an unknown `arch`, or a `batch_norm` that is no switch.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(f"arch is {arch!r}; {nearest(str(arch), ARCHITECTURES)}", code="unknown_option", key="arch")
    if type(batch_norm) is not bool:
        raise ConfigError(
            f"batch_norm is {batch_norm!r}; it must be true or false", code="wrong_type", key="batch_norm"
        )
    network, stage = nn.Sequential(), nn.Sequential()
    number = 1
    for module in make_layers(cfgs[ARCHITECTURES[arch]], batch_norm):
        if not isinstance(module, nn.MaxPool2d):
            stage.append(module)
            continue
        network.add_module(f"layer{number}", stage)
        network.add_module(f"pool{number}", module)
        stage, number = nn.Sequential(), number + 1
    network.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("fc", nn.Linear(512, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return network
