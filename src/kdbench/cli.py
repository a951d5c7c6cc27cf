"""The console command `kdbench`: a Hydra app. One call, one run; -m sweeps."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kdbench import __version__
from kdbench.config import CONF_DIR, parse, register_models
from kdbench.errors import ConfigError, KdbenchError, printable, refuse
from kdbench.logs import Said
from kdbench.processors import share_processors
from kdbench.stopping import TIME_IS_UP, Interrupted, listening


def main() -> None:
    """Entry point. Exit codes 0: done; 1: a run failed; 2: the config cannot run; 130: stopped by Ctrl-C; 75: stopped
    by another signal, or left to another process (after the last two the same command goes on).
    """
    sys.exit(command(sys.argv[1:]))


def main_bench() -> None:
    """Entry point of `kdbench-bench`. Exit codes as above."""
    share_processors()
    say_what_happens()

    def bench() -> None:
        from kdbench.bench.command import bench  # late: the environment is set before torch is imported

        bench(sys.argv[1:])

    sys.exit(exit_code_of(bench, "kdbench-bench", "; what was finished stands above and in its JSON file"))


def main_study() -> None:
    """Entry point of `kdbench-study`. Exit codes as above, and 3: the minutes are over, and there is more to do."""
    share_processors()
    say_what_happens()

    def study() -> int:
        from kdbench.study.command import study  # late, as above

        return study(sys.argv[1:])

    sys.exit(exit_code_of(study, "kdbench-study"))


def main_report() -> None:
    """Entry point of `kdbench-report`. Exit code 1 also where a summary was damaged and left out."""
    say_what_happens()

    def report() -> int:
        from kdbench.report.command import report

        return report(sys.argv[1:])

    sys.exit(exit_code_of(report, "kdbench-report"))


def main_verify() -> None:
    """Entry point of `kdbench-verify`. Exit code 0: what was checked holds; 1: something fails; 2: no check made."""
    share_processors()

    def verify() -> int:
        from kdbench.verify.command import verify_runs  # late, as above

        return verify_runs(sys.argv[1:])

    sys.exit(exit_code_of(verify, "kdbench-verify"))


def command(arguments: list[str]) -> int:
    if "--version" in arguments:
        print(f"kdbench {__version__} (torch {version('torch')}, torchvision {version('torchvision')})")
        return 0
    say_what_happens()
    share_processors()
    return exit_code_of(lambda: compose_and_run(arguments), afterwards="; the same command goes on where it was")


def exit_code_of(action: Callable[[], int | None], program: str = "kdbench", afterwards: str = "") -> int:
    """Carry something out, and say in one line what kept it from its end.

    Args:
        action: Gives its exit code, or None for 0.
        program: Whose line it is.
        afterwards: What to know where a signal ended it.
    """
    try:
        with listening():
            return action() or 0
    except KdbenchError as error:
        return refuse(error, program=program)
    except Interrupted as interruption:
        if interruption.exit_code != TIME_IS_UP:  # the study that set the alarm says so itself
            print(f"{program}: stopped by {interruption}{afterwards}", file=sys.stderr)
        return interruption.exit_code


def compose_and_run(arguments: list[str]) -> None:
    # Hydra would print its errors itself, in several lines, and exit with 1; so it hands them on, to be said above.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    config_dir = None
    try:
        config_dir = given_config_dir(arguments)
        register_models(CONF_DIR, *([config_dir] if config_dir else []))
        with warnings.catch_warnings():  # a folder that is not there, said in two lines, and then the run starts
            warnings.filterwarnings("error", "provider=hydra.searchpath")
            hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(job)()
    except KdbenchError:
        raise
    except Exception as error:
        if not came_up_in_hydra(error):
            raise
        from kdbench.compose import explained

        raise explained(error, arguments, config_dir) from None


def job(config: DictConfig) -> dict[str, Any]:
    """One run of the app. In a sweep a failure is said and returned, so that the other jobs go on."""
    say_what_happens()  # again, as listening: launchers may have started a process of their own
    with listening():
        return carried_out(config)


def carried_out(config: DictConfig) -> dict[str, Any]:
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.RUN:
        if hydra_config.runtime.choices.get("hydra/launcher") == "lockstep":
            print("hydra/launcher=lockstep is for sweeps, and needs -m; this is one run", flush=True)
        try:
            return {"status": "complete", "run": str(carry_out(config))}
        except KdbenchError as error:
            sys.exit(refuse(error))  # past Hydra, which would add lines of its own
        except Exception:  # a bug
            traceback.print_exc()
            sys.exit(1)
    from kdbench.sweep import result_of, say_heading

    title = printable(" ".join(hydra_config.overrides.task))
    say_heading(f"job {hydra_config.job.num + 1}: {title}")
    try:
        return result_of(carry_out(config), title)
    except Exception as error:
        return result_of(error, title)


def carry_out(config: DictConfig) -> Path:
    run = parse(config, HydraConfig.get().runtime.choices)
    from kdbench.run import execute  # late: what --help needs must not import torchvision

    return execute(run).path


def given_config_dir(arguments: list[str]) -> Path | None:
    """The value of Hydra's --config-dir, whose model/ folder is offered like the package's own.

    Raises:
        ConfigError: a flag that Hydra does not know.
    """
    parser = get_args_parser()
    vars(parser)["error"] = unknown_flag  # argparse would print its whole usage first
    given = parser.parse_args(arguments)
    for override in given.overrides:
        if override.startswith("~"):
            raise ConfigError(f"{override}: no key of a run can be deleted; give it another value")
    return Path(given.config_dir) if given.config_dir else None


def came_up_in_hydra(error: Exception) -> bool:
    """Whether Hydra raised it while it composed, or something that it called; else it is a bug of ours."""
    packages = [
        frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    return next(p for p in reversed(packages) if p in ("hydra", "omegaconf", "kdbench")) != "kdbench"


def unknown_flag(message: str) -> NoReturn:
    order = "; flags such as -m stand before the first KEY=VALUE" if "=" in message else ""
    raise ConfigError(f"{message}{order}; see kdbench --help and kdbench --hydra-help")


def say_what_happens() -> None:
    """kdbench's own log goes to standard output, errors to standard error."""
    package = logging.getLogger("kdbench")
    package.setLevel(logging.DEBUG)
    package.propagate = False
    handler = logging.StreamHandler(sys.stdout)
    handler.setLevel(logging.INFO)
    handler.setFormatter(Said())
    package.handlers = [handler]
    logging.getLogger("hydra").setLevel(logging.CRITICAL)  # it logs what it also raises, and we say that
