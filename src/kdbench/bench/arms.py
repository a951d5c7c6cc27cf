"""The arms of the benchmark: the reference, each feature of kdbench alone, and all of them. Imports no torch."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to train. A field at its default is as in the reference."""

    name: str
    what: str
    views: bool = False
    """True if batches are gathered from uint8 tensors on the device; otherwise PIL transforms in worker processes."""
    channels_last: bool = False
    """True if images and weights are N, H, W, C in memory."""
    precision: bool = False
    """True to compute in the run's precision; otherwise in float32."""
    learner: bool = False
    """True if the step is kdbench's: fused optimiser, sums on the device; otherwise one `.item()` per term."""
    teacher: str = "whole"
    """whole, fused (batch norm fused into the convolutions) or cache (logit cache)."""
    graphs: bool = False
    """True if steps on a GPU are captured and replayed; otherwise launched kernel by kernel."""


REFERENCE = Arm(
    "reference", "PIL transforms in workers, fp32 (GPU: TF32, torch's default), NCHW, eager, .item() per term"
)
ALONE = (
    dataclasses.replace(REFERENCE, name="views", what="batches gathered on the device", views=True),
    dataclasses.replace(REFERENCE, name="channels-last", what="images and weights as NHWC", channels_last=True),
    dataclasses.replace(REFERENCE, name="precision", what="the run's precision", precision=True),
    dataclasses.replace(REFERENCE, name="step", what="fused optimiser, sums on the device", learner=True),
    dataclasses.replace(REFERENCE, name="fused", what="teacher: fused batch norm", teacher="fused"),
    dataclasses.replace(REFERENCE, name="cache", what="teacher: logit cache", teacher="cache"),
)
"""The reference with one feature of kdbench each."""
KDBENCH = Arm("kdbench", "all of them", True, True, True, True, "fused", graphs=True)
KDBENCH_EAGER = dataclasses.replace(KDBENCH, name="kdbench-eager", what="all of them, no CUDA graphs", graphs=False)
KDBENCH_CACHE = dataclasses.replace(
    KDBENCH, name="kdbench-cache", what="all of them, teacher: logit cache", teacher="cache"
)
ARMS = (REFERENCE, *ALONE, KDBENCH_EAGER, KDBENCH, KDBENCH_CACHE)
"""Every arm, in the order of the rounds."""
