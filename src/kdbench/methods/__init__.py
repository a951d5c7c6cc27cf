"""Distillation methods: one file each, a pure loss function and a thin class that owns what the loss needs."""

from kdbench.methods.ce import CrossEntropy
from kdbench.methods.feature import FeatureDistillation, feature_kd
from kdbench.methods.logit import LogitDistillation, logit_kd
from kdbench.methods.method import Knowledge, Method, Needs, Progress, Shapes

__all__ = [
    "CrossEntropy",
    "FeatureDistillation",
    "Knowledge",
    "LogitDistillation",
    "Method",
    "Needs",
    "Progress",
    "Shapes",
    "feature_kd",
    "logit_kd",
]
