import pytest
import torch

from kdbench.data.splits import balanced_subset, train_val_split
from kdbench.errors import ConfigError


@pytest.fixture(scope="module")
def labels():
    return torch.randint(0, 10, (1000,), generator=torch.Generator().manual_seed(0))


def test_split_is_the_one_of_the_protocol():
    train, val = train_val_split(50_000, 5_000)
    permutation = torch.randperm(50_000, generator=torch.Generator().manual_seed(1234))
    assert torch.equal(val, permutation[:5_000])
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(50_000))


@pytest.mark.parametrize("size", [10, 137, 500])
def test_subset_is_balanced(labels, size):
    rows = balanced_subset(labels, size, "data.num_train")
    counts = torch.bincount(labels[rows], minlength=10)
    assert len(rows.unique()) == size
    assert int(counts.max() - counts.min()) <= 1


def test_smaller_subset_lies_in_the_larger(labels):
    small, large = (balanced_subset(labels, size, "key") for size in (50, 213))
    assert bool(torch.isin(small, large).all())


def test_all_images_are_taken_as_they_are(labels):
    assert torch.equal(balanced_subset(labels, 1000, "key"), torch.arange(1000))


def test_as_many_as_balance_allows_fit():
    labels = torch.tensor([0] * 3 + [1] * 4 + [2] * 4)
    counts = torch.bincount(labels[balanced_subset(labels, 10, "key")])
    assert counts.tolist() == [3, 4, 3] or counts.tolist() == [3, 3, 4]


@pytest.mark.parametrize("size", [1001, 999])
def test_size_that_does_not_fit_is_refused_with_key_and_limit(labels, size):
    with pytest.raises(ConfigError, match=f"data.num_val is {size}"):
        balanced_subset(labels, size, "data.num_val")
