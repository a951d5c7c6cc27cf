"""A learner: a student, its method, its optimiser, its schedule and its records."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench import metrics
from kdbench.config import RecipeConfig, RuntimeConfig
from kdbench.data.batches import Batch
from kdbench.data.dataset import Dataset
from kdbench.methods.method import Knowledge, Method, Progress
from kdbench.models import Network
from kdbench.runtime import autocast
from kdbench.train.evaluate import predict
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
    """

    def __init__(self, student: Network, method: Method, recipe: RecipeConfig, runtime: RuntimeConfig) -> None:
        self.student = student
        self.method = method
        self.recipe = recipe
        self.runtime = runtime
        own, projections = list(student.parameters()), list(method.parameters())
        self.optimizer = build_optimizer(recipe, own, projections)
        self.clipped = own + projections if recipe.clip_projections else own
        self.scaler = torch.amp.GradScaler(torch.device(runtime.device).type, enabled=runtime.precision == "fp16")
        self.epoch = 0
        """Epochs done."""
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self.sums = self.fresh_sums()

    def fresh_sums(self) -> EpochSums:
        return EpochSums(self.runtime.device, norms_may_overflow=self.scaler.is_enabled())

    def begin_epoch(self) -> None:
        self.student.train()
        self.method.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.epoch)
        self.sums = self.fresh_sums()

    def losses(self, batch: Batch, knowledge: Knowledge | None) -> dict[str, Tensor]:
        """Forward pass: the method's named scalar terms."""
        with autocast(self.runtime):
            output = self.student(batch.images)
            terms = self.method(output, knowledge, batch, progress=Progress(self.epoch, self.recipe.epochs))
        self.sums.add_predictions(self.method.predict(output), batch.labels)
        return terms

    def step(self, terms: Mapping[str, Tensor]) -> None:
        """Backward pass, clipping, finite check, optimiser, sums. Nothing here waits for a GPU."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms["total"]).backward()
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.clipped, self.recipe.clip_norm)
        failed = self.sums.add_terms(terms, grad_norm, self.epoch + 1)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = failed  # type: ignore[attr-defined]  # read by the fused step
            self.optimizer.step()

    def end_epoch(self, dataset: Dataset, train_seconds: float) -> dict[str, float]:
        """Validate, keep the best weights, and add this epoch's row to the records."""
        means = self.sums.means(self.epoch + 1)
        val_logits = predict(self.student, dataset, dataset.val, self.runtime, self.method)
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
            "images_per_second": len(dataset.train) / train_seconds,
        }
        if self.best is None or row["val_acc"] > self.best["val_acc"]:
            self.best = {
                "epoch": self.epoch + 1,
                "val_acc": row["val_acc"],
                "weights": copy.deepcopy(self.student.body.state_dict()),
                "method": copy.deepcopy(self.method.state_dict()),
                "val_logits": val_logits,
            }
        self.rows.append(row)
        self.epoch += 1
        return row

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if nothing had happened, at the end of an epoch."""
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "rows": self.rows,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in self.optimizer.state.items():
            # The fused step walks memory, so the buffers must be laid out as the weights are here.
            kept["momentum_buffer"] = torch.zeros_like(parameter).copy_(kept["momentum_buffer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]
        self.rows = state["rows"]
        self.best = state["best"]
