"""A method built for real networks, and one step of it, without data, optimiser or run directory."""

from dataclasses import dataclass

import torch
from torch import Tensor

import kdbench
from kdbench.config import RunConfig
from kdbench.data.batches import Batch
from kdbench.methods import LossOutput, Method, MethodContext, Progress
from kdbench.models import Network, build, summarize
from kdbench.teachers.live import LiveTeacher
from tests.networks import SPEC


@dataclass
class Built:
    """A method with its networks, with random weights."""

    config: RunConfig
    context: MethodContext
    method: Method
    student: Network
    teacher: LiveTeacher | None
    batch: Batch

    def step(self, epoch: int = 0) -> LossOutput:
        """Return the loss of the batch, without a backward pass."""
        teachers = [self.teacher(self.batch).select(self.method.requires)] if self.teacher else []
        progress = Progress(torch.tensor(float(epoch)), self.context.epochs)
        return self.method(self.student(self.batch.images), teachers, self.batch, progress)

    def predict(self) -> Tensor:
        """Return the logits for inference of the batch's images."""
        self.student.eval(), self.method.eval()
        with torch.no_grad():
            return self.method.predict(self.student(self.batch.images))


def build_method(method: str, *overrides: str, images: int = 200, batch_size: int = 16, seed: int = 0) -> Built:
    """Return a method of conf/ for overrides such as student=resnet18; resnet20 to resnet8 by default.

    Args:
        method: name of the option.
        overrides: of the run.
        images: number of training images in its context.
        batch_size: images of the batch.
        seed: seed of weights and images.
    """
    networks = ["student=resnet8", "teacher=resnet20", "runtime.device=cpu", "runtime.precision=fp32"]
    config = kdbench.compose(["data=shapes", "recipe=smoke", *networks, f"method={method}", *overrides])
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    summaries = (summarize(config.teacher.model, SPEC, "teacher"),) if config.teacher else ()
    context = MethodContext(
        student=summarize(config.student, SPEC, "student"),
        teachers=summaries,
        data=SPEC,
        labels=torch.randint(10, (images,), generator=generator),
        indices=torch.randperm(5 * images, generator=generator)[:images],
        epochs=config.recipe.epochs,
        generator=generator,
        images=lambda: (
            torch.randn(images, *SPEC.input_shape, generator=torch.Generator().manual_seed(seed + 1))
            .split(64)
            .__iter__()
        ),
    )
    built = config.method.target(config.method.params, context)
    student = build(config.student, SPEC, built.requires.student_stages)
    built.bind_student(student)
    rows = torch.arange(batch_size)
    batch = Batch(
        torch.randn(batch_size, *SPEC.input_shape, generator=generator),
        context.labels[rows],
        context.indices[rows],
        torch.zeros(batch_size, dtype=torch.int64),
    )
    teacher = None
    if config.teacher:
        network = build(config.teacher.model, SPEC, built.requires.teacher_network_stages, "teacher").eval()
        teacher = LiveTeacher(network, built.requires, config.runtime)
        built.bind_teachers([network])
    return Built(config, context, built.train(), student.train(), teacher, batch)
