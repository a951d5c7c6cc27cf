"""The sections of a run's config, typed, with the range of each key."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from kdbench.config.derived import TRAIN, CompressConfig, MeasureConfig, ParentConfig
from kdbench.config.paths import is_path
from kdbench.config.recipe import RecipeConfig
from kdbench.config.schema import added, number, one_of, optional, setting, whole

FOLDER = "a folder path that the operating system accepts"


def channel_means() -> Any:
    """Declare a field with the mean of each channel."""
    return setting(lambda v: v and all(0 <= x <= 1 for x in v), "a number from 0 to 1 per channel")


def channel_deviations() -> Any:
    """Declare a field with the standard deviation of each channel."""
    return setting(lambda v: v and all(0 < x <= 1 for x in v), "a number above 0 and at most 1 per channel")


@dataclass
class DataKeys:
    """The keys of every data set. A data set that has more declares them in a subclass."""

    num_train: int | None = optional(whole(1), absent=None)
    """Number of training images; None: all."""
    num_val: int | None = optional(whole(1), absent=None)
    num_test: int | None = optional(whole(1), absent=None)
    augment: bool = setting(absent=True)
    mean: list[float] | None = optional(channel_means(), absent=None)
    """Mean of each channel; None: that of the training images."""
    std: list[float] | None = optional(channel_deviations(), absent=None)
    padding: int = added(setting(lambda value: 0 <= value <= 64, "a whole number from 0 to 64"), 4)
    flip: bool = added(setting(), True)
    memory: str = added(one_of("device", "host", identity=False), "device")
    validation: bool = added(setting(), True)
    """False: the validation images are trained on too, and the weights of the last epoch count."""


@dataclass
class FileKeys(DataKeys):
    """The keys of a data set in files."""

    root: str = setting(is_path, FOLDER, identity=False)
    download: bool = setting(identity=False)


@dataclass
class DataConfig:
    """A data set: its class, with subsets, augmentation and normalisation in `params`, an instance of its `Config`."""

    name: str
    target: type[Any]
    params: Any
    content: str | None = None
    """Hash of the images and labels, once they were loaded, where the class alone does not determine them."""

    @property
    def path(self) -> str:
        """Import path of the class."""
        return f"{self.target.__module__}.{self.target.__qualname__}"

    def node(self) -> dict[str, Any]:
        content = {"content": self.content} if self.content else {}
        return {"name": self.name, "_target_": self.path, **dataclasses.asdict(self.params), **content}


EXACT = "exact"
"""Value of `runtime.parallel`: several processes compute what one does."""
LOCAL = "local"
"""Value of `runtime.parallel`: each process has batch norm and random numbers of its own."""


@dataclass
class RuntimeConfig:
    """Device, precision and execution of a run."""

    device: str = setting(
        lambda value: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value) is not None,
        "auto, cpu, mps, cuda or cuda:0, cuda:1, ...",
    )
    precision: str = one_of("auto", "fp32", "bf16", "fp16")
    channels_last: bool = MISSING
    threads: Any = setting(  # where OpenMP cannot start that many, it ends the process without a word
        lambda value: value == "auto" or (type(value) is int and 1 <= value <= 1024),
        "auto or a whole number from 1 to 1024",
    )
    profile: str = one_of("fast", "repro")
    graphs: bool = MISSING
    compile: bool = MISSING
    parallel: str = one_of(EXACT, LOCAL, absent=EXACT)
    processes: int = added(whole(1), 1)
    """Number of processes of a run with `parallel=local`, where it changes numbers; else 1. kdbench sets it."""


@dataclass
class CheckpointConfig:
    """Schedule of the checkpoints."""

    every_epochs: int | None = optional(whole(1))
    every_minutes: float | None = optional(number(0))
    grace_seconds: float = number(0, 86_400, above=True)
    keep_last: bool = MISSING


@dataclass
class ModelConfig:
    """An architecture: what builds it, with which arguments, and which of its outputs are stages and logits."""

    name: str
    target: str
    stages: dict[str, Any]
    """Stage name to a node, or to a mapping with `node`, `input_of` or `returned`, `output` and `layout`."""
    arguments: dict[str, Any]
    logits: Any = None
    """Place of the logits in what the network returns, a list of places to average, or the path of a module."""
    weights: str | None = None
    """First weights: a file, or the name of published ones."""
    weights_hash: str | None = None
    """Hash of their file, once it was found."""

    @property
    def stem(self) -> str | None:
        return self.arguments.get("stem")

    def node(self) -> dict[str, Any]:
        own = {"logits": self.logits, "weights": self.weights, "weights_hash": self.weights_hash}
        given = {key: value for key, value in own.items() if value is not None}
        return {"name": self.name, "_target_": self.target, **self.arguments, **given, "stages": self.stages}


@dataclass
class MethodConfig:
    """Method of a run. `params` is an instance of the method class's own `Config`."""

    name: str
    target: type[Any]
    params: Any

    @property
    def path(self) -> str:
        """Import path of the method's class."""
        return f"{self.target.__module__}.{self.target.__qualname__}"

    def node(self) -> dict[str, Any]:
        return {"name": self.name, "_target_": self.path, **dataclasses.asdict(self.params)}


@dataclass
class TeacherKeys:
    """The keys of `teacher` that are not its architecture's."""

    seed: int = whole(0)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    checkpoint: str | None = optional(setting(is_path, "a file path that the operating system accepts"))
    cache: str = one_of("auto", "on", "off")
    checkpoint_key: str | None = optional(setting(lambda value: value.strip() != "", "a key of the file"), absent=None)
    mean: list[float] | None = optional(channel_means(), absent=None)
    std: list[float] | None = optional(channel_deviations(), absent=None)
    run: Any = setting(absent=None)


GIVEN_ONLY = ("checkpoint_key", "mean", "std")
"""Keys of a teacher that a recorded config holds only where they were given."""


@dataclass
class TeacherConfig:
    """The teacher: an architecture, and how it is trained or which weights it has."""

    model: ModelConfig
    seed: int
    recipe: RecipeConfig
    checkpoint: str | None
    cache: str
    """Use of the logit cache for its logits: auto, on or off."""
    checkpoint_key: str | None = None
    """Place of the weights in the file of `checkpoint`, where it holds several."""
    mean: list[float] | None = None
    std: list[float] | None = None
    """Normalisation of the teacher's own images; None: that of the data."""
    run: ParentConfig | None = None
    """Finished run that is the teacher, of any kind but a measurement."""

    @property
    def is_trained(self) -> bool:
        """True if the teacher is trained for this run: its weights are not given, and it is no finished run."""
        return self.checkpoint is None and self.run is None

    def node(self) -> dict[str, Any]:
        return {
            **self.model.node(),
            "seed": self.seed,
            "recipe": dataclasses.asdict(self.recipe),
            "checkpoint": self.checkpoint,
            "cache": self.cache,
            **{key: value for key in GIVEN_ONLY if (value := getattr(self, key)) is not None},
            **({"run": dataclasses.asdict(self.run)} if self.run else {}),
        }


OBJECTIVES = ("val_acc", "seconds", "params", "macs")
"""Numbers of a run that a sweeper may optimise: validation accuracy, training time, size and cost of the student."""


@dataclass
class TrialConfig:
    """The trial of a search that a run is: where it reports its epochs, and what may end it."""

    storage: str = setting(identity=False)
    """URL of the storage."""
    study: str = setting(identity=False)
    number: int = whole(0, identity=False)
    pruner: dict[str, Any] = setting(identity=False)
    """`name` of the pruner and its keys."""


@dataclass
class TrackerConfig:
    """A tracker of a run. `params` is an instance of the tracker class's own `Config`."""

    name: str
    target: type[Any]
    params: Any

    def node(self) -> dict[str, Any]:
        path = f"{self.target.__module__}.{self.target.__qualname__}"
        return {"name": self.name, "target": path, "params": dataclasses.asdict(self.params)}


@dataclass
class RunConfig:
    """One run."""

    student: ModelConfig
    teacher: TeacherConfig | None
    method: MethodConfig
    data: DataConfig
    recipe: RecipeConfig
    runtime: RuntimeConfig
    checkpoint: CheckpointConfig
    seed: int
    init_seed: int
    data_seed: int
    output_root: str
    on_busy: str
    overwrite: bool
    report: str | None
    trackers: list[TrackerConfig] = field(default_factory=list)
    """No part of the recorded config: they change nothing of a run, and their addresses may have passwords."""
    kind: str = TRAIN
    """train, compress or measure."""
    parent: ParentConfig | None = None
    compress: CompressConfig | None = None
    measure: MeasureConfig | None = None
    trust: list[str] = field(default_factory=list)
    """Modules whose code the configs of parent and teacher run may name."""
    objectives: list[str] = field(default_factory=lambda: list(OBJECTIVES[:1]))
    """Numbers that the run returns to a sweeper."""
    trial: TrialConfig | None = None
    """Trial of a search that the run is."""
    shared_roots: list[str] = field(default_factory=list)
    """Further output roots, which are only read: runs that are complete there, such as teachers, are used."""

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Compressions of the run's network, in order: name and settings of each."""
        return [*(self.parent.steps if self.parent else []), *([self.compress.step] if self.compress else [])]

    @property
    def title(self) -> str:
        """Short description of the run, for people."""
        source = f" from {self.teacher.model.name}" if self.teacher else ""
        return f"{self.student.name} {self.method.name}{source} seed {self.seed}"

    def node(self) -> dict[str, Any]:
        """Return plain data in the shape of the YAML it came from; `parse` reads it back."""
        beside = ("objectives", "trial", "trackers")  # the run is the same without them
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in beside}
        # Absent from the config of an ordinary run.
        for name in ("kind", "parent", "compress", "measure", "trust", "shared_roots"):
            if plain[name] in (None, [], TRAIN):
                del plain[name]
        for name, value in plain.items():
            if hasattr(value, "node"):
                plain[name] = value.node()
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                plain[name] = dataclasses.asdict(value)
        return plain | {"teacher": self.teacher.node() if self.teacher else {"name": "none"}}
