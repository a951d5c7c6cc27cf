"""Run one config from Python."""

from kdbench.config import RunConfig
from kdbench.config.composition import ONE_AT_A_TIME, is_as_composed
from kdbench.errors import ConfigError
from kdbench.rundir.load import LoadedRun, load_run
from kdbench.runner.policy import run_with_retries


def run(config: RunConfig) -> LoadedRun:
    """Complete a run: skip it if it is finished, resume it if it was started, and train its teacher if needed.

    Args:
        config: from `kdbench.compose`, unchanged.

    Returns:
        The complete run, as `kdbench.load_run` returns it.

    Raises:
        ConfigError: the config cannot run here.
        RunError: the run failed.
        BusyError: another process holds the run, and `on_busy` is skip.
        Interrupted: Ctrl-C or another signal stopped it; the same call continues it.

    Threads wait for each other: torch's random numbers and settings, and Hydra, belong to the whole process.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"config is {config!r}; it must be what kdbench.compose returns: kdbench.run(kdbench.compose([...]))",
            code="wrong_type",
            key="config",
        )
    if not is_as_composed(config):
        raise ConfigError(
            "config was changed after kdbench.compose had checked it; compose it with the change instead, for example "
            "kdbench.compose([..., 'seed=5'])",
            code="mismatch",
            key="config",
        )
    with ONE_AT_A_TIME:
        (result,) = run_with_retries([config])
    if result.error:
        raise result.error
    assert result.path is not None
    return load_run(result.path)
