"""Display of long work: a bar on a terminal, log lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from kdbench.data.batches import Batches
from kdbench.system.world import world
from kdbench.train.learner import Learner

log = logging.getLogger(__name__)


def shows_bars() -> bool:
    """Return whether standard error shows bars of this process: a terminal, and TQDM_DISABLE does not forbid them.

    Of several processes that torchrun has started, only the first shows bars.
    """
    return sys.stderr.isatty() and os.environ.get("TQDM_DISABLE", "0") in ("", "0") and world().rank == 0


class TrainingProgress:
    """Progress of epochs: loss, accuracy, images per second and time left.

    Args:
        learners: learners that train together.
        epochs: number of epochs in total.
        batches: training batches.
    """

    def __init__(self, learners: Sequence[Learner], epochs: int, batches: Batches) -> None:
        epoch, step = min(learner.position for learner in learners)
        images = len(batches.dataset.train)
        self.epochs = epochs
        self.several = len(learners) > 1
        self.epochs_before = epoch + step / len(batches)
        self.started = time.monotonic()
        self.bar = tqdm(
            desc=f"{len(learners)} runs in lockstep" if self.several else learners[0].title,
            total=epochs * images,
            initial=round(self.epochs_before * images),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not shows_bars(),
        )
        self.bar.set_postfix_str(f"epoch {epoch + 1}/{epochs}")
        self.val_acc = "val_acc" if batches.dataset.validation else "val_acc (trained on)"

    def add(self, images: int) -> None:
        """Count images that were trained on."""
        self.bar.update(images)

    def show(self, learner: Learner, row: Mapping[str, float]) -> None:
        """Show a finished epoch by its row of metrics.csv."""
        done = learner.epoch
        per_epoch = (time.monotonic() - self.started) / max(done - self.epochs_before, 1e-9)
        time_left = tqdm.format_interval((self.epochs - done) * per_epoch)
        epoch = f"epoch {min(done + 1, self.epochs)}/{self.epochs}"
        alone = "" if self.several else f", loss {row['train_loss']:.3f}, {self.val_acc} {row['val_acc']:.1%}"
        self.bar.set_postfix_str(f"{epoch}{alone}")
        # On a terminal the bar shows it for a single run; the line then goes to train.log only.
        with tqdm.external_write_mode(file=sys.stdout):
            log.log(
                logging.INFO if self.bar.disable or self.several else logging.DEBUG,
                "epoch %d/%d: loss %.4f, train_acc %.2f%%, %s %.2f%%, %.0f images/s, %s left",
                done,
                self.epochs,
                row["train_loss"],
                100 * row["train_acc"],
                self.val_acc,
                100 * row["val_acc"],
                row["images_per_second"],
                time_left,
            )

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


class CacheProgress:
    """Progress of a logit cache: a bar on a terminal, a line at every tenth elsewhere.

    Args:
        title: what is computed.
        total: number of entries.
        done: number of entries from before an interruption.
    """

    def __init__(self, title: str, total: int, done: int) -> None:
        self.total, self.done_before, self.done = total, done, done
        self.started = time.monotonic()
        log.info("%s%s", title, f", continuing at {done / total:.0%}" if done else "")
        self.bar = tqdm(
            desc="logit cache", total=total, initial=done, unit=" views", unit_scale=True, dynamic_ncols=True,
            disable=not shows_bars(), leave=False,
        )  # fmt: skip

    def add(self, views: int) -> None:
        """Count computed entries."""
        tenth = 10 * self.done // self.total
        self.done += views
        self.bar.update(views)
        if self.bar.disable and 10 * self.done // self.total > tenth and self.done < self.total:
            left = tqdm.format_interval((self.total - self.done) / self.speed())
            log.info("logit cache: %.0f%%, %.0f views/s, %s left", 100 * self.done / self.total, self.speed(), left)

    def speed(self) -> float:
        """Return the entries computed per second."""
        return (self.done - self.done_before) / (time.monotonic() - self.started)

    def figures(self) -> dict[str, Any]:
        """Return seconds and views per second, for the record."""
        figures = {"seconds": time.monotonic() - self.started, "views_per_second": self.speed()}
        log.info("logit cache: finished in %.0f s, %.0f views/s", *figures.values())
        return figures

    def __enter__(self) -> "CacheProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
