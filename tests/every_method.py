"""Every method in conf/: a new one is tested because its file is there, on most days by fewer tests."""

from typing import Any

import pytest

from kdbench.config import CONF_DIR

METHODS = sorted(file.stem for file in (CONF_DIR / "method").glob("*.yaml"))
EVERYDAY = ("ce", "logit", "feature")
"""No teacher, its logits, its feature maps: the three kinds of a training step."""


def every_method() -> list[Any]:
    """Parameters: every method by name. All but three are slow tests."""
    return [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in METHODS]
