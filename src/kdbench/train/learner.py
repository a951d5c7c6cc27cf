"""A learner: a student with its method, optimiser, schedule and records."""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from kdbench import metrics
from kdbench.config import RecipeConfig, RuntimeConfig
from kdbench.data.batches import Batch
from kdbench.data.dataset import Dataset
from kdbench.methods.base import LossOutput, Method, Progress, TeacherOutput
from kdbench.models import Network, Output
from kdbench.system.device import autocast, kind_of
from kdbench.system.guard import Guard
from kdbench.system.random import (
    HostState,
    host_state,
    plain_host_state,
    random_state,
    read_host_state,
    seeded_host_state,
    set_host_state,
    set_random_state,
)
from kdbench.train.average import AveragedWeights
from kdbench.train.compiled import compiled
from kdbench.train.evaluate import check_finite, predict
from kdbench.train.loss_output import check_output
from kdbench.train.optim import build_optimizer, clip_gradients, load_optimizer
from kdbench.train.parallel_student import ParallelStudent
from kdbench.train.schedule import Schedule
from kdbench.train.sums import GRAD_NORM, EpochSums

TeacherSource = Callable[[Batch], TeacherOutput | None]
"""Computes or looks up a teacher's output for a batch (`kdbench.teachers`)."""


def no_teacher(batch: Batch) -> None:
    """Return the output of a learner's teacher that has none."""


def nothing() -> None:
    """Do nothing after an epoch."""


class Checkpoints(Protocol):
    """Destination of a learner's records and checkpoints."""

    def maybe_save(self) -> None:
        """Write a checkpoint after a step, if one is due."""

    def end_epoch(self) -> None:
        """Write the records after an epoch, and a checkpoint if one is due."""


class NoCheckpoints:
    """Checkpoints that are never written, for benchmarks."""

    def maybe_save(self) -> None:
        """Do nothing."""

    def end_epoch(self) -> None:
        """Do nothing."""


class Learner:
    """Training of one student by one method.

    Args:
        student: network on its device, in its memory format.
        method: method on the same device.
        recipe: optimiser, schedule and clipping.
        runtime: resolved runtime.
        seed: seed of what student and method draw while they train, independent of other learners.
        guard: context of this learner's code; an exception in it ends this learner only.
        title: short description, for people.
        steps_per_epoch: number of batches of an epoch, for schedules per step.
    """

    def __init__(
        self,
        student: Network,
        method: Method,
        recipe: RecipeConfig,
        runtime: RuntimeConfig,
        seed: int = 0,
        guard: Guard | None = None,
        title: str = "",
        steps_per_epoch: int = 1,
    ) -> None:
        self.student = student
        self.forward: Callable[[Tensor], Output] = compiled(student) if runtime.compile else student
        """The student's forward pass in training."""
        self.parallel: ParallelStudent | None = None
        """The student over several processes, where there are several; `forward` is then the same."""
        self.method = method
        self.recipe = recipe
        self.runtime = runtime
        self.guard = guard or Guard()
        self.title = title
        self.teacher: TeacherSource = no_teacher
        self.checkpointer: Checkpoints = NoCheckpoints()
        self.after_epoch: Callable[[], None] = nothing
        """Called after each epoch and its checkpoint; an exception ends this learner only, as a search that prunes."""
        self.work = 1.0
        """Share of the group's work, in any unit."""
        own, projections = list(student.parameters()), [p for p in method.parameters() if p.requires_grad]
        # A tensor, so that a captured step follows the schedule; its type is what the fused kernels read.
        self.lr = torch.tensor(
            recipe.lr, dtype=torch.float64 if runtime.device == "cpu" else torch.float32, device=runtime.device
        )
        self.schedule = Schedule(recipe, steps_per_epoch)
        self.optimizer = build_optimizer(recipe, self.lr, own, projections)
        deferred = {id(buffer) for name, buffer in method.named_buffers() if name in method.deferred}
        self.average = AveragedWeights([student, method], recipe.ema, deferred) if recipe.ema else None
        self.clipped = own + projections if recipe.clip_projections else own
        self.scaler = torch.amp.GradScaler(torch.device(runtime.device).type, enabled=runtime.precision == "fp16")
        self.buffers = [b for b in (*student.buffers(), *method.buffers()) if id(b) not in deferred]
        self.epoch = 0
        """Number of finished epochs."""
        self.step_of_epoch = 0
        """Number of finished steps of the current epoch."""
        self.resumed = False
        """True if the next epoch continues that of another process."""
        self.seconds = 0.0
        """Time spent on the current epoch by all processes that worked on it; the loop adds to it."""
        self.random = {
            kind: torch.Generator(device).manual_seed(seed).get_state()
            for kind, device in {"cpu": "cpu", kind_of(runtime.device): runtime.device}.items()
        }
        """State of torch's generators after this learner's last step."""
        self.host_random: HostState | None = None
        """State of Python's and NumPy's generators after it, if student or method may draw from them."""
        if student.own_code or student.host_random or not method.capturable:
            self.host_random = seeded_host_state(seed)
        self.progress = Progress(torch.zeros((), device=runtime.device), recipe.epochs)
        self.skipped = 0
        """Number of steps skipped because their loss was not finite, in the finished epochs."""
        self.overflows = 0
        """Number of steps that gradient scaling skipped, in the finished epochs."""
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        limit = recipe.nonfinite_limit if self.skips_bad_steps else 0
        self.sums = EpochSums(runtime.device, self.scaler.is_enabled(), limit)

    @property
    def skips_bad_steps(self) -> bool:
        """True if a step that is not finite is skipped; otherwise it ends the run."""
        return self.recipe.on_nonfinite == "skip"

    @property
    def position(self) -> tuple[int, int]:
        """Finished epochs, and finished steps of the current one."""
        return self.epoch, self.step_of_epoch

    @property
    def failed(self) -> bool:
        return self.guard.failed

    def begin_epoch(self) -> None:
        """Begin the next epoch, or continue the one that a resume has restored."""
        if not self.resumed:  # a network may count its epochs here, and has counted this one
            self.student.train()
        self.method.train()
        self.lr.fill_(self.schedule.at(self.epoch))
        self.progress.epoch.fill_(self.epoch)
        if not self.resumed:
            self.sums.begin(self.skipped)
            self.step_of_epoch, self.seconds = 0, 0.0
        self.resumed = False

    def begin_step(self) -> None:
        """Set the learning rate of the next step, where it changes with each."""
        if self.schedule.per_step:
            self.lr.fill_(self.schedule.at(self.epoch, self.step_of_epoch))

    @contextmanager
    def rng_scope(self) -> Iterator[None]:
        """Draw random numbers from this learner's own state while the block runs."""
        set_random_state(self.random, self.runtime.device)
        surrounding = host_state() if self.host_random else None
        if self.host_random:
            set_host_state(self.host_random)
        try:
            yield
        finally:
            self.random = random_state(self.runtime.device)
            if surrounding:
                self.host_random = host_state()
                set_host_state(surrounding)

    def train_step(self, batch: Batch, teacher_output: TeacherOutput | None) -> None:
        """Run forward pass, losses, backward pass, clipping, finite check and optimiser. Never waits for a CUDA device.

        Args:
            batch: images and labels.
            teacher_output: output of the learner's teacher, or None without a teacher.
        """
        buffers = [buffer.clone() for buffer in self.buffers] if self.skips_bad_steps else []
        teachers = [teacher_output.select(self.method.requires)] if teacher_output else []
        self.optimizer.zero_grad(set_to_none=True)
        if self.recipe.accumulate == 1:
            terms, logits = self.backward(batch, teachers)
        else:
            terms, logits = self.backward_in_parts(batch, teachers)
        if self.parallel:
            self.parallel.average_gradients(self.optimizer)
        self.sums.add_predictions(logits, batch.labels)
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.clipped, self.recipe.clip_norm)
        failed = self.sums.add_terms(terms, grad_norm, self.epoch + 1)
        for buffer, before in zip(self.buffers, buffers, strict=False):  # running statistics
            buffer.copy_(torch.where(failed > 0, before, buffer))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif kind_of(self.runtime.device) != "mps" or not bool(failed):  # its fused step may not read found_inf
            self.optimizer.found_inf = failed  # type: ignore[attr-defined]  # read by the fused step
            self.optimizer.step()
        skipped = torch.where(self.all_finite(), failed, 1.0) if self.scaler.is_enabled() else failed
        self.method.finish_step(skipped)
        if self.average:
            self.average.update(skipped)

    def backward(self, batch: Batch, teachers: Sequence[TeacherOutput], share: float = 1.0) -> LossOutput:
        """Compute losses and add their gradients to those of the parameters; return the terms and the logits.

        Args:
            batch: images and labels.
            teachers: what the method requires of its teachers.
            share: factor of the gradients.
        """
        with autocast(self.runtime):
            output = self.forward(batch.images)
            returned = self.method(output, teachers, batch, self.progress)
        terms, logits = check_output(returned, self.method, output.logits.shape)
        loss = self.masked_loss(terms)
        self.scaler.scale(loss if share == 1 else share * loss).backward()
        return LossOutput(terms, logits.detach())

    def backward_in_parts(self, batch: Batch, teachers: Sequence[TeacherOutput]) -> LossOutput:
        """Compute losses and gradients of a batch part by part, so that less memory is needed; see `backward`.

        The terms are means over the whole batch, as are the gradients. Batch norm uses the statistics of each part.
        """
        images, sums, logits = len(batch.labels), dict[str, Tensor](), []
        for rows in part_slices(images, self.recipe.accumulate):
            share = (rows.stop - rows.start) / images
            terms, part_logits = self.backward(batch.part(rows), [teacher.part(rows) for teacher in teachers], share)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + share * value.detach()
            logits.append(part_logits)
        return LossOutput(sums, torch.cat(logits))

    def all_finite(self) -> Tensor:
        """Return whether all gradients are finite (a scalar on the device); if not, gradient scaling skips the step."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).isfinite()

    def averaged(self) -> AbstractContextManager[None]:
        """Put the moving average of the weights, if the recipe has one, into student and method in the block."""
        return self.average.in_place() if self.average else nullcontext()

    def masked_loss(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the total loss, made NaN under gradient scaling where the optimiser must not take the step.

        The scaler decides by the gradients alone, so a term that is not finite without making the total so, or an
        earlier step that ended the run, has to reach them.
        """
        total = terms["total"]
        if not self.scaler.is_enabled():
            return total
        bad = ~torch.stack([value.detach().isfinite().all() for value in terms.values()]).all()
        if not self.skips_bad_steps:
            bad = bad | (self.sums.failed_step > 0)
        return total * torch.where(bad, torch.nan, 1.0)

    def raise_if_failed(self) -> None:
        """Raise if a step of this epoch ended the run. Waits for a GPU."""
        self.sums.raise_if_failed(self.epoch + 1)

    def end_epoch(self, dataset: Dataset) -> dict[str, float]:
        """Validate, keep the best weights, and return this epoch's row of metrics.csv, which is added to `rows`.

        Where the validation images are trained on, their accuracy selects nothing: the last weights are kept.
        """
        started = time.perf_counter()
        means = self.sums.means(self.epoch + 1)
        world = self.parallel.world if self.parallel else None
        with self.averaged(), world.collective() if world else nullcontext():
            val_logits = predict(self.student, dataset, dataset.val, self.runtime, self.method, world)
        check_finite(val_logits, self.epoch + 1)
        labels = dataset.val.labels.cpu().numpy()
        train_loss, train_acc, grad_norm = means.pop("total"), means.pop("train_acc"), means.pop(GRAD_NORM)
        row = {
            "epoch": self.epoch + 1,
            "lr": self.schedule.at(self.epoch),
            "train_loss": train_loss,
            **means,
            "train_acc": train_acc,
            "val_loss": metrics.nll(val_logits.numpy(), labels),
            "val_acc": metrics.accuracy(val_logits.numpy(), labels),
            "grad_norm": grad_norm,
            "images_per_second": len(dataset.train) / self.seconds,
        }
        if self.best is None or not dataset.validation or row["val_acc"] > self.best["val_acc"]:
            with self.averaged():
                self.best = {
                    "epoch": self.epoch + 1,
                    "val_acc": row["val_acc"],
                    "weights": copy.deepcopy(self.student.body.state_dict()),
                    "method": copy.deepcopy(self.method.inference_state()),
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
        """Return everything that another process needs to continue after any step as if it had not stopped."""
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step_of_epoch,
            "sums": self.sums.state_dict() if self.step_of_epoch else None,
            "seconds": self.seconds if self.step_of_epoch else 0.0,
            "random": self.random,
            "host_random": plain_host_state(self.host_random) if self.host_random else None,
            "unsaved_state": self.student.unsaved_state(),
            "skipped": self.skipped,
            "overflows": self.overflows,
            "rows": self.rows,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of another process."""
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_of_epoch, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.skipped, self.overflows = state["skipped"], state["overflows"]
        self.random = state["random"]
        if state.get("host_random"):
            self.host_random = read_host_state(state["host_random"])
        self.student.load_unsaved_state(state.get("unsaved_state", {}))
        self.resumed = state["sums"] is not None
        self.sums.begin(self.skipped)
        if self.resumed:
            self.sums.load_state_dict(state["sums"])
        self.rows = state["rows"]
        self.best = state["best"]


def part_slices(images: int, parts: int) -> list[slice]:
    """Return slices that divide a batch into parts of about the same size, fewer for a batch of few images."""
    parts = min(parts, max(1, images // 2))  # batch norm needs two images
    ends = [images * n // parts for n in range(parts + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]
