"""Faults of every kind against real processes, at random moments, and the checks that follow each.

KDBENCH_FAULTS=1000 pytest -m slow tests/faults        all of them; `make faults` does it and keeps the counts
"""

import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kdbench.verify.artifacts import Options
from kdbench.verify.checks import FAIL
from kdbench.verify.verify import verify
from tests.faults.checks import Result, differences, leftovers, results, unreadable
from tests.faults.processes import SMALL, Command, fork_server

Commands = tuple[tuple[str, ...], ...]
"""Command lines that are given at the same time."""
SCENARIOS: dict[str, Commands] = {
    "one run": (("method=ce",),),
    "a run with its teacher": (("method=feature",),),
    "a run that reads a logit cache": (("method=logit", "data.augment=false", "teacher.cache=on"),),
    "a sweep": (("-m", "method=ce,logit", "seed=0,1"),),
    "a lockstep group": (("-m", "hydra/launcher=lockstep", "method=ce,logit,feature"),),
}
WEIGHTS = (6, 4, 4, 1, 1)
"""Frequencies of the scenarios: a sweep takes ten times as long as a run."""
RACES: dict[str, Commands] = {
    "two for one run": (("method=ce",),) * 2,
    "four for one run": (("method=ce",),) * 4,
    "two for one teacher": tuple(("method=feature", f"seed={n}") for n in range(2)),
    "four for one teacher": tuple(("method=feature", f"seed={n}") for n in range(4)),
    "two groups with one teacher": (("-m", "hydra/launcher=lockstep", "method=ce,feature"),) * 2,
    "two for one cache": tuple(("data.augment=false", "teacher.cache=on", f"seed={n}") for n in range(2)),
    "four for one cache": tuple(("data.augment=false", "teacher.cache=on", f"seed={n}") for n in range(4)),
}
STOPS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGUSR2: 75, signal.SIGINT: 130}
"""Signals that request a stop, with their exit codes. Before kdbench handles them, they end the process as usual."""


@dataclass
class Counts:
    """Counts of the campaign."""

    faults: Counter[str] = field(default_factory=Counter)
    """By kind. A process that had ended before the fault counts in none."""
    checks: int = 0
    """How many times every file was read."""
    runs_compared: int = 0
    losses: list[str] = field(default_factory=list)
    """Descriptions of whatever did not hold."""


class Campaign:
    """Draws faults, causes them, and compares the runs with undisturbed ones.

    Args:
        root: empty folder.
        seed: seed of the faults; the moments at which they happen depend on the machine.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.context = fork_server()
        self.counts = Counts()
        self.expected: dict[Commands, dict[str, Result]] = {}
        self.seconds: dict[Commands, float] = {}
        self.cases = 0
        self.command(root / "first", ("method=ce",)).exit_code()  # the process that they are forked from takes a while

    def run(self, faults: int, keep: Callable[[Counts], None] = lambda counts: None) -> Counts:
        """Cause faults, each kind in turn.

        Args:
            faults: number of faults.
            keep: called with the counts after each.
        """
        kinds: list[Callable[[], None]] = [
            self.kill, self.request_stops, self.damage, self.fill_disk, self.kill, self.kill_lock_owner,
            self.interrupt_twice, self.race, self.make_read_only, self.kill, self.delete_folder, self.damage,
        ]  # fmt: skip
        turn = 0
        while sum(self.counts.faults.values()) < faults:
            kinds[turn % len(kinds)]()
            turn += 1
            keep(self.counts)
        return self.counts

    # Faults of processes

    def kill(self) -> None:
        """Send SIGKILL at a random moment, and again to the processes that continue."""
        commands, folder = self.begin()
        for _ in range(self.random.randint(5, 30)):
            self.kill_once(commands, folder)
        self.end(commands, folder)

    def kill_once(self, commands: Commands, folder: Path, codes: frozenset[int] = frozenset()) -> None:
        """Send SIGKILL at a random moment.

        Args:
            commands: the first of them is given.
            folder: working directory.
            codes: exit codes that are allowed besides, where files were damaged before.
        """
        self.disturb(commands, folder, "SIGKILL", partial(Command.send, number=signal.SIGKILL), {-9, *codes}, not codes)

    def request_stops(self) -> None:
        """Send signals that request a stop: each is obeyed with its exit code, and no step is computed twice."""
        commands, folder = self.begin()
        position = ""
        for _ in range(self.random.randint(3, 8)):
            number, code = self.random.choice(list(STOPS.items()))
            output = self.disturb(commands, folder, number.name, partial(Command.send, number=number), {code, -number})
            if position and f"resuming from last.ckpt after {position}\n" not in output and "stopped after" in output:
                self.lose(folder, f"stopped after {position}, and then:\n{output}")
            found = re.findall(r": stopped after (.*)\n", output)
            position = found[-1] if found else ""
        self.end(commands, folder)

    def interrupt_twice(self) -> None:
        """Send SIGINT twice: the second one ends the process at once."""
        commands, folder = self.begin()

        def send(command: Command) -> bool:
            running = command.send(signal.SIGINT)
            time.sleep(self.random.uniform(0, 0.02))
            command.send(signal.SIGINT)
            return running

        self.disturb(commands, folder, "SIGINT twice", send, {130, -signal.SIGINT})
        self.end(commands, folder)

    def kill_lock_owner(self) -> None:
        """Send SIGKILL to a process that holds a lock: the next one takes the lock over."""
        commands, folder = self.begin()
        (arguments,) = commands
        command = self.command(folder, arguments)
        locks = folder / "out" / ".locks"
        while command.process.is_alive() and not list(locks.glob("*.lock")):
            time.sleep(0.002)
        time.sleep(self.random.uniform(0, 0.1))
        if command.send(signal.SIGKILL):
            self.counts.faults["owner of a lock killed"] += 1
        command.exit_code()
        self.check_files(folder)
        started = time.monotonic()
        self.end(commands, folder)
        if time.monotonic() - started > 10 + 20 * self.seconds[commands]:
            self.lose(folder, "the lock of a dead process was waited for")

    def race(self) -> None:
        """Start several processes for the same: all succeed, and what they share is computed once."""
        name, commands = self.random.choice(list(RACES.items()))
        _, folder = self.begin(commands)
        started = [self.command(folder, arguments) for arguments in commands]
        self.counts.faults[f"race: {name}"] += 1
        for command in started:
            if code := command.exit_code():
                self.lose(folder, f"exit code {code} in a race:\n{command.output()}")
        trainings = sum(command.output().count("resnet20 ce seed 0: ") for command in started)
        if trainings != ("teacher" in name or "cache" in name):
            self.lose(folder, f"the teacher was trained {trainings} times")
        self.end(commands, folder)

    # Faults of files

    def damage(self) -> None:
        """Flip bits in files of a run that is unfinished or complete, or cut, empty or replace them."""
        commands, folder = self.begin()
        if self.random.random() < 0.7:
            self.kill_once(commands, folder)
        else:
            self.finish(commands, folder)
        for _ in range(self.random.randint(1, 2)):
            files = [file for file in sorted(folder.glob("out/**/*")) if file.is_file()]
            if not files:
                break
            file = self.random.choice(files)
            name, change = self.random.choice(list(DAMAGES.items()))
            if change(file, self.random):
                kind = "lock" if file.suffix == ".lock" else "record" if ".locks" in file.parts else file.name
                self.counts.faults[f"{name}: {kind.lstrip('.').split('.json.')[0]}"] += 1
        if self.random.random() < 0.5:  # the process that finds the damage is killed, too
            self.kill_once(commands, folder, frozenset({1, 2}))
        self.repair(commands, folder)

    def repair(self, commands: Commands, folder: Path) -> None:
        """Give the command again; where it is refused, delete the folder that its line names."""
        for _ in range(4):
            command = self.command(folder, commands[0])
            code = command.exit_code()
            if code == 0:
                break
            lines = command.errors()
            named = [path for path in folder.glob("out/runs/*") if any(path.name in line for line in lines)]
            if code not in (1, 2) or not named or "Traceback" in command.output():
                self.lose(folder, f"exit code {code} after damage:\n{command.output()}")
                return
            for path in named:
                shutil.rmtree(path)
        done = results_or_none(folder)
        if done is None or differences(done, self.expected[commands]) or unreadable(folder):
            # A complete run is read again only as a teacher: kdbench-verify finds the damage for the user.
            self.delete_refuted(folder)
            self.finish(commands, folder)
        self.compare(commands, folder)

    def delete_refuted(self, folder: Path) -> None:
        """Delete the runs that kdbench-verify refutes, and the students of a deleted teacher."""
        options = Options(quick=True)
        for path in sorted(folder.glob("out/runs/*")):
            if any(line.verdict == FAIL for line in verify(path, options)):
                shutil.rmtree(path)
        for path in sorted(folder.glob("out/runs/*/summary.json")):
            teacher = json.loads(path.read_text())["teacher_key"]
            if teacher and not list(folder.glob(f"out/runs/*_{teacher}")):
                shutil.rmtree(path.parent)

    def fill_disk(self) -> None:
        """Limit the size of files: one clear line, and the next command continues without the limit."""
        commands, folder = self.begin()
        command = self.command(folder, commands[0], largest_file=self.random.choice([0, 500, 3000, 20_000, 60_000]))
        code = command.exit_code()
        self.counts.faults["full disk"] += bool(code)
        self.check_error_line(command, folder, code)
        self.check_files(folder)
        self.end(commands, folder)

    def make_read_only(self) -> None:
        """Take the right to write: one line, and nothing is written."""
        commands, folder = self.begin()
        folder.mkdir(parents=True, exist_ok=True)
        if self.random.random() < 0.5:
            self.kill_once(commands, folder)
        for path in (folder, *folder.glob("**/")):
            path.chmod(0o555)
        command = self.command(folder, commands[0], unprivileged=True)
        code = command.exit_code()
        self.counts.faults["read-only folder"] += bool(code)
        if not results(folder).keys() >= self.expected[commands].keys():
            self.check_error_line(command, folder, code)
        for path in (folder, *folder.glob("**/")):
            path.chmod(0o755)
        self.end(commands, folder)

    def delete_folder(self) -> None:
        """Delete the run's folder while it trains: one line, and the next command starts over."""
        commands, folder = self.begin()
        command = self.command(folder, commands[0])
        time.sleep(self.random.uniform(0.2, 1.0) * self.seconds[commands])
        for path in folder.glob("out/runs/*"):
            shutil.rmtree(path, ignore_errors=True)
        code = command.exit_code()
        self.counts.faults["folder vanished"] += bool(code)
        self.check_error_line(command, folder, code)
        self.end(commands, folder)

    # Common to all faults

    def begin(self, commands: Commands = ()) -> tuple[Commands, Path]:
        """Return commands whose undisturbed results are known, drawn if none are given, and an empty folder."""
        commands = commands or self.random.choices(list(SCENARIOS.values()), WEIGHTS)[0]
        if commands not in self.expected:
            folder = self.root / f"undisturbed{len(self.expected)}"
            started = time.monotonic()
            self.finish(commands, folder)
            self.seconds[commands] = time.monotonic() - started
            self.expected[commands] = results(folder)
        self.cases += 1
        return commands, self.root / f"case{self.cases}"

    def command(self, folder: Path, arguments: tuple[str, ...], **limits: Any) -> Command:
        """Start a command in a folder."""
        flags = [argument for argument in arguments if argument.startswith("-")]
        overrides = [argument for argument in arguments if not argument.startswith("-")]
        return Command(self.context, folder, [*flags, *SMALL, *overrides], **limits)

    def disturb(
        self,
        commands: Commands,
        folder: Path,
        kind: str,
        act: Callable[[Command], bool],
        codes: set[int],
        whole: bool = True,
    ) -> str:
        """Start a command, act at a random moment, check how it ends, and return its output.

        Args:
            commands: the first of them is given.
            folder: working directory.
            kind: name of the fault.
            act: causes the fault, and returns whether the process was still running.
            codes: exit codes that are allowed, besides 0.
            whole: whether every file must be readable afterwards.
        """
        command = self.command(folder, commands[0])
        # Early rather than late: a resumed run has less to do.
        time.sleep(self.random.uniform(0, 1.02) ** 3 * self.seconds[commands])
        hit = act(command)
        code = command.exit_code()
        if hit and code != 0:
            self.counts.faults[kind] += 1
        if code not in codes | {0}:
            self.lose(folder, f"exit code {code} after {kind}:\n{command.output()}")
        if whole:
            self.check_files(folder)
        return command.output()

    def check_files(self, folder: Path) -> None:
        """Check that every file can be read."""
        self.counts.checks += 1
        for problem in unreadable(folder):
            self.lose(folder, problem)

    def check_error_line(self, command: Command, folder: Path, code: int) -> None:
        """Check that a failed command reported its error in one line, and a failed sweep in one per job."""
        lines = command.errors()
        if code == 0:
            return
        reported = bool(lines) if command.is_sweep else len(lines) == 1
        if code not in (1, 2) or not reported or "Traceback" in command.output():
            self.lose(folder, f"exit code {code}, {len(lines)} lines of error:\n{command.output()}")

    def finish(self, commands: Commands, folder: Path) -> None:
        """Give the commands, one after the other, without any fault."""
        for arguments in commands:
            command = self.command(folder, arguments)
            if code := command.exit_code():
                self.lose(folder, f"exit code {code} undisturbed:\n{command.output()}")

    def end(self, commands: Commands, folder: Path) -> None:
        """Finish the runs and compare them."""
        self.finish(commands, folder)
        self.compare(commands, folder)

    def compare(self, commands: Commands, folder: Path) -> None:
        """Compare finished runs with undisturbed ones, and delete them."""
        self.check_files(folder)
        done = results(folder)
        self.counts.runs_compared += len(done)
        for problem in [*differences(done, self.expected[commands]), *leftovers(folder)]:
            self.lose(folder, problem)
        shutil.rmtree(folder)

    def lose(self, folder: Path, description: str) -> None:
        """Record something that did not hold."""
        self.counts.losses.append(f"{folder.name}: {description}")


def results_or_none(folder: Path) -> dict[str, Result] | None:
    """Return the results of a folder, or None where they cannot be read."""
    try:
        return results(folder)
    except Exception:  # damaged bytes can raise anything
        return None


def flip_a_bit(file: Path, random: random.Random) -> bool:
    """Flip a bit of a file; return whether it has one."""
    content = bytearray(file.read_bytes())
    if not content:
        return False
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)
    return True


def cut(file: Path, random: random.Random) -> bool:
    """Cut a file short; return whether there is something to cut."""
    content = file.read_bytes()
    if not content:
        return False
    file.write_bytes(content[: random.randrange(len(content))])
    return True


def empty(file: Path, random: random.Random) -> bool:
    """Empty a file; return true."""
    file.write_bytes(b"")
    return True


def replace(file: Path, random: random.Random) -> bool:
    """Replace a file by random bytes; return true."""
    file.write_bytes(random.randbytes(1000))
    return True


DAMAGES = {"flip_a_bit": flip_a_bit, "cut_short": cut, "emptied": empty, "replaced": replace}
"""Kinds of damage, by their names in the counts."""
