"""Construction of a run's method, with the mistakes of a user's class as errors in one line."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from kdbench.config import RunConfig
from kdbench.errors import ConfigError, KdbenchError, described_at
from kdbench.methods.base import Method, MethodContext, Requires
from kdbench.system.memory import is_out_of_memory


def build_method(config: RunConfig, context: MethodContext) -> Method:
    """Return the method of a run.

    Raises:
        ConfigError: a class from elsewhere does not take what methods are given, or does not say what it requires.
    """
    cls, given = config.method.target, (config.method.params, context)
    expected = {"__init__": (cls, given), "forward": (cls.forward, (None,) * 5)}
    for name, (function, values) in expected.items():
        try:
            inspect.signature(function).bind(*values)
        except TypeError as error:
            taken = "config, context" if name == "__init__" else "student, teachers, batch, progress"
            raise ConfigError(
                f"{config.method.path} cannot be used: its {name} must take ({taken}); {error}",
                code="no_method",
                key="method._target_",
            ) from None
    with described(cls, config.method.name, "cannot be built"):
        method = cls(*given)
    if not isinstance(getattr(method, "requires", None), Requires):
        raise ConfigError(
            f"{config.method.path} does not say what it computes from; give it requires = Requires(...), of "
            "kdbench.methods",
            code="no_method",
            key="method._target_",
        )
    requires = method.requires
    for field in ("teacher_stages", "student_stages", "teacher_setup_stages"):
        if not isinstance(getattr(requires, field), tuple):
            raise ConfigError(
                f"{config.method.path} has requires.{field} = {getattr(requires, field)!r}; it must be a tuple of "
                "names, such as ('layer1',)",
                code="no_method",
                key="method._target_",
            )
    if not method.needs_teacher and (requires.teacher_logits or requires.teacher_network_stages):
        raise ConfigError(
            f"{config.method.path} requires outputs of a teacher and declares needs_teacher = False; declare "
            "needs_teacher = True, or requires = Requires() if it reads none",
            code="no_method",
            key="method._target_",
        )
    if requires.any_stages and not method.uses_stages:
        raise ConfigError(
            f"{config.method.path} requires stages and declares uses_stages = False, so that its run key would lack "
            "them; declare uses_stages = True",
            code="no_method",
            key="method._target_",
        )
    return method


@contextmanager
def described(cls: type, name: str, failed: str) -> Iterator[None]:
    """Raise exceptions of a method's class from elsewhere as errors in one line; those of kdbench's own are faults.

    Args:
        cls: class of the method.
        name: name of the method.
        failed: words for the error, after the name of the class.

    Raises:
        ConfigError: any exception except a KdbenchError and out of memory.
    """
    try:
        yield
    except KdbenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or cls.__module__.startswith("kdbench."):
            raise
        raise ConfigError(
            f"method={name}: {cls.__name__} {failed}: {described_at(error, cls)}",
            code="no_method",
            key="method._target_",
        ) from error
