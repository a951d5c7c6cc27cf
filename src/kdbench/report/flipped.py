"""Test images that distilled students and their baselines classify differently, with what each network says."""

from collections.abc import Sequence
from dataclasses import dataclass


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
    """Who, and the classes with their counts as text: ("baseline resnet8", "cat 2, dog 1")."""
    png: str | None
    """The image as a data URL of a PNG; None where the test images are not at hand."""
