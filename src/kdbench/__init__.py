"""kdbench: find out, and prove, what knowledge distillation does."""

from importlib.metadata import version

__version__ = version("kdbench")
