"""Every method in conf/: a new one is tested because its file is there, on most days by fewer tests."""

from typing import Any

import pytest

from kdbench.config import CONF_DIR

METHODS = sorted(file.stem for file in (CONF_DIR / "method").glob("*.yaml"))
EVERYDAY = ("ce", "logit", "feature")
"""No teacher, its logits, its feature maps: the three kinds of a training step."""


def for_few_images(method: str) -> tuple[str, ...]:
    """Return overrides that a method needs on the few images of a test."""
    return ("method.negatives=16",) if method == "crd" else ()


def every_method() -> list[Any]:
    """Parameters: every method by name. All but three are wide tests."""
    return [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.wide) for name in METHODS]
