"""A small network with batch norm and without kinks, in which rounding does not grow; and disturbed methods."""

import os
import signal

from torch import Tensor, nn

from kdbench.methods import CrossEntropy
from kdbench.system.world import world


def block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.Softplus())


class Smooth(nn.Module):
    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.layer1 = block(3, width, 2)
        self.layer2 = block(width, 2 * width, 2)
        self.layer3 = block(2 * width, 2 * width, 2)
        self.layer4 = block(2 * width, 4 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer4(self.layer3(self.layer2(self.layer1(images))))
        return self.fc(self.avgpool(maps).flatten(1))


class WithDropout(Smooth):
    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__(num_classes, width)
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5))


class Failing(CrossEntropy):
    """A method with a bug that its third step meets."""

    steps = 0

    def forward(self, student, teachers, batch, progress):
        self.steps += 1
        if self.steps == 3:
            raise ValueError("a bug of the third step")
        return super().forward(student, teachers, batch, progress)


class StoppingOthers(Smooth):
    """A network with which every process but the first receives a stop request while it builds its learners."""

    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__(num_classes, width)
        if world().rank:
            signal.raise_signal(signal.SIGUSR1)


class Signalling(CrossEntropy):
    """A method whose twelfth step sends a signal to every process but the first, if an environment variable has it."""

    steps = 0

    def forward(self, student, teachers, batch, progress):
        self.steps += 1
        if self.steps == 12 and world().rank and "KDBENCH_TEST_SIGNAL" in os.environ:
            os.kill(os.getpid(), int(os.environ["KDBENCH_TEST_SIGNAL"]))
        return super().forward(student, teachers, batch, progress)
