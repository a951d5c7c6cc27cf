"""Networks as ONNX graphs: export from torch, and execution by ONNX Runtime. Both are of the extra `deploy`."""

import contextlib
import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError, first_line

OPSET = 18
"""Version of the ONNX operators: the oldest that torch's exporter writes without a conversion."""
INPUT, OUTPUT = "images", "logits"


def missing_extra(what: str, package: str) -> ConfigError:
    """Return the error for a package of the extra `deploy` that is not installed."""
    return ConfigError(
        f"{what} needs {package}, which is not installed: pip install 'kdbench[deploy]'",
        code="missing_extra",
        key=package,
    )


@contextlib.contextmanager
def extra(what: str, package: str) -> Iterator[None]:
    """Turn an import error of the block into a line for the user.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise missing_extra(what, package) from error


def to_onnx(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    key: str = "--to",
    remedy: str = "use --to torch or --to safetensors",
) -> bytes:
    """Return a network as an ONNX graph with the input `images` [N, C, H, W] and the output `logits` [N, num_classes].

    Args:
        module: network in evaluation mode, on the CPU, that takes normalised images and returns logits, float32.
        input_shape: C, H, W of an image.
        key: what asks for the graph, for errors.
        remedy: what to do where there can be none, for errors.

    Raises:
        ConfigError: the extra is not installed, or ONNX cannot express an operation.
    """
    with extra("an export to ONNX", "onnxscript"):
        import onnxscript  # noqa: F401  # torch's exporter uses it
    images = torch.zeros(2, *input_shape)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, (images,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("N")},), opset_version=OPSET,
                input_names=[INPUT], output_names=[OUTPUT], external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter's own types, and those of torch.export
        raise ConfigError(
            f"the network cannot be exported to ONNX: {export_problem(error, module, images)}; {remedy}",
            code="not_exportable",
            key=key,
        ) from error
    assert program is not None
    proto = program.model_proto
    for entries in (proto.graph.node, proto.graph.value_info, proto.graph.input, proto.graph.output, proto.functions):
        for entry in entries:
            del entry.metadata_props[:]  # paths of the exporting machine
    return proto.SerializeToString(deterministic=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter and its libraries: warnings, log lines and progress."""
    unread = io.StringIO()  # torch.export prints the graph of what it cannot trace
    with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def export_problem(error: BaseException, module: nn.Module, images: Tensor) -> str:
    """Return why an export failed: the operation without a translation and its layer, or the error's first line.

    Args:
        error: error of the exporter.
        module: network.
        images: images with which it was traced.
    """
    text = "\n".join(str(cause) for cause in causes(error))
    if operation := re.search(r"No ONNX function found for [^\n]*?(aten|\w+)[.:]+(\w+)", text):
        name = f"{operation[1]}.{operation[2]}"
        layer = layer_of(name, module, images)
        return f"ONNX has no operation for {name}" + (f", which {layer} computes" if layer else "")
    last = causes(error)[-1]
    return f"{type(last).__name__}: {first_line(last)}"


def layer_of(operation: str, module: nn.Module, images: Tensor) -> str:
    """Return the path of the layer of a network that computes an operation, or "" if none of its layers does.

    Args:
        operation: name of an operation of torch, such as `aten._linalg_svd`.
        module: network.
        images: images with which it is traced.
    """
    try:
        with quiet(), torch.no_grad():
            graph = torch.export.export(module, (images,)).run_decompositions().graph
    except Exception:  # torch cannot trace it: the error at hand says more
        return ""
    for node in graph.nodes:
        if str(node.target).startswith(f"{operation}."):
            return str([*node.meta.get("nn_module_stack", {"": ("",)}).values()][-1][0]) or "the network itself"
    return ""


def causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and those that caused it, the first cause last."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


def session_of(graph: bytes, threads: int) -> Any:
    """Return a session of ONNX Runtime on the CPU.

    Raises:
        ConfigError: the extra is not installed, or the runtime has no implementation of an operation.
    """
    with extra("an ONNX graph", "onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow the next network
    if has_half_precision(graph):  # the layout optimisation of ONNX Runtime 1.32 crashes the process on some of them
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # types of the runtime's own
        said = first_line(error)
        missing = re.search(r"implementation for (\w+)\(\d+\) node with name '([^']*)'", said)
        wrong = re.search(r"Type 'tensor\((\w+)\)' .* operator \((\w+)\) in node \(([^)]*)\)", said)
        problem = f"it has no {missing[1]} for these numbers on the CPU ({missing[2]})" if missing else said
        problem = f"it has no {wrong[2]} for {wrong[1]} ({wrong[3]})" if wrong else problem
        raise ConfigError(
            f"ONNX Runtime cannot execute the network: {problem}; torch can", code="not_executable", key="onnxruntime"
        ) from None


def check_self_contained(graph: bytes) -> None:
    """Check that a graph, which may come from anywhere, reads no other file.

    Raises:
        ConfigError: a tensor of it lies in another file, or it is no graph.
    """
    with extra("an ONNX graph", "onnx"):
        import onnx
        from onnx.external_data_helper import _get_all_tensors, uses_external_data
    try:
        outside = [
            tensor.name for tensor in _get_all_tensors(onnx.load_from_string(graph)) if uses_external_data(tensor)
        ]
    except Exception as error:  # damaged bytes raise many types
        raise ConfigError(f"the graph is damaged: {first_line(error)}", code="damaged", key="graph") from None
    if outside:
        raise ConfigError(
            f"the graph reads its tensor {outside[0]} from another file, which is not allowed",
            code="untrusted",
            key="graph",
        )


def has_half_precision(graph: bytes) -> bool:
    """Return whether a graph holds weights in 16 bits."""
    import onnx

    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return any(tensor.data_type in halves for tensor in onnx.load_from_string(graph).graph.initializer)


@functools.lru_cache(maxsize=8)
def kept_session(graph: bytes, threads: int) -> Any:
    """Return a session that is kept for the next call."""
    return session_of(graph, threads)


def run_graph(graph: bytes, images: Tensor) -> Tensor:
    """Return the logits [N, C] float32 of normalised images [N, C, H, W], on the device of the images."""
    session = kept_session(graph, torch.get_num_threads())
    (logits,) = session.run(None, {INPUT: images.detach().float().cpu().contiguous().numpy()})
    return torch.from_numpy(logits).to(images.device)
