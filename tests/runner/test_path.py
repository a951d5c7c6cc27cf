"""How far a reader travels from the command to the optimiser's step: frames and open contexts of our own code."""

import ast
import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_pre_hook

import kdbench
from tests.conftest import NARROW, SMALL, Finished

SOURCE = Path(kdbench.__file__).parent
FRAMES, CONTEXTS, STEPS = 8, 5, 2


def own_frames(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    """Yield the frames of kdbench's code on the stack, the innermost first."""
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(SOURCE):
            yield frame
        frame = frame.f_back


def suspended_frames() -> Iterator[types.FrameType]:
    """Yield the frames of kdbench's generators that are suspended, such as those of its context managers."""
    for candidate in gc.get_objects():
        if isinstance(candidate, types.GeneratorType) and candidate.gi_frame and not candidate.gi_running:
            yield from list(own_frames(candidate.gi_frame))[:1]


@functools.cache
def contexts_of(file: str) -> list[tuple[int, int, int]]:
    """Return the first and last line of the body of each with statement in a file, and how many contexts it opens."""
    tree = ast.parse(Path(file).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    return [(node.body[0].lineno, node.body[-1].end_lineno or 0, len(node.items)) for node in found]


def open_contexts(frame: types.FrameType) -> int:
    """Return how many contexts a frame has opened and not closed."""
    line = frame.f_lineno
    return sum(count for first, last, count in contexts_of(frame.f_code.co_filename) if first <= line <= last)


def test_a_plain_run_reaches_the_optimiser_in_few_frames_and_contexts(kdbench: Callable[..., Finished]) -> None:
    seen: list[tuple[list[str], int]] = []

    def look(*_: object) -> None:
        stack = list(own_frames(sys._getframe()))
        names = [f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}" for frame in stack]
        seen.append((names, sum(map(open_contexts, [*stack, *suspended_frames()]))))

    hook = register_optimizer_step_pre_hook(look)
    try:
        result = kdbench(*SMALL, *NARROW, "method=ce", "output_root=out")
    finally:
        hook.remove()
    assert result.code == 0, result.err
    assert len(seen) == STEPS
    for names, contexts in seen:
        assert names[-1] == "cli.py:main"
        assert len(names) <= FRAMES, names
        assert contexts <= CONTEXTS
