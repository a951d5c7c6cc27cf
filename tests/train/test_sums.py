import pytest
import torch

from kdbench.errors import RunError
from kdbench.train.sums import EpochSums


def add(sums, size, ce, norm, right=0):
    labels = torch.zeros(size, dtype=torch.int64)
    logits = torch.zeros(size, 2)
    logits[right:, 1] = 1
    sums.add_predictions(logits, labels)
    return sums.add_terms({"total": torch.tensor(ce), "ce": torch.tensor(ce)}, torch.tensor(norm), epoch=2)


def test_means_are_over_images_and_norms_over_steps():
    sums = EpochSums("cpu")
    add(sums, 3, ce=1.0, norm=2.0, right=3)
    add(sums, 1, ce=5.0, norm=4.0)
    assert sums.means(2) == {"total": 2.0, "ce": 2.0, "train_acc": 0.75, "grad_norm": 3.0}


@pytest.mark.parametrize(("ce", "norm", "culprit"), [(torch.nan, 1.0, "ce"), (1.0, torch.inf, "grad_norm")])
def test_what_is_not_finite_stops_the_run_with_epoch_step_and_term(ce, norm, culprit):
    sums = EpochSums("cpu")
    add(sums, 2, ce=1.0, norm=1.0)
    with pytest.raises(RunError, match=f"epoch 2, step 2: {culprit} is (nan|inf)"):
        add(sums, 2, ce=ce, norm=norm)


def test_where_steps_do_not_wait_the_first_bad_one_is_remembered_and_blocks_all_after_it():
    sums = EpochSums("cpu")
    sums.ends_at_once = False  # as on a device that runs ahead
    blocked = [float(add(sums, 2, ce=ce, norm=1.0)) for ce in (1.0, torch.nan, 1.0, torch.inf)]
    assert blocked == [0, 1, 1, 1]
    with pytest.raises(RunError, match="epoch 2, step 2: ce is nan"):
        sums.raise_if_failed(2)


def test_with_gradient_scaling_norms_may_overflow_and_do_not_count():
    sums = EpochSums("cpu", norms_may_overflow=True)
    add(sums, 2, ce=1.0, norm=torch.inf)
    add(sums, 2, ce=1.0, norm=3.0)
    assert sums.means(2)["grad_norm"] == 3.0
    with pytest.raises(RunError, match="ce is nan"):
        add(sums, 2, ce=torch.nan, norm=1.0)


def test_skipped_steps_count_in_no_sum_and_too_many_of_them_end_the_run():
    sums = EpochSums("cpu", limit=3, before=1)
    taken = [1 - float(add(sums, size, ce=ce, norm=1.0, right=1)) for size, ce in ((2, 1.0), (5, torch.nan), (2, 3.0))]
    assert taken == [1, 0, 1]
    assert sums.means(2) == {"total": 2.0, "ce": 2.0, "train_acc": 0.5, "grad_norm": 1.0}
    add(sums, 2, ce=torch.inf, norm=1.0)
    with pytest.raises(RunError, match=r"epoch 2, step 2: ce is nan .*more than recipe.nonfinite_limit=3 such steps"):
        add(sums, 2, ce=torch.nan, norm=1.0)


def test_overflows_of_gradient_scaling_are_counted():
    sums = EpochSums("cpu", norms_may_overflow=True)
    for norm in (torch.inf, 1.0, torch.nan):
        add(sums, 2, ce=1.0, norm=norm)
    assert int(sums.overflows) == 2


def test_sums_go_on_where_they_were():
    whole, first = EpochSums("cpu"), EpochSums("cpu")
    steps = [{"size": 3, "ce": 0.1, "norm": 0.7, "right": 1}, {"size": 2, "ce": 0.3, "norm": 0.9, "right": 2}]
    for step in steps:
        add(whole, **step)
    add(first, **steps[0])
    second = EpochSums("cpu")
    second.load_state_dict(first.state_dict())
    add(second, **steps[1])
    assert second.means(2) == whole.means(2)
