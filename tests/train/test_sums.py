"""Sums over the steps of an epoch, and what they do with values that are not finite."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.train.sums import EpochSums, NonFiniteError


def add(sums: EpochSums, size: int, ce: float, norm: float, correct: int = 0) -> Tensor:
    """Add a step of epoch 2, and return whether the optimiser must not take it."""
    labels = torch.zeros(size, dtype=torch.int64)
    logits = torch.zeros(size, 2)
    logits[correct:, 1] = 1
    sums.add_predictions(logits, labels)
    return sums.add_terms({"total": torch.tensor(ce), "ce": torch.tensor(ce)}, torch.tensor(norm), epoch=2)


def check(error: NonFiniteError, step: int, cause: str) -> None:
    """Check which value of which step an error names."""
    assert (error.code, error.key) == ("not_finite", "recipe.lr")
    assert (error.epoch, error.step) == (2, step)
    assert f": {cause} is " in str(error)
    assert not torch.tensor(error.values[cause]).isfinite()


def test_means_are_over_images_and_norms_over_steps() -> None:
    sums = EpochSums("cpu")
    add(sums, 3, ce=1.0, norm=2.0, correct=3)
    add(sums, 1, ce=5.0, norm=4.0)
    assert sums.means(2) == {"total": 2.0, "ce": 2.0, "train_acc": 0.75, "grad_norm": 3.0}


@pytest.mark.parametrize(("ce", "norm", "cause"), [(torch.nan, 1.0, "ce"), (1.0, torch.inf, "grad_norm")])
def test_a_value_that_is_not_finite_ends_the_run_at_its_step(ce: float, norm: float, cause: str) -> None:
    sums = EpochSums("cpu")
    add(sums, 2, ce=1.0, norm=1.0)
    with pytest.raises(NonFiniteError) as error:
        add(sums, 2, ce=ce, norm=norm)
    check(error.value, 2, cause)


def test_where_steps_do_not_wait_the_first_bad_one_is_named_and_blocks_all_after_it() -> None:
    sums = EpochSums("cpu")
    sums.ends_at_once = False  # as on a device that runs ahead of the host
    blocked = [float(add(sums, 2, ce=ce, norm=1.0)) for ce in (1.0, torch.nan, 1.0, torch.inf)]
    assert blocked == [0, 1, 1, 1]
    with pytest.raises(NonFiniteError) as error:
        sums.raise_if_failed(2)
    check(error.value, 2, "ce")


def test_with_gradient_scaling_norms_may_overflow_and_do_not_count() -> None:
    sums = EpochSums("cpu", norms_may_overflow=True)
    add(sums, 2, ce=1.0, norm=torch.inf)
    add(sums, 2, ce=1.0, norm=3.0)
    assert sums.means(2)["grad_norm"] == 3.0
    with pytest.raises(NonFiniteError) as error:
        add(sums, 2, ce=torch.nan, norm=1.0)
    check(error.value, 3, "ce")


def test_overflows_of_gradient_scaling_are_counted() -> None:
    sums = EpochSums("cpu", norms_may_overflow=True)
    for norm in (torch.inf, 1.0, torch.nan):
        add(sums, 2, ce=1.0, norm=norm)
    assert int(sums.overflows) == 2


def test_skipped_steps_count_in_no_sum_and_too_many_of_them_end_the_run() -> None:
    sums = EpochSums("cpu", limit=3, before=1)
    steps = ((2, 1.0), (5, torch.nan), (2, 3.0))
    blocked = [float(add(sums, size, ce=ce, norm=1.0, correct=1)) for size, ce in steps]
    assert blocked == [0, 1, 0]
    assert sums.means(2) == {"total": 2.0, "ce": 2.0, "train_acc": 0.5, "grad_norm": 1.0}
    add(sums, 2, ce=torch.inf, norm=1.0)
    with pytest.raises(NonFiniteError) as error:
        add(sums, 2, ce=torch.nan, norm=1.0)
    check(error.value, 2, "ce")  # the first bad one of the epoch
    assert "recipe.nonfinite_limit=3" in str(error.value)


def test_an_epoch_without_a_finite_step_ends_the_run_below_the_limit() -> None:
    sums = EpochSums("cpu", limit=10)
    for _ in range(2):
        add(sums, 2, ce=torch.nan, norm=1.0)
    with pytest.raises(NonFiniteError, match="no step of the epoch was finite") as error:
        sums.means(2)
    check(error.value, step=1, cause="ce")
    add(sums, 2, ce=1.0, norm=1.0)
    assert sums.means(2)["ce"] == 1.0


def test_restored_sums_continue_where_they_were() -> None:
    whole, first = EpochSums("cpu"), EpochSums("cpu")
    steps: list[dict[str, Any]] = [
        {"size": 3, "ce": 0.1, "norm": 0.7, "correct": 1},
        {"size": 2, "ce": 0.3, "norm": 0.9, "correct": 2},
    ]
    for step in steps:
        add(whole, **step)
    add(first, **steps[0])
    second = EpochSums("cpu")
    second.load_state_dict(first.state_dict())
    add(second, **steps[1])
    assert second.means(2) == whole.means(2)
