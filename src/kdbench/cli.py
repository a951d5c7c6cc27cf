"""Entry points of the console commands, and their exit codes.

0: done. 1: a run failed. 2: the config cannot run, and nothing was written. 75: stopped by a signal, or skipped for
another process; the same command continues. 130: stopped by Ctrl-C; the same command continues. 141: nobody reads the
output any more. `kdbench-study` also has 3: the time given is over, and there is more to do.

Nothing heavy is imported at the top: `--help` and `--version` answer without torch.
"""

import argparse
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import hydra.version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdbench.config.composition import with_networks_of_pair
from kdbench.config.composition_errors import composition_error
from kdbench.config.engines import check_engines, check_single
from kdbench.config.help import help_text, versions
from kdbench.config.options import initialize_hydra, register_models_once
from kdbench.config.parse import parse
from kdbench.config.paths import CONF_DIR
from kdbench.errors import ConfigError, KdbenchError, printable, report_error
from kdbench.rundir.access import denied_error, is_denied
from kdbench.sweep.overrides import defer_keys, starts_sweep
from kdbench.system import signals
from kdbench.system.cpu import configure_openmp
from kdbench.system.logs import log_to_console, silence_stdout
from kdbench.system.torchrun import starts_several

log = logging.getLogger(__name__)

CONTINUES = "; the same command continues"
WITHOUT_FOLDERS = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.run.dir=.", "hydra.output_subdir=null")
"""Settings of conf/config.yaml by which Hydra writes no files of its own, for a config that is read in its place."""


def main() -> NoReturn:
    """Run `kdbench`: one run, or a sweep with -m."""
    arguments = sys.argv[1:]
    try:
        start_with_others()
        if "--version" in arguments:
            print(versions())
        elif "--help" in arguments or "-h" in arguments:
            print(help_text(arguments))
        else:
            parser, given = prepare_hydra(arguments)
            if given.info:
                logging.getLogger("hydra").setLevel(logging.NOTSET)  # Hydra prints the information as log lines
            hydra.version.setbase("1.3")
            _run_hydra(given, parser, run_job, str(CONF_DIR), "config")  # as hydra.main, which reads sys.argv again
    except BaseException as error:
        finish(exit_code(hydra_error(error), "kdbench", CONTINUES))
    finish(0)


def run_job(config: DictConfig) -> Any:
    """Complete one run. In a sweep an error is printed and returned, so that the other runs continue."""
    start()  # again: launchers may have started a process of their own
    hydra_config = HydraConfig.get()
    if hydra_config.job.chdir:
        os.chdir(hydra_config.runtime.cwd)  # back to where the paths of the command line start
    single = hydra_config.mode == RunMode.RUN
    launcher = hydra_config.runtime.choices.get("hydra/launcher", "basic")
    if single:
        try:
            check_single(hydra_config.runtime.choices)
        except ConfigError as error:
            sys.exit(exit_code(error, "kdbench"))
    if single and launcher != "basic":
        log.info("hydra/launcher=%s is for sweeps with -m; this is one run, in this process", launcher)
    from kdbench.report.command import report_runs
    from kdbench.rundir.files import check_writable
    from kdbench.runner.images import read_test_images
    from kdbench.runner.policy import run_with_retries  # here, since it imports torch

    if single:
        try:
            run = parse(config, hydra_config.runtime.choices)
            if run.report is not None:
                check_writable(Path(run.report), "report")
            (result,) = run_with_retries([run])
            if result.error:
                raise result.error
            if run.report is not None and result.path is not None:
                report_runs([result.path], run.report, read_test_images)
        except Exception as error:
            sys.exit(exit_code(error, "kdbench", CONTINUES))  # past Hydra, which would print lines of its own
        return {"status": result.status, "run": str(result.path)}
    from kdbench.sweep.execute import run_single

    given = [override for override in hydra_config.overrides.task if not override.startswith("++trial=")]
    overrides = printable(" ".join(given))
    try:
        return run_single(hydra_config.job.num, overrides, lambda: parse(config, hydra_config.runtime.choices))
    except signals.Interrupted as stop:
        signals.pass_on(stop)  # a launcher may have started this process with handlers of its own
        raise


def main_bench() -> NoReturn:
    """Run `kdbench-bench`."""
    try:
        start_alone("kdbench-bench")
        from kdbench.bench.command import bench

        bench(sys.argv[1:])
        finish(0)
    except BaseException as error:
        finish(exit_code(error, "kdbench-bench", "; what was measured is printed above and in the JSON file"))


def main_study() -> NoReturn:
    """Run `kdbench-study`."""
    try:
        start_with_others()
        from kdbench.study.command import study

        finish(study(sys.argv[1:]))
    except BaseException as error:
        finish(exit_code(error, "kdbench-study"))


def main_report() -> NoReturn:
    """Run `kdbench-report`. Its exit code is 1 also where a damaged summary was left out."""
    try:
        start_alone("kdbench-report")
        from kdbench.report.command import report
        from kdbench.runner.images import read_test_images

        finish(report(sys.argv[1:], read_test_images))
    except BaseException as error:
        finish(exit_code(error, "kdbench-report"))


def main_compare() -> NoReturn:
    """Run `kdbench-compare`. Exit codes: 0 done; 2 the runs cannot be compared."""
    try:
        start_alone("kdbench-compare")
        from kdbench.compare.command import compare

        compare(sys.argv[1:])
        finish(0)
    except BaseException as error:
        finish(exit_code(error, "kdbench-compare"))


def main_compress() -> NoReturn:
    """Run `kdbench-compress`. Exit codes: 0 done; 1 a step failed; 2 the command line is wrong."""
    try:
        start_with_others()
        from kdbench.pipeline.compress import compress

        finish(compress(sys.argv[1:]))
    except BaseException as error:
        finish(exit_code(error, "kdbench-compress", CONTINUES))


def main_export() -> NoReturn:
    """Run `kdbench-export`. Exit codes: 0 written; 2 nothing was written."""
    try:
        start_alone("kdbench-export")
        from kdbench.pipeline.export import export

        export(sys.argv[1:])
        finish(0)
    except BaseException as error:
        finish(exit_code(error, "kdbench-export"))


def main_measure() -> NoReturn:
    """Run `kdbench-measure`. Exit codes: 0 done; 2 a network cannot be measured."""
    try:
        start_alone("kdbench-measure")
        from kdbench.pipeline.measure import measure

        finish(measure(sys.argv[1:]))
    except BaseException as error:
        finish(exit_code(error, "kdbench-measure", "; the same command starts the measurement again"))


def main_verify() -> NoReturn:
    """Run `kdbench-verify`. Exit codes: 0 every check passed; 1 a check failed; 2 nothing could be checked."""
    try:
        start_alone("kdbench-verify")
        from kdbench.verify.command import verify_runs

        finish(verify_runs(sys.argv[1:]))
    except BaseException as error:
        finish(exit_code(error, "kdbench-verify"))


def start() -> None:
    """Set up the process: threads, signals and the console. May be called again."""
    configure_openmp()
    signals.install()
    log_to_console()


def start_alone(program: str) -> None:
    """Set up the process of a command that trains no run.

    Raises:
        ConfigError: torchrun has started it; only the first of its processes says so.
    """
    start()
    if starts_several():
        if os.environ["RANK"] != "0":
            sys.exit(0)
        raise ConfigError(f"{program} runs in one process; start it without torchrun", code="usage")


def start_with_others() -> None:
    """Set up the process; of several that torchrun has started, all but the first execute tasks of the first.

    Raises:
        ConfigError: a variable of torchrun has no number.
        RunError: the processes cannot reach each other.
    """
    start()
    if starts_several():
        from kdbench.system.world import start_world

        signals.expect_repeats()
        world = start_world()
        if world.rank:
            from kdbench.runner.parallel import execute_tasks

            execute_tasks()
        world.connect()  # before any work: the others give up after `STEP_TIMEOUT`


def exit_code(error: BaseException, program: str, afterwards: str = "") -> int:
    """Print the line for an error that ends a command, and return the exit code. A bug is printed with its traceback.

    Args:
        error: the error.
        program: name of the command.
        afterwards: text after the line on a requested stop.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, BrokenPipeError):  # `... | head`
        silence_stdout()
        return signals.PIPE_CLOSED
    error = signals.interruption() or error
    if isinstance(error, OSError) and is_denied(error) and error.filename:
        error = denied_error(error)
    if isinstance(error, KdbenchError):
        return report_error(error, program=program)
    if isinstance(error, signals.Interrupted):
        if error.exit_code not in (signals.TIME_IS_UP, signals.PIPE_CLOSED):  # the study that set the alarm reports it
            print(f"{program}: stopped by {error}{afterwards}", file=sys.stderr)
        return error.exit_code
    traceback.print_exception(error)
    return 1


def finish(code: int) -> NoReturn:
    """End the process and the others of torchrun; output to a closed pipe is dropped."""
    if starts_several():
        from kdbench.system.world import end_world

        end_world()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        code = code or signals.PIPE_CLOSED
    signals.uninstall()
    sys.exit(code)


def prepare_hydra(arguments: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Check what Hydra would misreport, and offer the models as student= and teacher=.

    Returns:
        Hydra's parser, and the arguments for Hydra.

    Raises:
        ConfigError: an unknown flag, a folder that is not there, a key to delete, or a seed without effect.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints its errors itself, in several lines
    warnings.filterwarnings("error", "provider=hydra.searchpath")  # a folder that is not there, and then the run starts
    parser = get_args_parser()
    vars(parser)["error"] = report_usage  # argparse would print its whole usage first
    given = parser.parse_args(arguments)
    for override in given.overrides:
        if override.startswith("~"):
            raise ConfigError(
                f"{override}: keys of a run cannot be deleted; give another value", code="usage", key=override[1:]
            )
    check_engines(given.overrides)
    if given.experimental_rerun:
        raise ConfigError(
            "--experimental-rerun: runs keep no file for it; give the same command again",
            code="usage",
            key="--experimental-rerun",
        )
    if given.config_path is not None:
        prepare_whole_config(given)
    config_dir = Path(given.config_dir) if given.config_dir else None
    register_models_once(config_dir)
    prints = given.cfg or given.info or given.shell_completion
    if not prints and (given.multirun or starts_sweep(given.overrides, config_dir)):
        given.multirun = True  # Hydra 1.4 reads hydra.mode from no experiment
        given.overrides = defer_keys(given.overrides)
    else:
        with initialize_hydra(config_dir) as loader:
            given.overrides = with_networks_of_pair(given.overrides, loader)
    return parser, given


def prepare_whole_config(given: argparse.Namespace) -> None:
    """Make arguments fit for a config in the place of conf/config.yaml, such as the one that a run has recorded.

    Args:
        given: arguments with --config-path, the config's folder; a relative one begins at the working directory.

    Raises:
        ConfigError: the folder is not there, or `seed` has no effect on the config.
    """
    folder = Path(given.config_path).absolute()  # Hydra would look for a relative one inside the package
    if not folder.is_dir():
        raise ConfigError(f"--config-path: the folder {folder} was not found", code="not_found", key="--config-path")
    given.config_path = str(folder)
    values = dict(override.lstrip("+").partition("=")[::2] for override in given.overrides)
    given.overrides = [o for o in WITHOUT_FOLDERS if o.partition("=")[0] not in values] + given.overrides
    if "seed" in values and not {"init_seed", "data_seed"} & values.keys():
        check_seed_has_effect(values["seed"], folder / f"{(given.config_name or 'config').removesuffix('.yaml')}.yaml")


def check_seed_has_effect(seed: str, file: Path) -> None:
    """Check that a config file leaves its seeds to `seed`.

    Raises:
        ConfigError: it gives both of them as numbers.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        seeds = [content["init_seed"], content["data_seed"]]
    except Exception:  # whatever is wrong with the file, Hydra reports it
        return
    if all(isinstance(own, int) for own in seeds):
        raise ConfigError(
            f"seed={seed} has no effect on {file}, which gives init_seed={seeds[0]} and data_seed={seeds[1]}; give "
            "these two instead",
            code="usage",
            key="seed",
        )


def report_usage(message: str) -> NoReturn:
    """Raise an error for a flag that Hydra does not know."""
    order = "; flags such as -m stand before the first KEY=VALUE" if "=" in message else ""
    raise ConfigError(f"{message}{order}; see kdbench --help and kdbench --hydra-help", code="usage")


def hydra_error(error: BaseException) -> BaseException:
    """Return an error that Hydra raised while it composed as one for the user; any other as it is."""
    if isinstance(error, KdbenchError | BrokenPipeError) or not isinstance(error, Exception):
        return error
    frames = [frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)]
    origin = next((name for name in reversed(frames) if name in ("hydra", "omegaconf", "kdbench")), "kdbench")
    if origin == "kdbench":
        return error
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    return composition_error(error, given.overrides, Path(given.config_dir) if given.config_dir else None)
