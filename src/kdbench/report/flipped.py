"""Test images that distilled students and their baselines classify differently, with what each network predicts."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from kdbench.report.class_gains import class_names
from kdbench.report.fidelity import teacher_folder
from kdbench.report.gains import Gain, group_by
from kdbench.report.groups import BASELINE, DISTILLED, TEST_IMAGES
from kdbench.report.predictions import Predictions, predictions_in, same_images
from kdbench.rundir.summary import KEY
from kdbench.rundir.unfinished import CONFIG_FILE

MOST_IMAGES = 10
LARGEST_SIDE = 96
"""Largest side of a thumbnail in pixels."""

ImageReader = Callable[[Path, Path | None], tuple[NDArray[np.uint8], NDArray[np.int64]] | str]
"""Function of a run directory and of a folder with the data, or None, that returns test images [N, H, W, C] and labels
[N], or why it cannot. The report itself imports no torch, and data sets do."""


@dataclass(frozen=True)
class FlippedImage:
    """Test image with the classes that networks predict for it."""

    index: int
    """Place in the test set, from 0."""
    label: str
    """True class."""
    flips: int
    """Pairs of runs of one seed of which one is right and the other wrong."""
    pairs: int
    """Number of pairs that were compared."""
    predictions: Sequence[tuple[str, str]]
    """Networks, each with the classes and their counts as text: ("baseline resnet8", "cat 2, dog 1")."""
    png: str | None
    """The image as a data URL of a PNG; None where the test images are not at hand."""


@dataclass
class Compared:
    """Pairs of runs with the same test images, and the networks whose predictions are shown, each run once."""

    labels: Predictions
    """Any run of them, for the labels."""
    flips: NDArray[np.int64]
    """[N], number of pairs that flip."""
    first: Any
    """Distilled run of the first pair."""
    pairs: int = 0
    folders: dict[Path, None] = field(default_factory=dict)
    networks: dict[str, dict[Path, Predictions]] = field(default_factory=dict)

    def add(self, run: Any, ours: Predictions, base: Any, theirs: Predictions, teacher: Path | None) -> None:
        """Add a pair of runs with the same test images, and the teacher of the first."""
        of_teacher = predictions_in(teacher)
        self.flips += (ours.correct != theirs.correct) & ~(ours.tied | theirs.tied)
        self.pairs += 1
        if teacher and of_teacher and same_images(of_teacher, ours):
            self.networks.setdefault(f"teacher {run.teacher}", {})[teacher] = of_teacher
        self.networks.setdefault(f"{BASELINE} {run.student}", {})[base.path] = theirs
        self.networks.setdefault(f"{DISTILLED} {run.student}", {})[run.path] = ours
        self.folders |= {run.path: None, base.path: None}


def find_flipped(
    gains: Sequence[Gain], runs: pd.DataFrame, images: ImageReader | None = None, data_root: Path | None = None
) -> tuple[list[FlippedImage], list[str]]:
    """Return the test images that most pairs of a distilled run and its baseline flip; of equals the earlier ones.

    Args:
        gains: gains of the report.
        runs: runs of the report, to find teachers among.
        images: reader of test images; None: no pixels.
        data_root: folder with the data, for the reader.

    Returns:
        The images, and a remark if they are shown without pixels.
    """
    compared = compare_pairs(gains, runs)
    if compared is None:
        return [], []
    order = np.argsort(-compared.flips, kind="stable")[:MOST_IMAGES]
    indices = [int(index) for index in order if compared.flips[index]]
    flipped = [describe(compared, index) for index in indices]
    if not flipped or images is None:
        return flipped, []
    # A run with its config says where its data were.
    folder = next((folder for folder in compared.folders if (folder / CONFIG_FILE).is_file()), compared.first.path)
    found = images(folder, data_root)
    if not isinstance(found, str) and not np.array_equal(found[1], compared.labels.labels):
        found = "the labels of the images that were found are not those of the runs"
    if isinstance(found, str):
        return flipped, [f"the flipped images are described without pictures: {found}"]
    return [replace(image, png=png_of(found[0][image.index])) for image in flipped], []


def compare_pairs(gains: Sequence[Gain], runs: pd.DataFrame) -> Compared | None:
    """Return all pairs with logits of the same test images; of several data sets, those of the one with most pairs."""
    found: dict[Any, Compared] = {}
    distilled = [gain for gain in gains if gain.group.shared.role == DISTILLED and not gain.is_pooled]
    for _, of_teacher in group_by(distilled, lambda gain: gain.group.shared.teacher_key):
        teacher = teacher_folder(of_teacher[0].group.shared, runs)
        for gain in of_teacher:
            shared = gain.group.shared
            for run, base in gain.pairs:
                ours, theirs = predictions_in(run.path), predictions_in(base.path)
                if not ours or not theirs or not same_images(ours, theirs):
                    continue
                key = (shared[KEY.dataset], shared.get(TEST_IMAGES), ours.labels.tobytes())
                if key not in found:
                    found[key] = Compared(ours, np.zeros(len(ours.labels), dtype=np.int64), run)
                found[key].add(run, ours, base, theirs, teacher)
    return max(found.values(), key=lambda compared: compared.pairs, default=None)


def describe(compared: Compared, index: int) -> FlippedImage:
    """Return an image with what the networks predict for it: teachers first, then students, by name."""
    names = class_names(compared.first, compared.labels.num_classes)
    order = ["teacher", BASELINE, DISTILLED]

    def place(network: str) -> tuple[bool, str, int]:
        kind, _, name = network.partition(" ")
        return kind != "teacher", name, order.index(kind)

    predictions = [
        (network, count_classes(list(compared.networks[network].values()), index, names))
        for network in sorted(compared.networks, key=place)
    ]
    label = names[int(compared.labels.labels[index])]
    return FlippedImage(index, label, int(compared.flips[index]), compared.pairs, predictions, None)


def count_classes(networks: Sequence[Predictions], index: int, names: Sequence[str]) -> str:
    """Return how many networks predict which class for an image, the most frequent first: "cat 2, dog 1"."""
    known = Counter(int(network.predicted[index]) for network in networks if not network.tied[index])
    parts = [f"{names[c]} {n}" for c, n in sorted(known.items(), key=lambda item: (-item[1], item[0]))]
    undecided = sum(bool(network.tied[index]) for network in networks)
    return ", ".join([*parts, *([f"open {undecided}"] if undecided else [])])


def png_of(image_HWC: NDArray[np.uint8]) -> str:
    """Return an image as the data URL of a PNG, made smaller where a side exceeds the largest one.

    Channels other than red, green and blue, or grey, are left out.
    """
    channels = image_HWC.shape[2]
    picture = Image.fromarray(np.ascontiguousarray(image_HWC[..., :3] if channels >= 3 else image_HWC[..., 0]))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
