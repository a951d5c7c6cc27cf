"""Studies with planted transfer, written without training: students that copy a part of their teacher's answers."""

from pathlib import Path

import numpy as np

from tests.report.conftest import write_run

IMAGES, CLASSES = 1000, 5
LABELS = np.arange(IMAGES) % CLASSES
TEACHERS = {100: "teacher100", 101: "teacher101"}
SIDDO_SHIFT, DIDDO_SHIFTS = 1000, (2000, 3000)


def answers(seed, right):
    """Predicted classes of an independent model that is right on a share of the images, on others random."""
    random = np.random.default_rng(seed)
    wrong = (LABELS + random.integers(1, CLASSES, IMAGES)) % CLASSES
    return np.where(random.random(IMAGES) < right, LABELS, wrong)


def copied(own, teacher, seed, correct, incorrect):
    """Answers of a student that copies a share of its teacher's right answers and of its mistakes, where it differs."""
    random = np.random.default_rng((seed, 7)).random(IMAGES)
    share = np.where(teacher == LABELS, correct, incorrect)
    return np.where(random < share, teacher, own)


def logits_of(predicted, seed=0):
    """Logits with these predicted classes and a random rest."""
    values = np.random.default_rng((seed, 3)).normal(size=(IMAGES, CLASSES)).astype(np.float32)
    values[np.arange(IMAGES), predicted] = values.max(axis=1) + 1
    return values


def write(root, predicted, seed, **others):
    accuracy = float((predicted == LABELS).mean())
    return write_run(
        root, accuracy=accuracy, logits=(logits_of(predicted, others.get("data_seed") or seed), LABELS), seed=seed,
        test_acc_final=accuracy, class_names=[f"kind {c}" for c in range(CLASSES)], **others,
    )  # fmt: skip


def write_teachers(root, seeds=(100,)):
    for seed in seeds:
        write(root, answers(seed, 0.85), seed, student="resnet20", run_key=TEACHERS[seed], recipe={"epochs": 200})
    return {seed: answers(seed, 0.85) for seed in seeds}


def write_students(
    root: Path,
    seeds,
    teacher_seed=100,
    correct=0.5,
    incorrect=0.5,
    student="resnet8",
    alpha=0.5,
    temperature=4.0,
    **others,
):
    """Write distilled students with planted shares of copied answers; return their predicted classes."""
    teacher = answers(teacher_seed, 0.85)
    found = []
    for seed in seeds:
        own = copied(answers((seed, 1), 0.6), teacher, (seed, teacher_seed), correct, incorrect)
        write(
            root, own, seed, student=student, teacher="resnet20", method="logit", teacher_seed=teacher_seed,
            teacher_key=TEACHERS[teacher_seed], method_params={"alpha": alpha, "temperature": temperature},
            agreement=float((own == teacher).mean()), **others,
        )  # fmt: skip
        found.append(own)
    return found


def write_controls(root, seeds, kinds=("baseline", "SIDDO", "DIDDO"), student="resnet8"):
    """Write runs without a teacher; return their predicted classes by kind."""
    found = {}
    for place, kind in enumerate(kinds):
        found[kind] = []
        for seed in seeds:
            own = answers((seed, 10 + place), 0.6)
            init = seed + (DIDDO_SHIFTS[0] if kind == "DIDDO" else 0)
            data = seed + {"baseline": 0, "SIDDO": SIDDO_SHIFT, "DIDDO": DIDDO_SHIFTS[1]}[kind]
            write(root, own, seed, student=student, init_seed=init, data_seed=data)
            found[kind].append(own)
    return found


def write_random_control(root, seeds, alpha, kind="per_sample"):
    for seed in seeds:
        own = answers((seed, 30, int(10 * alpha)), 0.55)
        write(
            root, own, seed, method="random_control", role="control", method_params={"alpha": alpha, "kind": kind},
            teacher=None,
        )  # fmt: skip


def write_study(root, seeds=range(6)):
    """Write teachers, students of several weights and temperatures, and every kind of control."""
    write_teachers(root, (100, 101))
    write_controls(root, seeds)
    write_controls(root, seeds, student="resnet14")
    for alpha in (0.1, 0.5, 0.9):
        for teacher_seed in (100, 101):
            write_students(root, seeds, teacher_seed, correct=alpha / 2, incorrect=alpha, alpha=alpha)
        for kind in ("per_sample", "resampled"):
            write_random_control(root, seeds, alpha, kind)
    write_students(root, seeds, correct=0.2, incorrect=0.6, temperature=1.0)
    write_students(root, seeds, correct=0.4, incorrect=0.6, student="resnet14")
