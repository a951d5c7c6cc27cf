"""Sections of runs that are derived from another run: its parent, how its network is compressed, or measured."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from kdbench.config.schema import setting, whole

TRAIN, COMPRESS, MEASURE = "train", "compress", "measure"
KINDS = (TRAIN, COMPRESS, MEASURE)
"""Kinds of run: one trains a network, one compresses that of another run, and one measures it."""
A_RUN = "a run directory or a run key"


@dataclass
class ParentConfig:
    """The run whose network another run starts from, compresses or measures."""

    run: str
    """Its run directory or run key, as given; once it was found, the key."""
    group: str = ""
    """Its group key; empty until it was found."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Compressions of its network so far, in order: name and settings of each."""

    @property
    def is_found(self) -> bool:
        return bool(self.group)


@dataclass
class CompressConfig:
    """A compression. `params` is an instance of its class's own `Config`."""

    name: str
    target: type[Any]
    params: Any

    @property
    def path(self) -> str:
        """Import path of the class."""
        return f"{self.target.__module__}.{self.target.__qualname__}"

    @property
    def step(self) -> dict[str, Any]:
        """Name and settings, as the summary of a run lists them."""
        return {"name": self.name, **dataclasses.asdict(self.params)}

    def node(self) -> dict[str, Any]:
        return {"name": self.name, "_target_": self.path, **dataclasses.asdict(self.params)}


ENGINES = ("onnx", "torch")


@dataclass
class MeasureConfig:
    """Measurement of a network's size and speed."""

    engines: list[str] = setting(lambda v: v and set(v) <= set(ENGINES), f"a list of {' and '.join(ENGINES)}")
    batches: list[int] = setting(lambda v: v and min(v) >= 1, "a list of whole numbers of at least 1")
    """Numbers of images of a forward pass whose latency is measured."""
    rounds: int = whole(3)
    """Number of measurements of each latency; all networks are measured once in a round."""
    warmup: int = whole(1)
    """Passes before the first round."""
    threads: int = whole(1)
    device: str = MISSING
    """Name of the processor, on which latencies depend."""
    together: list[str] = field(default_factory=list)
    """Keys of the runs whose networks are measured in turn in one process, sorted."""
