"""The wide ResNets of Zagoruyko and Komodakis 2016 (arXiv 1605.07146), with pre-activation, for 32 x 32 images."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError


class PreactBlock(nn.Module):
    """Twice batch norm, ReLU and a 3x3 convolution, beside a shortcut: the identity, or a 1x1 convolution without batch
    norm where the shape changes. There the shortcut reads the activated maps too, as in the authors' code."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.dropout = dropout
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the block's width and resolution, [N, C, H, W], not activated."""
        active = F.relu(self.bn1(maps), inplace=True)
        residual = F.relu(self.bn2(self.conv1(active)), inplace=True)
        if self.dropout:
            residual = F.dropout(residual, self.dropout, self.training)
        return self.conv2(residual) + (maps if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Three groups of blocks at 32, 16 and 8 pixels; a last batch norm and ReLU activate the maps of the third.

    Args:
        depth: 6n + 4 for n blocks per group: 10, 16, 22, 28, 40, ...
        width: factor of the channels 16, 32 and 64 of the three groups.
        num_classes: outputs of the last layer.
        dropout: probability of dropout between the convolutions of a block; in [0, 1).

    Raises:
        ConfigError: a depth that is not 6n + 4, or a width or dropout out of range.
    """

    def __init__(self, depth: int, width: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        if type(depth) is not int or depth < 10 or depth % 6 != 4:
            raise ConfigError(
                f"depth is {depth!r}; it must be 6n + 4: 10, 16, 22, 28, 34, 40, ...", code="out_of_range", key="depth"
            )
        if type(width) is not int or width < 1:
            raise ConfigError(
                f"width is {width!r}; it must be a whole number of at least 1: the factor of the channels 16, 32, 64",
                code="out_of_range",
                key="width",
            )
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise ConfigError(
                f"dropout is {dropout!r}; it must be a number of at least 0 and below 1",
                code="out_of_range",
                key="dropout",
            )
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = group(16, 16 * width, blocks, 1, dropout)
        self.layer2 = group(16 * width, 32 * width, blocks, 2, dropout)
        self.layer3 = group(32 * width, 64 * width, blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, C] of images [N, 3, H, W]."""
        maps = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.fc(self.avgpool(self.relu(self.bn(maps))).flatten(1))


def group(in_channels: int, channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    """Return the blocks of a group; the first one changes width and resolution."""
    first = PreactBlock(in_channels, channels, stride, dropout)
    return nn.Sequential(first, *(PreactBlock(channels, channels, 1, dropout) for _ in range(blocks - 1)))
