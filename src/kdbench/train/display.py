"""What a person sees of long work: a bar on a terminal, lines elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)


class Display:
    """Shows epochs with loss, accuracy, images per second and time left.

    Args:
        title: What is being trained.
        epochs: In total.
        images_per_epoch: Training images.
        epochs_done: Before a resume.
        runs: That train together.
    """

    def __init__(self, title: str, epochs: int, images_per_epoch: int, epochs_done: float = 0, runs: int = 1) -> None:
        self.epochs = epochs
        self.runs = runs
        self.bar = tqdm(
            desc=title,
            total=epochs * images_per_epoch,
            initial=round(epochs_done * images_per_epoch),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self.bar.set_postfix_str(f"epoch {int(epochs_done) + 1}/{epochs}")
        self.begun, self.epochs_before = time.monotonic(), epochs_done

    def add(self, images: int) -> None:
        """So many were trained on."""
        self.bar.update(images)

    def epoch_done(self, row: Mapping[str, float]) -> None:
        done = int(row["epoch"])
        per_epoch = (time.monotonic() - self.begun) / max(done - self.epochs_before, 1e-9)
        time_left = tqdm.format_interval((self.epochs - done) * per_epoch)
        epoch = f"epoch {min(done + 1, self.epochs)}/{self.epochs}"
        alone = f", loss {row['train_loss']:.3f}, val_acc {row['val_acc']:.1%}" if self.runs == 1 else ""
        self.bar.set_postfix_str(f"{epoch}{alone}")
        # On a terminal the bar says it of a run alone; the line then goes to train.log alone.
        with tqdm.external_write_mode(file=sys.stdout):
            log.log(
                logging.INFO if self.bar.disable or self.runs > 1 else logging.DEBUG,
                "epoch %d/%d: loss %.4f, train_acc %.2f%%, val_acc %.2f%%, %.0f images/s, %s left",
                done,
                self.epochs,
                row["train_loss"],
                100 * row["train_acc"],
                100 * row["val_acc"],
                row["images_per_second"],
                time_left,
            )

    def close(self) -> None:
        self.bar.close()


class TableProgress:
    """How far a teacher's table is: a bar on a terminal, a line at every tenth elsewhere."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.total, self.begun_at, self.done = total, done, done
        self.started = time.monotonic()
        log.info("%s%s", title, f", going on after {done / total:.0%}" if done else "")
        self.bar = tqdm(
            desc="table", total=total, initial=done, unit=" views", unit_scale=True, dynamic_ncols=True,
            disable=not sys.stderr.isatty(), leave=False,
        )  # fmt: skip

    def add(self, views: int) -> None:
        tenth = 10 * self.done // self.total
        self.done += views
        self.bar.update(views)
        if self.bar.disable and 10 * self.done // self.total > tenth and self.done < self.total:
            left = tqdm.format_interval((self.total - self.done) / self.speed())
            log.info("table: %.0f%%, %.0f views/s, %s left", 100 * self.done / self.total, self.speed(), left)

    def speed(self) -> float:
        return (self.done - self.begun_at) / (time.monotonic() - self.started)

    def figures(self) -> dict[str, Any]:
        """Seconds and views a second, for the record."""
        figures = {"seconds": time.monotonic() - self.started, "views_per_second": self.speed()}
        log.info("table: done in %.0f s, %.0f views/s", *figures.values())
        return figures

    def __enter__(self) -> "TableProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
