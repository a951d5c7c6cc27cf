"""Static 8-bit quantisation after training, calibrated on training images."""

import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.compress.base import Compressed, Compression, Subject
from kdbench.config.schema import one_of, setting, whole
from kdbench.errors import ConfigError, first_line
from kdbench.models.compressed import base_of, quantized
from kdbench.models.network import LogitsKey, Network, StageSource
from kdbench.models.onnx_graph import INPUT, extra, quiet, to_onnx
from kdbench.models.plain import plain_module

log = logging.getLogger(__name__)

TARGET = f"{quantized.__module__}.{quantized.__qualname__}"


class Int8(Compression):
    """Static quantisation by ONNX Runtime: 8-bit weights and activations, batch norm folded into convolutions.

    Weights are signed and symmetric, activations unsigned with a zero point (Jacob et al. 2018, arXiv 1712.05877).
    The result is an ONNX graph, which ONNX Runtime computes wherever kdbench uses the network.
    """

    @dataclass
    class Config:
        images: int = whole(1)
        """Number of training images from which the ranges of activations are measured."""
        calibration: str = one_of("minmax", "entropy", "percentile")
        per_channel: bool = setting()
        """A scale for each output channel of a weight, in place of one for the whole weight."""
        reduce_range: bool = setting()
        """7-bit weights, for processors without VNNI, whose 16-bit sums may overflow."""

    trainable = False
    after_masks = True

    def apply(self, subject: Subject) -> Compressed:
        logits = subject.summary.logits
        network = Network(subject.body, {}, logits, "")
        plain = plain_module(network)
        graph = to_onnx(plain, subject.spec.input_shape, "int8", "use another compression, such as fp16")
        content = self.quantize(graph, subject)
        arguments = {
            "base": base_of(subject.model),
            "num_bytes": len(content),
            "logits_of_base": logits_argument(logits),
        }
        model = dataclasses.replace(subject.model, target=TARGET, arguments=arguments, stages={}, logits=None)
        return Compressed(model, {"graph": torch.frombuffer(bytearray(content), dtype=torch.uint8)})

    def quantize(self, graph: bytes, subject: Subject) -> bytes:
        """Return the graph with quantised weights and activations.

        Raises:
            ConfigError: the extra is not installed, or the graph cannot be quantised.
        """
        with extra("compress=int8", "onnxruntime"):
            from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
            from onnxruntime.quantization.shape_inference import quant_pre_process
        methods = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }
        with tempfile.TemporaryDirectory() as folder, quiet():
            given, prepared, result = (str(Path(folder, f"{name}.onnx")) for name in ("given", "prepared", "result"))
            Path(given).write_bytes(graph)
            try:
                quant_pre_process(given, prepared, skip_symbolic_shape=True)
                quantize_static(
                    prepared, result, Reader(first_images(subject.images(), self.config.images)),
                    quant_format=QuantFormat.QDQ, per_channel=self.config.per_channel,
                    reduce_range=self.config.reduce_range, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, calibrate_method=methods[self.config.calibration],
                )  # fmt: skip
            except Exception as error:  # of the library, for graphs that it cannot follow
                raise ConfigError(
                    f"compress=int8 cannot quantise {subject.model.name}: {first_line(error)}",
                    code="not_compressible",
                    key="int8",
                ) from error
            return Path(result).read_bytes()


class Reader:
    """Batches of calibration images as ONNX Runtime reads them.

    Args:
        batches: normalised images [B, C, H, W].
    """

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.float().cpu().contiguous().numpy()}


def first_images(batches: Iterator[Tensor], number: int) -> Iterator[Tensor]:
    """Yield the first images of some batches, one by one: entropy and percentiles need equal shapes."""
    found = 0
    for batch in batches:
        for image in batch.split(1):
            if found == number:
                return
            yield image
            found += 1
    if found < number:
        log.info("int8.images is %d; all %d training images were used", number, found)


def logits_argument(logits: StageSource | LogitsKey) -> Any:
    """Return the place of the logits as plain data: see `quantized`."""
    if isinstance(logits, StageSource):
        return {"module": logits.path}
    return list(logits) if isinstance(logits, tuple) else logits
