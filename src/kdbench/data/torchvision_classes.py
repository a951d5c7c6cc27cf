"""The classes of torchvision.datasets that are image classifications, and their parameters."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from torchvision import datasets

from kdbench.errors import ConfigError

OTHER_TASKS = {
    "_optical_flow": "optical flow",
    "_stereo_matching": "stereo matching",
    "cityscapes": "segmentation",
    "coco": "detection and captions",
    "flickr": "captions",
    "hmdb51": "video",
    "kinetics": "video",
    "kitti": "detection",
    "moving_mnist": "video",
    "phototour": "matching of patches",
    "sbd": "segmentation",
    "sbu": "captions",
    "ucf101": "video",
    "voc": "detection and segmentation",
    "widerface": "detection",
}
"""Modules of torchvision.datasets without image classification."""
OTHER_CLASSES = {"LFWPairs": "comparison of faces", "LSUN": "a database of lmdb", "LSUNClass": "a single class of LSUN"}
GENERAL = ("DatasetFolder", "ImageFolder", "VisionDataset")


def classification(name: str, option: str) -> Any:
    """Return the class of torchvision.datasets with a name.

    Raises:
        ConfigError: there is none, or it is no image classification.
    """
    classes = {n: cls for n in datasets.__all__ if isinstance(cls := getattr(datasets, n), type)}
    tasks = {n: OTHER_TASKS.get(cls.__module__.rpartition(".")[2]) for n, cls in classes.items()} | OTHER_CLASSES
    if name in GENERAL:
        raise ConfigError(
            f"{option}: data.dataset is {name}, which is a class for folders; use data=image_folder",
            code="unsupported_dataset",
            key="data.dataset",
        )
    if tasks.get(name):
        raise ConfigError(
            f"{option}: data.dataset is {name}, which is no image classification but {tasks[name]}; "
            "give another data set",
            code="unsupported_dataset",
            key="data.dataset",
        )
    valid = [n for n in classes if not tasks[n] and n not in GENERAL]
    if name not in valid:
        raise ConfigError(
            f"{option}: data.dataset is {name!r}, and torchvision.datasets has no such image classification; "
            f"{nearest_class(name, valid)}",
            code="unknown_option",
            key="data.dataset",
        )
    return classes[name]


def nearest_class(name: str, valid: Sequence[str]) -> str:
    """Return a hint for a mistyped name of a class, whatever the case of its letters."""
    spelled = {n.lower(): n for n in valid}
    close = [spelled[n] for n in difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.6)]
    return f"did you mean {' or '.join(close)}?" if close else f"valid: {', '.join(sorted(valid))}"


def parameters_of(cls: Any) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a class, with those of its bases where it passes `**kwargs` on."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base):
            continue
        own = dict(inspect.signature(vars(base)["__init__"]).parameters)
        own.pop("self", None)
        passed_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values())
        for name, parameter in own.items():
            if parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
                parameters.setdefault(name, parameter)
        if not passed_on:
            break
    return parameters
