"""Compiled students: the same function, compiled once for all that have it. Torch's tracer runs, no compiler does."""

import pytest
import torch

from kdbench.errors import RunError
from kdbench.models import build
from kdbench.run import execute
from kdbench.train import compiled

SIZE = ("recipe.epochs=2", "runtime.threads=1", "student.widths=[8,8,16,16]")


@pytest.fixture
def graphs(monkeypatch):
    """What was given to be compiled; it is run as it is."""
    torch._dynamo.reset()
    given = []

    def backend(graph, inputs):
        given.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    monkeypatch.setattr(compiled, "_compiled", {})
    return given


@pytest.mark.slow
def test_compiled_student_learns_what_another_does_and_is_compiled_once(small, graphs):
    plain = execute(small("method=ce", *SIZE))
    assert not graphs
    runs = [
        execute(
            small(
                "method=ce", *SIZE, "runtime.compile=true", f"init_seed={seed}", f"output_root={small().output_root}/c"
            )
        )
        for seed in (0, 1)
    ]
    assert len(graphs) == 1
    assert runs[0].weights.read_bytes() == plain.weights.read_bytes() != runs[1].weights.read_bytes()
    execute(small("method=ce", *SIZE, "runtime.compile=true", "student.widths=[8,16,16,16]"))
    assert len(graphs) == 2


@pytest.mark.slow
def test_each_of_many_architectures_is_compiled(small, graphs):
    """Torch gives up on a function that it has compiled eight times."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    for width in range(8, 20):
        student = build(small("method=ce", f"student.widths=[8,8,8,{width}]").student, 10, ()).train()
        compiled.compiled(student)(images)
        compiled.compiled(student)(images[:2])
    assert len(graphs) >= 12


def test_a_lack_of_memory_is_no_failure_of_the_compiler(small, graphs, monkeypatch):
    def greedy(graph, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(compiled, "BACKEND", greedy)
    with pytest.raises(RunError, match=r"^out of memory on cpu; 2.00 GiB more were asked for"):
        execute(small("method=ce", *SIZE, "runtime.compile=true"))


def test_a_compiler_that_fails_is_said_in_one_line(small, graphs, monkeypatch):
    def broken(graph, inputs):
        raise FileNotFoundError("no such file: g++")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(RunError, match=r"runtime.compile=true and torch could not compile .*use runtime.compile=false"):
        execute(small("method=ce", *SIZE, "runtime.compile=true"))
