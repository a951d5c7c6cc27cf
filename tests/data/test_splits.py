import pytest
import torch

from kdbench.data.splits import balanced_subset, train_val_split
from kdbench.errors import ConfigError


@pytest.fixture(scope="module")
def labels():
    return torch.randint(0, 10, (1000,), generator=torch.Generator().manual_seed(0))


def test_the_split_is_the_one_of_the_protocol():
    train, val = train_val_split(50_000, 5_000)
    permutation = torch.randperm(50_000, generator=torch.Generator().manual_seed(1234))
    assert torch.equal(val, permutation[:5_000])
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(50_000))


@pytest.mark.parametrize("size", [10, 137, 500])
def test_a_subset_is_balanced(labels, size):
    rows = balanced_subset(labels, size, "data.num_train")
    counts = torch.bincount(labels[rows], minlength=10)
    assert len(rows.unique()) == size
    assert int(counts.max() - counts.min()) <= 1


def test_a_smaller_subset_is_part_of_a_larger_one(labels):
    small, large = (balanced_subset(labels, size, "key") for size in (50, 213))
    assert bool(torch.isin(small, large).all())


def test_a_subset_of_all_images_keeps_their_order(labels):
    assert torch.equal(balanced_subset(labels, 1000, "key"), torch.arange(1000))


def test_the_largest_balanced_subset_fits():
    labels = torch.tensor([0] * 3 + [1] * 4 + [2] * 4)
    counts = torch.bincount(labels[balanced_subset(labels, 10, "key")])
    assert counts.tolist() == [3, 4, 3] or counts.tolist() == [3, 3, 4]


@pytest.mark.parametrize("size", [1001, 999])
def test_a_size_that_does_not_fit_is_an_error_with_its_key(labels, size):
    with pytest.raises(ConfigError) as error:
        balanced_subset(labels, size, "data.num_val")
    assert (error.value.code, error.value.key) == ("out_of_range", "data.num_val")
