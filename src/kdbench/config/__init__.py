"""Sections of a config, their validation, and composition by Hydra. Imports no other package of kdbench."""

from kdbench.config.composition import compose
from kdbench.config.parse import parse
from kdbench.config.paths import CONF_DIR
from kdbench.config.recipe import RecipeConfig
from kdbench.config.resolvers import register
from kdbench.config.sections import (
    CheckpointConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    RuntimeConfig,
    TeacherConfig,
)

__all__ = [
    "CONF_DIR",
    "CheckpointConfig",
    "DataConfig",
    "MethodConfig",
    "ModelConfig",
    "RecipeConfig",
    "RunConfig",
    "RuntimeConfig",
    "TeacherConfig",
    "compose",
    "parse",
]

register()
