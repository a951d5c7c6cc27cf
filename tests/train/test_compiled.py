"""Compiled students compute the same function, compiled once for all of them. Torch's tracer runs, no compiler does.

Each test has architectures of its own: what is compiled stays for the process.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdbench.config import RunConfig
from kdbench.errors import RunError
from kdbench.models import build
from kdbench.train import compiled
from tests.conftest import complete
from tests.networks import SPEC

Small = Callable[..., RunConfig]
Backend = Callable[[Any, Any], Any]

SIZE = ("method=ce", "recipe.epochs=2", "runtime.threads=1")


@pytest.fixture
def use_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Backend], None]:
    """Return a function that sets torch's compiler backend."""
    torch._dynamo.reset()
    return lambda backend: monkeypatch.setattr(compiled, "BACKEND", backend)


@pytest.fixture
def graphs(use_backend: Callable[[Backend], None]) -> list[Any]:
    """The graphs that the compiler was given; they are executed as they are."""
    given: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        given.append(graph)
        return graph.forward

    use_backend(backend)
    return given


@pytest.mark.slow
def test_a_compiled_student_learns_what_another_does_and_is_compiled_once(small: Small, graphs: list[Any]) -> None:
    narrow = (*SIZE, "student.widths=[8,8,16,18]")
    plain = complete(small(*narrow))
    assert not graphs
    root = f"output_root={small().output_root}/compiled"
    runs = [complete(small(*narrow, "runtime.compile=true", f"init_seed={seed}", root)) for seed in (0, 1)]
    assert len(graphs) == 1
    assert runs[0].weights.read_bytes() == plain.weights.read_bytes() != runs[1].weights.read_bytes()
    complete(small(*SIZE, "runtime.compile=true", "student.widths=[8,16,16,18]"))
    assert len(graphs) == 2


@pytest.mark.slow
def test_each_of_many_architectures_is_compiled(small: Small, graphs: list[Any]) -> None:
    """Torch stops compiling a function after eight times."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    for width in range(8, 20):
        student = build(small("method=ce", f"student.widths=[8,8,9,{width}]").student, SPEC, ()).train()
        forward = compiled.compiled(student)
        forward(images)
        forward(images[:2])
    assert len(graphs) >= 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "width", "code", "key"),
    [
        (FileNotFoundError("no such file: g++"), 10, "not_compilable", "runtime.compile"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            11, "out_of_memory", "recipe.batch_size",
        ),
    ],
)  # fmt: skip
def test_a_failing_compiler_and_a_lack_of_memory_are_told_apart(
    small: Small, use_backend: Callable[[Backend], None], raised: Exception, width: int, code: str, key: str
) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise raised

    use_backend(fail)
    with pytest.raises(RunError) as error:
        complete(small(*SIZE, "runtime.compile=true", f"student.widths=[8,8,{width},16]"))
    assert (error.value.code, error.value.key) == (code, key)
    assert "\n" not in str(error.value)
