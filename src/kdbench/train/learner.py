"""A learner: a student, its method, its optimiser, its schedule and its records."""

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kdbench import metrics
from kdbench.config import RecipeConfig, RuntimeConfig
from kdbench.data.batches import Batch
from kdbench.data.dataset import Dataset
from kdbench.methods.method import START, Knowledge, Method, Progress
from kdbench.models import Network
from kdbench.runtime import autocast
from kdbench.train.compiled import compiled
from kdbench.train.evaluate import finite, predict
from kdbench.train.optim import build_optimizer, clip_gradients, learning_rate
from kdbench.train.sums import GRAD_NORM, EpochSums

COLUMNS = {
    "epoch", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "grad_norm", "images_per_second", "seconds"
}  # fmt: skip
"""Of metrics.csv, beside one per loss term."""


class Learner:
    """Trains one student by one method.

    Args:
        student: On its device, in its memory format.
        method: On the same device.
        recipe: Optimiser, schedule and clipping.
        runtime: Resolved.
        seed: Of what student and method draw while they train, whoever else trains beside them.
    """

    def __init__(
        self, student: Network, method: Method, recipe: RecipeConfig, runtime: RuntimeConfig, seed: int = 0
    ) -> None:
        self.student = student
        self.forward = compiled(student) if runtime.compile else student
        self.method = method
        self.recipe = recipe
        self.runtime = runtime
        own, projections = list(student.parameters()), list(method.parameters())
        # A tensor, so that a recorded step follows the schedule; its type is what the fused kernels read.
        self.lr = torch.tensor(
            recipe.lr, dtype=torch.float64 if runtime.device == "cpu" else torch.float32, device=runtime.device
        )
        self.optimizer = build_optimizer(recipe, self.lr, own, projections)
        self.clipped = own + projections if recipe.clip_projections else own
        self.scaler = torch.amp.GradScaler(torch.device(runtime.device).type, enabled=runtime.precision == "fp16")
        self.buffers = [*student.buffers(), *method.buffers()]
        self.epoch = 0
        """Epochs done."""
        self.step_of_epoch = 0
        """Steps done of the epoch that has begun."""
        self.resumed = False
        """Whether the epoch that begins next has begun already, in another process."""
        self.seconds = 0.0
        """Spent on the epoch that has begun, by all processes that worked on it: the loop adds to it."""
        self.random = {
            kind: torch.Generator(device).manual_seed(seed).get_state()
            for kind, device in {"cpu": "cpu", runtime.device.partition(":")[0]: runtime.device}.items()
        }
        """State of torch's generators, as this learner has left them."""
        self.progress = START
        self.skipped = 0
        """Steps left out because their loss was not finite, in the epochs done."""
        self.overflows = 0
        """Steps that gradient scaling left out, in the epochs done."""
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        limit = recipe.nonfinite_limit if self.skips else 0
        self.sums = EpochSums(runtime.device, self.scaler.is_enabled(), limit)
        self.buffers_before: list[Tensor] = []

    @property
    def skips(self) -> bool:
        """Whether a step that is not finite is left out, or ends the run."""
        return self.recipe.on_nonfinite == "skip"

    @property
    def position(self) -> tuple[int, int]:
        """Epochs done, and steps done of the one that has begun."""
        return self.epoch, self.step_of_epoch

    def begin_epoch(self) -> None:
        """Begin the next epoch, or go on with the one that a resume has brought back."""
        self.student.train()
        self.method.train()
        self.lr.fill_(learning_rate(self.recipe, self.epoch))
        self.progress = Progress(self.epoch, self.recipe.epochs)
        if not self.resumed:
            self.sums.begin(self.skipped)
            self.step_of_epoch, self.seconds = 0, 0.0
        self.resumed = False

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What is drawn meanwhile comes from this learner's own random state."""
        set_random_state(self.random, self.runtime.device)
        try:
            yield
        finally:
            self.random = random_state(self.runtime.device)

    def losses(self, batch: Batch, knowledge: Knowledge | None) -> dict[str, Tensor]:
        """Forward pass: the method's named scalar terms."""
        self.buffers_before = [buffer.clone() for buffer in self.buffers] if self.skips else []
        with autocast(self.runtime):
            output = self.forward(batch.images)
            terms = self.method(output, knowledge, batch, progress=self.progress)
        self.sums.add_predictions(self.method.predict(output), batch.labels)
        return terms

    def step(self, terms: Mapping[str, Tensor]) -> None:
        """Backward pass, clipping, finite check, optimiser, sums. Nothing here waits for a GPU."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(self.poisoned(terms)).backward()
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.clipped, self.recipe.clip_norm)
        failed = self.sums.add_terms(terms, grad_norm, self.epoch + 1)
        for buffer, before in zip(self.buffers, self.buffers_before, strict=False):  # running statistics, memory banks
            buffer.copy_(torch.where(failed > 0, before, buffer))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = failed  # type: ignore[attr-defined]  # read by the fused step
            self.optimizer.step()

    def poisoned(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The total of a step's terms.

        Gradient scaling decides by the gradients alone whether a step is taken, so where another term is not finite, or
        a step before this one ended the run, they are made not finite either.
        """
        total = terms["total"]
        if not self.scaler.is_enabled():
            return total
        bad = ~torch.stack([value.detach().isfinite().all() for value in terms.values()]).all()
        if not self.skips:
            bad = bad | (self.sums.failed_step > 0)
        return total * torch.where(bad, torch.nan, 1.0)

    def raise_if_failed(self) -> None:
        """That no step of this epoch ended the run. Waits for a GPU."""
        self.sums.raise_if_failed(self.epoch + 1)

    def end_epoch(self, dataset: Dataset) -> dict[str, float]:
        """Validate, keep the best weights, and add this epoch's row to the records."""
        started = time.perf_counter()
        means = self.sums.means(self.epoch + 1)
        val_logits = finite(predict(self.student, dataset, dataset.val, self.runtime, self.method), self.epoch + 1)
        labels = dataset.val.labels.cpu().numpy()
        train_loss, train_acc, grad_norm = means.pop("total"), means.pop("train_acc"), means.pop(GRAD_NORM)
        assert not means.keys() & COLUMNS, "a loss term has the name of a column"
        row = {
            "epoch": self.epoch + 1,
            "lr": learning_rate(self.recipe, self.epoch),
            "train_loss": train_loss,
            **means,
            "train_acc": train_acc,
            "val_loss": metrics.nll(val_logits.numpy(), labels),
            "val_acc": metrics.accuracy(val_logits.numpy(), labels),
            "grad_norm": grad_norm,
            "images_per_second": len(dataset.train) / self.seconds,
        }
        if self.best is None or row["val_acc"] > self.best["val_acc"]:
            self.best = {
                "epoch": self.epoch + 1,
                "val_acc": row["val_acc"],
                "weights": copy.deepcopy(self.student.body.state_dict()),
                "method": copy.deepcopy(self.method.state_dict()),
                "val_logits": val_logits,
            }
        row["seconds"] = self.seconds + time.perf_counter() - started
        self.rows.append(row)
        self.epoch += 1
        self.step_of_epoch = 0
        self.skipped += int(self.sums.skipped)
        self.overflows += int(self.sums.overflows)
        return row

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if nothing had happened, after any step."""
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step_of_epoch,
            "sums": self.sums.state_dict() if self.step_of_epoch else None,
            "seconds": self.seconds if self.step_of_epoch else 0.0,
            "random": self.random,
            "skipped": self.skipped,
            "overflows": self.overflows,
            "rows": self.rows,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        for parameter, kept in self.optimizer.state.items():
            # The fused step walks memory, so the buffers must be laid out as the weights are here.
            kept["momentum_buffer"] = torch.zeros_like(parameter).copy_(kept["momentum_buffer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_of_epoch, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.skipped, self.overflows = state["skipped"], state["overflows"]
        self.random = state["random"]
        self.resumed = state["sums"] is not None
        self.sums.begin(self.skipped)
        if self.resumed:
            self.sums.load_state_dict(state["sums"])
        self.rows = state["rows"]
        self.best = state["best"]


def random_state(device: str) -> dict[str, Tensor]:
    """Of torch's generators: the CPU's, and the GPU's where there is one. Waits for neither."""
    state = {"cpu": torch.get_rng_state()}
    if device != "cpu":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    if device != "cpu" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
