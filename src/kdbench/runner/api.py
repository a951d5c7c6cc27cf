"""Run one config from Python."""

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.rundir.load import LoadedRun, load_run
from kdbench.runner.policy import run_with_retries


def run(config: RunConfig) -> LoadedRun:
    """Complete a run: skip it if it is finished, resume it if it was started, and train its teacher if needed.

    Args:
        config: from `kdbench.compose`.

    Returns:
        The complete run, as `kdbench.load_run` returns it.

    Raises:
        ConfigError: the config cannot run here.
        RunError: the run failed.
        BusyError: another process holds the run, and `on_busy` is skip.
        Interrupted: Ctrl-C or another signal stopped it; the same call continues it.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"config is {config!r}; it must be what kdbench.compose returns: kdbench.run(kdbench.compose([...]))",
            code="wrong_type",
            key="config",
        )
    (result,) = run_with_retries([config])
    if result.error:
        raise result.error
    assert result.path is not None
    return load_run(result.path)
