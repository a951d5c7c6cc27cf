"""Formats of an export, and the code bases whose names its weights can have. Imports no torch, for --help."""

FORMATS = ("onnx", "torch", "safetensors")
PLAIN, TORCHVISION, TIMM = "plain", "torchvision", "timm"
NAMINGS = (PLAIN, TORCHVISION, TIMM)
