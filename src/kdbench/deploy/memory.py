"""Peak memory of a network in ONNX Runtime, in a process of its own.

That process is `python -m kdbench.deploy.memory FILE BATCH THREADS LEVEL`; it imports no torch.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

PASSES = 3
SECONDS = 300
"""Time limit of the process."""


def peak_memory(graph: bytes, batch: int, threads: int) -> int | str:
    """Return bytes by which a process grows that loads a graph and computes a batch, or why it is not known.

    Graph optimisations are those of `session_of`.

    Args:
        graph: ONNX graph with the input [N, C, H, W].
        batch: number of images.
        threads: number of threads.
    """
    from kdbench.models.onnx_graph import has_half_precision  # here: the process that measures imports no torch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "graph.onnx")
        file.write_bytes(graph)
        level = "ORT_ENABLE_EXTENDED" if has_half_precision(graph) else "ORT_ENABLE_ALL"
        command = [sys.executable, "-m", "kdbench.deploy.memory", str(file), str(batch), str(threads), level]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
            return int(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return f"the process that measures it failed ({type(error).__name__})"


def start_peak() -> int:
    """Start to record the largest resident size of this process anew, and return its present one in bytes.

    The system's own record (`ru_maxrss`) begins with the size of the process that started this one.

    Raises:
        OSError: this system keeps no such record.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the largest resident size since the record started, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main(file: str, batch: str, threads: str, level: str) -> None:
    """Print the growth of this process."""
    import numpy as np
    import onnxruntime

    before = start_peak()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    images = np.zeros((int(batch), *given.shape[1:]), np.float32)
    for _ in range(PASSES):
        session.run(None, {given.name: images})
    print(peak() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
