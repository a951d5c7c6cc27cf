"""Small networks whose compression can be computed by hand. Tests name them by import path."""

import torch
from torch import nn
from torch.nn import functional as F


class TwoConvolutions(nn.Module):
    """Two convolutions without biases and a linear layer."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4, 6, 3, 2, padding=1, bias=False)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, images):
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(images)))).mean((2, 3)))


class OddConvolutions(nn.Module):
    """Convolutions with stride, padding, dilation, biases and groups."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 5, stride=2, padding=3, dilation=2, padding_mode="circular")
        self.flat = nn.Conv2d(8, 8, (1, 3), stride=(2, 1), padding=(0, 1))
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.fc(self.grouped(F.relu(self.flat(F.relu(self.wide(images))))).mean((2, 3)))


class OneLinear(nn.Module):
    """A linear layer on the mean of each channel of the images."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.fc(images.mean((2, 3)))


class SingularValues(nn.Module):
    """An operation that ONNX does not have, in a layer of its own."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 4)
        self.values = Values()
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images):
        return self.fc(self.values(self.stem(images).flatten(2)))


class Values(nn.Module):
    def forward(self, rows):
        return torch.linalg.svdvals(rows)


class Branch(TwoConvolutions):
    """Its course depends on the values of the images, so that it cannot be traced."""

    def forward(self, images):
        return super().forward(images * 2 if float(images.mean()) > 1 else images)
