"""The CIFAR ResNets of He et al. 2015 (arXiv 1512.03385), section 4.2, and their wide forms."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the block's width and resolution, [N, C, H, W]."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)), inplace=True)))
        return F.relu(residual + self.shortcut(maps), inplace=True)


class CifarResNet(nn.Module):
    """Three stages at 32, 16 and 8 pixels.

    Args:
        depth: 6n + 2 for n blocks per stage: 8, 14, 20, 32, 44, 56, 110, ...
        widths: channels of the stem and of the three stages: (16, 16, 32, 64) in the paper.
        num_classes: outputs of the last layer.

    Raises:
        ConfigError: a depth that is not 6n + 2, or not four widths.
    """

    def __init__(self, depth: int, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if type(depth) is not int or depth < 8 or depth % 6 != 2:
            raise ConfigError(
                f"depth is {depth!r}; it must be 6n + 2: 8, 14, 20, 26, 32, ...", code="out_of_range", key="depth"
            )
        four = isinstance(widths, Sequence) and len(widths) == 4
        if not four or not all(type(width) is int and width >= 1 for width in widths):
            raise ConfigError(
                f"widths is {widths!r}; it must be a list of four whole numbers of at least 1, for the stem and the "
                "three stages, such as [16,16,32,64]",
                code="out_of_range",
                key="widths",
            )
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = stage(widths[2], widths[3], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, C] of images [N, 3, H, W]."""
        maps = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.fc(self.avgpool(maps).flatten(1))


def stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Return the blocks of a stage; the first one changes width and resolution."""
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
