"""Peak memory of a graph, in a process of its own."""

import pytest
import torch
from torch import nn

from kdbench.deploy import memory
from kdbench.deploy.memory import peak_memory
from kdbench.models.onnx_graph import to_onnx


class WideMaps(nn.Module):
    """A few weights and activations of 256 KiB per image and layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images)).mean((2, 3))


@pytest.fixture(scope="module")
def graph() -> bytes:
    return to_onnx(WideMaps().eval(), (3, 32, 32))


@pytest.mark.slow
def test_memory_grows_with_the_activations_of_the_batch(graph: bytes) -> None:
    few, many = peak_memory(graph, 1, 1), peak_memory(graph, 256, 1)
    assert isinstance(few, int)
    assert isinstance(many, int)
    assert few > 0
    one_map = 256 * 64 * 32 * 32 * 4
    assert one_map < many - few < 6 * one_map


def test_a_process_that_fails_gives_the_reason(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_memory(graph, -1, 1) == "the process that measures it failed (CalledProcessError)"
    monkeypatch.setattr(memory, "SECONDS", 0.001)
    assert peak_memory(graph, 1, 1) == "the process that measures it failed (TimeoutExpired)"
