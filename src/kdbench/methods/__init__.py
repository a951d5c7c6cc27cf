"""Distillation methods: one file each, a pure loss function and a thin class that owns what the loss requires."""

from kdbench.methods.base import Method, Progress, Requires, Shapes, TeacherOutput
from kdbench.methods.ce import CrossEntropy
from kdbench.methods.feature import FeatureDistillation, feature_kd
from kdbench.methods.logit import LogitDistillation, logit_kd

__all__ = [
    "CrossEntropy",
    "FeatureDistillation",
    "LogitDistillation",
    "Method",
    "Progress",
    "Requires",
    "Shapes",
    "TeacherOutput",
    "feature_kd",
    "logit_kd",
]
