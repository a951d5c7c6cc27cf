"""The path of a run: how far it is from the command to the optimiser's step.

A reader has to follow every function and every context between them, so their number is bounded.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

import kdbench
from kdbench import cli
from tests.conftest import NARROW, SMALL, rest_wide

MAX_FRAMES = 8
MAX_CONTEXTS = 5


def is_own(module: str | None) -> bool:
    return module is not None and (module == "kdbench" or module.startswith("kdbench."))


def own_modules() -> list[ModuleType]:
    return [module for name, module in sorted(sys.modules.items()) if is_own(name)]


def own_frames(frame: FrameType | None) -> Iterator[str]:
    """Yield the own functions on the stack, the innermost first."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if is_own(module):
            yield f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back


class OpenContexts:
    """Counts the context managers that own code has entered and not left.

    Counted are contexts whose generator function or class is defined in an own module, and exit stacks that own code
    opens; contexts of other libraries are not.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open: list[tuple[int, str]] = []
        manager = contextlib._GeneratorContextManager
        self.watch(patch, manager, lambda context: named(context.func) if is_own(context.func.__module__) else None)
        self.watch(
            patch, contextlib.ExitStack, lambda context: f"ExitStack in {caller()}" if is_own(caller()) else None
        )
        for module in own_modules():
            for name, cls in vars(module).items():
                if isinstance(cls, type) and cls.__module__ == module.__name__ and "__enter__" in vars(cls):
                    self.watch(patch, cls, functools.partial(lambda label, _: label, f"{module.__name__}.{name}"))

    def watch(self, patch: pytest.MonkeyPatch, cls: Any, label: Callable[[Any], str | None]) -> None:
        enter, leave = cls.__enter__, cls.__exit__

        def entered(context: Any) -> Any:
            name = label(context)  # before, since contextlib drops the function on entering
            result = enter(context)
            if name:
                self.open.append((id(context), name))
            return result

        def left(context: Any, *error: Any) -> Any:
            for position in reversed(range(len(self.open))):
                if self.open[position][0] == id(context):
                    del self.open[position]
                    break
            return leave(context, *error)

        patch.setattr(cls, "__enter__", entered)
        patch.setattr(cls, "__exit__", left)


def named(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def caller() -> str | None:
    """Return the module that enters the context: the first on the stack that is neither this one nor contextlib."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    return frame.f_globals.get("__name__") if frame else None


@pytest.mark.parametrize("method", rest_wide(["logit", "ce"]))
def test_few_functions_and_contexts_stand_between_the_command_and_the_optimiser_step(
    tmp_path, monkeypatch, capfd, method
):
    seen: list[tuple[list[str], list[str]]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdbench", *SMALL, *NARROW, f"method={method}", "output_root=out"])
    with pytest.MonkeyPatch.context() as patch:
        contexts = OpenContexts(patch)

        def observe(*_: Any) -> None:
            seen.append((list(own_frames(sys._getframe(1))), [name for _, name in contexts.open]))

        hook = register_optimizer_step_pre_hook(observe)
        try:
            with pytest.raises(SystemExit) as leaving:
                cli.main()
        finally:
            hook.remove()
    assert leaving.value.code == 0, capfd.readouterr().err
    frames, open_contexts = seen[-1]  # of the run itself; a teacher is trained before it
    lines = [
        f"{len(frames)} own frames:", *reversed(frames),
        f"{len(open_contexts)} open contexts:", *open_contexts,
        f"modules: {len({frame.rpartition('.')[0] for frame in frames})}",
    ]  # fmt: skip
    assert frames[-1] == "kdbench.cli.main"
    assert len(frames) <= MAX_FRAMES, "\n".join(lines)
    assert len(open_contexts) <= MAX_CONTEXTS, "\n".join(lines)
    print("\n".join(lines))


def test_no_module_stands_at_the_top_level_but_those_of_the_design():
    top = {path.stem for path in Path(kdbench.__file__).parent.glob("*.py")}
    assert top == {"__init__", "__main__", "cli", "errors"}
