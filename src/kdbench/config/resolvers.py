"""Functions that YAML files may call in an interpolation: `${kdbench.add:${seed},1000}`."""

from omegaconf import OmegaConf


def add(*numbers: int) -> int:
    """Return the sum of whole numbers, such as a seed that differs from another by a fixed number.

    Raises:
        ValueError: one of them is no whole number.
    """
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"kdbench.add takes whole numbers, not {number!r}")
    return sum(numbers)


def register() -> None:
    """Make the functions known to OmegaConf, for the whole process."""
    OmegaConf.register_new_resolver("kdbench.add", add, replace=True)
