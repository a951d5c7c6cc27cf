"""The processes of one command as torchrun starts them, forked from one that has imported everything already."""

from collections.abc import Callable
from pathlib import Path

from torch.distributed import TCPStore

from kdbench import cli
from tests.faults.processes import Command, fork_server

SECONDS = 300.0
"""Limit of time of a command that takes seconds, on a machine that does other things too."""


class Ranks:
    """One call of `kdbench` in several processes, which communicate through a store of this process.

    Args:
        folder: working directory.
        size: number of processes.
        arguments: arguments of the command line.
        program: another program than `kdbench`.
    """

    def __init__(self, folder: Path, size: int, *arguments: str, program: Callable[[], object] = cli.main) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        variables = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        self.commands = [
            Command(
                fork_server(), folder, arguments, program=program,
                environment=variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(size)
        ]  # fmt: skip

    def finish(self, seconds: float = SECONDS) -> list[int]:
        """Wait for the end of all processes, and return their exit codes."""
        try:
            return [command.exit_code(seconds) for command in self.commands]
        finally:
            for command in self.commands:
                if command.process.is_alive():
                    command.process.kill()

    def output(self, rank: int = 0) -> str:
        """Return the output of a process that has ended."""
        return self.commands[rank].output()
