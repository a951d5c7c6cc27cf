"""Faults of every kind, at moments drawn from a seed, against real processes; and what must hold after each.

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
from pathlib import Path

from kdbench.verify.findings import FAILS
from kdbench.verify.material import Options
from kdbench.verify.run import verify
from tests.faults.checks import differences, leftovers, results, unreadable
from tests.faults.processes import SMALL, Command, forks

TEACHER = ("method=ce", "student=resnet20", "student.widths=[8,8,16,16]")
SCENARIOS: dict[str, tuple[tuple[str, ...], ...]] = {
    "one run": (("method=ce",),),
    "a run with its teacher": (("method=feature",),),
    "a run that reads a table": (("method=logit", "data.augment=false", "teacher.table=on"),),
    "a sweep": (("-m", "method=ce,logit", "seed=0,1"),),
    "a group in lockstep": (("-m", "hydra/launcher=lockstep", "method=ce,logit,feature"),),
}
"""By name, the commands that are given at the same time."""
WEIGHTS = (6, 4, 4, 1, 1)
"""How often each is drawn: a sweep takes ten times as long as a run."""
RACES: dict[str, tuple[tuple[str, ...], ...]] = {
    "two for one run": (("method=ce",),) * 2,
    "four for one run": (("method=ce",),) * 4,
    "two for one teacher": tuple(("method=feature", f"seed={n}") for n in range(2)),
    "four for one teacher": tuple(("method=feature", f"seed={n}") for n in range(4)),
    "two groups with one teacher": (("-m", "hydra/launcher=lockstep", "method=ce,feature"),) * 2,
    "two for one table": tuple(("data.augment=false", "teacher.table=on", f"seed={n}") for n in range(2)),
    "four for one table": tuple(("data.augment=false", "teacher.table=on", f"seed={n}") for n in range(4)),
}
ASKS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGUSR2: 75, signal.SIGINT: 130}
"""Signals that ask to stop, and the exit code that says so. Before kdbench listens, they end it as they do others."""


@dataclass
class Counts:
    """What the campaign did."""

    faults: Counter[str] = field(default_factory=Counter)
    """By kind. A process that had ended before it could be disturbed counts in none."""
    checks: int = 0
    """Times that everything on disk was read."""
    runs_compared: int = 0
    losses: list[str] = field(default_factory=list)
    """Whatever did not hold, in words."""


class Campaign:
    """Draws faults and sees what becomes of the runs.

    Args:
        root: An empty folder.
        seed: The same one draws the same faults; when they hit is the machine's affair.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.context = forks()
        self.counts = Counts()
        self.expected: dict[tuple[tuple[str, ...], ...], dict] = {}
        self.seconds: dict[tuple[tuple[str, ...], ...], float] = {}
        self.cases = 0
        self.command(root / "first", ("method=ce",)).ended()  # the process that they are forked from takes a while

    def carry_out(self, faults: int, keep: Callable[[Counts], None] = lambda counts: None) -> Counts:
        """Disturb until so many faults have been done, every kind in turn; `keep` is told the counts after each."""
        kinds: list[Callable[[], None]] = [
            self.kills, self.asks, self.damages, self.full_disk, self.kills, self.owner_killed, self.asked_twice,
            self.race, self.read_only, self.kills, self.vanished, self.damages,
        ]  # fmt: skip
        turn = 0
        while sum(self.counts.faults.values()) < faults:
            kinds[turn % len(kinds)]()
            turn += 1
            keep(self.counts)
        return self.counts

    # What happens to processes

    def kills(self) -> None:
        """SIGKILL at a random moment, and again while the next ones try to go on."""
        commands, folder = self.begin()
        for _ in range(self.random.randint(5, 30)):
            self.disturbed(commands, folder, "SIGKILL", lambda command: command.send(signal.SIGKILL), {-9})
        self.end(commands, folder)

    def asks(self) -> None:
        """A signal that asks to stop: obeyed with its exit code, and nothing is computed twice."""
        commands, folder = self.begin()
        stood = ""
        for _ in range(self.random.randint(3, 8)):
            asked, code = self.random.choice(list(ASKS.items()))
            said = self.disturbed(commands, folder, asked.name, lambda c, asked=asked: c.send(asked), {code, -asked})
            if stood and f"resuming from last.ckpt after {stood}\n" not in said and "stopped after" in said:
                self.loss(folder, f"stopped after {stood}, and then:\n{said}")
            where = re.findall(r": stopped after (.*)\n", said)
            stood = where[-1] if where else ""
        self.end(commands, folder)

    def asked_twice(self) -> None:
        """The second Ctrl-C leaves at once."""
        commands, folder = self.begin()

        def twice(command: Command) -> bool:
            there = command.send(signal.SIGINT)
            time.sleep(self.random.uniform(0, 0.02))
            command.send(signal.SIGINT)
            return there

        self.disturbed(commands, folder, "SIGINT twice", twice, {130, -signal.SIGINT})
        self.end(commands, folder)

    def owner_killed(self) -> None:
        """SIGKILL for whoever has a lock: the next one takes it over."""
        commands, folder = self.begin()
        (arguments,) = commands
        command = self.command(folder, arguments)
        locks = folder / "out" / ".locks"
        while command.process.is_alive() and not list(locks.glob("*.lock")):
            time.sleep(0.002)
        time.sleep(self.random.uniform(0, 0.1))
        if command.send(signal.SIGKILL):
            self.counts.faults["owner of a lock killed"] += 1
        command.ended()
        self.look(folder)
        started = time.monotonic()
        self.end(commands, folder)
        if time.monotonic() - started > 10 + 20 * self.seconds[commands]:
            self.loss(folder, "a dead owner's lock was waited for")

    def race(self) -> None:
        """Several processes that want the same: all end well, and what they share was done once."""
        name, commands = self.random.choice(list(RACES.items()))
        _, folder = self.begin(commands)
        started = [self.command(folder, arguments) for arguments in commands]
        self.counts.faults[f"race: {name}"] += 1
        for command in started:
            if code := command.ended():
                self.loss(folder, f"exit code {code} in a race:\n{command.output()}")
        trainings = sum(command.output().count("resnet20 ce seed 0: ") for command in started)
        if trainings != ("teacher" in name or "table" in name):
            self.loss(folder, f"the teacher was trained {trainings} times")
        self.end(commands, folder)

    # What happens to files

    def damages(self) -> None:
        """Bits flipped, files cut short, emptied or replaced, in a run that is half done or done."""
        commands, folder = self.begin()
        if self.random.random() < 0.7:
            self.disturbed(commands, folder, "SIGKILL", lambda command: command.send(signal.SIGKILL), {-9})
        else:
            self.finish(commands, folder)
        for _ in range(self.random.randint(1, 2)):
            files = [file for file in sorted(folder.glob("out/**/*")) if file.is_file()]
            if not files:
                break
            file = self.random.choice(files)
            how = self.random.choice([flip_a_bit, cut_short, emptied, replaced])
            if how(file, self.random):
                kind = "lock" if file.suffix == ".lock" else "record" if ".locks" in file.parts else file.name
                self.counts.faults[f"{how.__name__}: {kind.lstrip('.').split('.json.')[0]}"] += 1
        if self.random.random() < 0.5:  # and the next one is killed while it makes the best of it
            self.disturbed(commands, folder, "SIGKILL", lambda command: command.send(signal.SIGKILL), {-9, 1, 2}, False)
        self.mended(commands, folder)

    def mended(self, commands: tuple[tuple[str, ...], ...], folder: Path) -> None:
        """Give the command; where it refuses, do what its line says: delete the folder that it names."""
        for _ in range(4):
            command = self.command(folder, commands[0])
            code = command.ended()
            if code == 0:
                break
            lines = command.errors()
            named = [path for path in folder.glob("out/runs/*") if any(str(path.name) in line for line in lines)]
            if code not in (1, 2) or not named or "Traceback" in command.output():
                self.loss(folder, f"exit code {code} after damage:\n{command.output()}")
                return
            for path in named:
                shutil.rmtree(path)
        done = results_or_none(folder)
        if done is None or differences(done, self.expected[commands]) or unreadable(folder):
            # What is complete is not read again unless it teaches: the user's own check finds it, and deletes.
            self.verified(folder)
            self.finish(commands, folder)
        self.compare(commands, folder)

    def verified(self, folder: Path) -> None:
        """Have kdbench-verify name what is damaged, and delete that, with the students of a damaged teacher."""
        options = Options(trusted=(), quick=True, data_root=None)
        for path in sorted(folder.glob("out/runs/*")):
            if any(line.verdict == FAILS for line in verify(path, options)):
                shutil.rmtree(path)
        for path in sorted(folder.glob("out/runs/*/summary.json")):
            teacher = json.loads(path.read_text())["teacher_key"]
            if teacher and not list(folder.glob(f"out/runs/*_{teacher}")):
                shutil.rmtree(path.parent)

    def full_disk(self) -> None:
        """No file may grow beyond some size: one clear line, and it goes on when there is room."""
        commands, folder = self.begin()
        command = self.command(folder, commands[0], largest_file=self.random.choice([0, 500, 3000, 20_000, 60_000]))
        code = command.ended()
        self.counts.faults["full disk"] += bool(code)
        self.one_clear_line(command, folder, code)
        self.look(folder)
        self.end(commands, folder)

    def read_only(self) -> None:
        """Nothing may be written: one line, and nothing is."""
        commands, folder = self.begin()
        folder.mkdir(parents=True, exist_ok=True)
        begun = self.random.random() < 0.5
        if begun:
            self.disturbed(commands, folder, "SIGKILL", lambda command: command.send(signal.SIGKILL), {-9})
        for path in (folder, *folder.glob("**/")):
            path.chmod(0o555)
        command = self.command(folder, commands[0], unprivileged=True)
        code = command.ended()
        self.counts.faults["read-only folder"] += bool(code)
        if not results(folder).keys() >= self.expected[commands].keys():
            self.one_clear_line(command, folder, code)
        for path in (folder, *folder.glob("**/")):
            path.chmod(0o755)
        self.end(commands, folder)

    def vanished(self) -> None:
        """The run's folder is deleted while it trains: one line, and the next one begins anew."""
        commands, folder = self.begin()
        command = self.command(folder, commands[0])
        time.sleep(self.random.uniform(0.2, 1.0) * self.seconds[commands])
        for path in folder.glob("out/runs/*"):
            shutil.rmtree(path, ignore_errors=True)
        code = command.ended()
        self.counts.faults["folder vanished"] += bool(code)
        self.one_clear_line(command, folder, code)
        self.end(commands, folder)

    # What every fault has in common

    def begin(self, commands: tuple[tuple[str, ...], ...] = ()) -> tuple[tuple[tuple[str, ...], ...], Path]:
        """Some commands, whose undisturbed results are known, and an empty folder for them."""
        commands = commands or self.random.choices(list(SCENARIOS.values()), WEIGHTS)[0]
        if commands not in self.expected:
            folder = self.root / f"undisturbed{len(self.expected)}"
            started = time.monotonic()
            self.finish(commands, folder)
            self.seconds[commands] = time.monotonic() - started
            self.expected[commands] = results(folder)
        self.cases += 1
        return commands, self.root / f"case{self.cases}"

    def command(self, folder: Path, arguments: tuple[str, ...], **limits) -> Command:
        flags = [argument for argument in arguments if argument.startswith("-")]
        overrides = [argument for argument in arguments if not argument.startswith("-")]
        return Command(self.context, folder, [*flags, *SMALL, *overrides], **limits)

    def disturbed(
        self,
        commands: tuple[tuple[str, ...], ...],
        folder: Path,
        kind: str,
        disturb: Callable[[Command], bool],
        codes: set[int],
        whole: bool = True,
    ) -> str:
        """What the process said, until it was disturbed and after."""
        command = self.command(folder, commands[0])
        # Earlier rather than later: what goes on from a checkpoint has less to do.
        time.sleep(self.random.uniform(0, 1.02) ** 3 * self.seconds[commands])
        hit = disturb(command)
        code = command.ended()
        if hit and code != 0:
            self.counts.faults[kind] += 1
        if code not in codes | {0}:
            self.loss(folder, f"exit code {code} after {kind}:\n{command.output()}")
        if whole:
            self.look(folder)
        return command.output()

    def look(self, folder: Path) -> None:
        self.counts.checks += 1
        for problem in unreadable(folder):
            self.loss(folder, problem)

    def one_clear_line(self, command: Command, folder: Path, code: int) -> None:
        lines = command.errors()
        if code == 0:
            return
        told = bool(lines) if command.is_sweep else len(lines) == 1
        if code not in (1, 2) or not told or "Traceback" in command.output():
            self.loss(folder, f"exit code {code}, {len(lines)} lines of error:\n{command.output()}")

    def finish(self, commands: tuple[tuple[str, ...], ...], folder: Path) -> None:
        for arguments in commands:
            command = self.command(folder, arguments)
            if code := command.ended():
                self.loss(folder, f"exit code {code} undisturbed:\n{command.output()}")

    def end(self, commands: tuple[tuple[str, ...], ...], folder: Path) -> None:
        self.finish(commands, folder)
        self.compare(commands, folder)

    def compare(self, commands: tuple[tuple[str, ...], ...], folder: Path) -> None:
        self.look(folder)
        done = results(folder)
        self.counts.runs_compared += len(done)
        for problem in [*differences(done, self.expected[commands]), *leftovers(folder)]:
            self.loss(folder, problem)
        shutil.rmtree(folder)

    def loss(self, folder: Path, what: str) -> None:
        self.counts.losses.append(f"{folder.name}: {what}")


def results_or_none(folder: Path) -> dict | None:
    try:
        return results(folder)
    except Exception:  # damaged bytes can raise anything
        return None


def flip_a_bit(file: Path, random: random.Random) -> bool:
    content = bytearray(file.read_bytes())
    if not content:
        return False
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)
    return True


def cut_short(file: Path, random: random.Random) -> bool:
    content = file.read_bytes()
    if not content:
        return False
    file.write_bytes(content[: random.randrange(len(content))])
    return True


def emptied(file: Path, random: random.Random) -> bool:
    file.write_bytes(b"")
    return True


def replaced(file: Path, random: random.Random) -> bool:
    file.write_bytes(random.randbytes(1000))
    return True
