"""8-bit graphs: scales by hand, size, logits, and the images of the calibration."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array

from kdbench.compress.int8 import Reader
from kdbench.config import RunConfig
from kdbench.data import load
from kdbench.data.source import Split
from kdbench.models.onnx_graph import to_onnx
from kdbench.pipeline.compress import compress
from tests.compress.subjects import apply, calibration, named, own, rebuilt, some_images, subject_of
from tests.conftest import complete, rest_wide


def graph_in(compressed: Any) -> onnx.GraphProto:
    return onnx.load_from_string(compressed.weights["graph"].numpy().tobytes()).graph


def quantised_tensors(graph: onnx.GraphProto) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return by name of a stored tensor its integers, scale and zero point."""
    stored = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    return {
        node.input[0]: (stored[node.input[0]], stored[node.input[1]], stored[node.input[2]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }


@pytest.mark.slow
@pytest.mark.parametrize(("per_channel", "reduce_range"), rest_wide([(True, False), (False, False), (True, True)]))
def test_weights_have_symmetric_scales_and_the_images_the_range_of_the_calibration(
    per_channel: bool, reduce_range: bool
) -> None:
    subject = subject_of(own("TwoConvolutions"))
    weight = subject.body.conv1.weight.detach().numpy()
    graph = graph_in(apply(subject, "int8", "images=20", f"per_channel={per_channel}", f"reduce_range={reduce_range}"))
    ((integers, scale, zero),) = [
        found for found in quantised_tensors(graph).values() if found[0].shape == weight.shape
    ]
    assert integers.dtype == np.int8
    assert not zero.any()
    largest = np.abs(weight).max(axis=(1, 2, 3)) if per_channel else np.abs(weight).max()
    np.testing.assert_allclose(scale, largest / (64 if reduce_range else 127), rtol=1e-5)
    expected = np.rint(weight / (scale[:, None, None, None] if per_channel else scale))
    np.testing.assert_allclose(integers, expected, atol=0)

    stored = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    (node,) = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "images"]
    images = torch.cat(list(calibration()))[:20].numpy()
    step = (images.max() - images.min()) / 255
    np.testing.assert_allclose(stored[node.input[1]], step, rtol=1e-5)
    assert stored[node.input[2]] == np.rint(-images.min() / step)
    assert stored[node.input[2]].dtype == np.uint8


@pytest.mark.slow
def test_every_layer_is_stored_in_8_bits_and_the_graph_is_near_a_quarter() -> None:
    subject = subject_of(named("student=resnet20"))
    whole = copy.deepcopy(subject.body)
    graph = apply(subject, "int8", "images=8")
    layers = [m for m in whole.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    tensors = quantised_tensors(graph_in(graph)).values()
    weights = [integers.size for integers, _, _ in tensors if integers.dtype == np.int8]
    assert sorted(weights) == sorted(layer.weight.numel() for layer in layers)
    floats = len(to_onnx(whole, (3, 32, 32)))
    assert 0.25 < len(graph.weights["graph"]) / floats < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_logits_are_near_those_of_the_float_network(method: str) -> None:
    subject = subject_of(named("student=resnet8"))
    with torch.no_grad():
        expected = subject.body(some_images(32))
    network = rebuilt(apply(subject, "int8", f"calibration={method}"))
    logits = network(some_images(32)).logits
    difference = float((logits - expected).abs().max() / expected.abs().max())
    assert 0 < difference < 0.1
    torch.testing.assert_close(network(some_images(32)[:3]).logits, logits[:3])


# Images of the calibration


def pictures(batches: list[np.ndarray], config: RunConfig) -> list[bytes]:
    """Return normalised images as the bytes of their 8-bit pictures."""
    keys = config.data.params
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (keys.mean, keys.std))
    return [np.rint(255 * (image * std + mean)).astype(np.uint8).tobytes() for batch in batches for image in batch]


def of_split(split: Split) -> set[bytes]:
    return {image.permute(2, 0, 1).contiguous().numpy().tobytes() for image in split.images.cpu()}


@pytest.mark.parametrize(("wanted", "read"), rest_wide([(20, 20), (500, 64)]))
def test_the_calibration_reads_training_images_alone_without_augmentation(
    small: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: int, read: int
) -> None:
    config = small("teacher=none", "method=ce", "recipe.epochs=1")
    run = complete(config)
    fed: list[np.ndarray] = []
    get_next = Reader.get_next

    def record(self: Reader) -> dict[str, Any] | None:
        batch = get_next(self)
        fed.extend([] if batch is None else [batch["images"]])
        return batch

    monkeypatch.setattr(Reader, "get_next", record)
    assert compress([str(run.path), "method=int8", f"int8.images={wanted}", "runtime.device=cpu"]) == 0
    dataset = load(config.data, "cpu")
    given = pictures(fed, config)
    train, val, test = (of_split(split) for split in (dataset.train, dataset.val, dataset.test))
    assert len(given) == len(set(given)) == read
    assert set(given) <= train
    assert not set(given) & (val | test)
