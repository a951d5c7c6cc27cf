"""Trackers of a user: one that works, and one for each way in which one can fail."""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kdbench.config.schema import setting
from kdbench.trackers import Tracker


class Lines(Tracker):
    """File with lines of JSON; each run has one."""

    @dataclass
    class Config(Tracker.Config):
        folder: str = setting()

    def start(self, run):
        self.file = Path(self.config.folder, f"{run.key}.jsonl")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.write(started=run.name, group=run.group, settings=run.settings())
        return {line["epoch"] for line in map(json.loads, self.file.open()) if "epoch" in line}

    def log(self, epoch, values):
        self.write(epoch=epoch, **values)

    def finish(self, status, summary, error):
        self.write(status=status, error=error, **summary)

    def write(self, **content):
        with self.file.open("a") as file:
            file.write(json.dumps(content) + "\n")


class Faulty(Lines):
    """Tracker that fails in `config.at` (start, log or finish) in the way `config.how`."""

    @dataclass
    class Config(Lines.Config):
        at: str = setting()
        how: str = setting()

    def fail(self, at):
        if at != self.config.at:
            return
        if self.config.how == "raise":
            raise RuntimeError("out of\nink")
        if self.config.how == "import":
            import no_such_module  # noqa: F401
        if self.config.how == "exit":
            sys.exit(3)
        if self.config.how == "die":
            os._exit(9)
        if self.config.how == "print":
            print("{not json" * 100_000)
            print("text" * 100_000, file=sys.stderr)
        if self.config.how == "full":
            Path("/dev/full").write_text("text")
        if self.config.how == "hang":
            time.sleep(3600)

    def start(self, run):
        self.fail("start")
        return super().start(run)

    def log(self, epoch, values):
        self.fail("log")
        super().log(epoch, values)

    def finish(self, status, summary, error):
        self.fail("finish")
        super().finish(status, summary, error)


class WithoutMethods(Tracker):
    """Class without the methods of a tracker."""


class WithoutKeys(Lines):
    """Tracker whose keys are no dataclass."""

    class Config:
        pass


class NotInstalled(Lines):
    """Tracker that needs a package that does not exist."""

    package = "no_such_package"
    extra = ""
