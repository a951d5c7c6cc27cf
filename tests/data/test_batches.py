import torch

from kdbench.data import Batches, load
from kdbench.data.batches import plain_batches
from kdbench.data.views import Views

VIEWS = Views(padding=4, flip=True)


def batches_of(small, batch_size=30, seed=0, channels_last=True):
    config = small(f"recipe.batch_size={batch_size}")
    return Batches(load(config.data, "cpu"), config.recipe, seed, channels_last)


def test_an_epoch_shows_every_training_image_once(small):
    batches = batches_of(small)
    seen = list(batches.epoch(0))
    assert [len(batch.labels) for batch in seen] == [30, 30, 4]
    assert len(batches) == 3
    indices = torch.cat([batch.indices for batch in seen])
    assert torch.equal(indices.sort().values, batches.dataset.train.indices.sort().values)


def test_images_are_the_views_that_the_batch_names(small):
    batches = batches_of(small)
    train = batches.dataset.train
    for batch in batches.epoch(5):
        rows = torch.tensor([int((train.indices == index).nonzero()) for index in batch.indices])
        expected = batches.dataset.normalise(VIEWS.crop(VIEWS.pad(train.images), rows, batch.views))
        assert torch.equal(batch.images, expected)
        assert torch.equal(batch.labels, train.labels[rows])


def test_the_same_seed_gives_the_same_batches_in_both_memory_formats(small):
    for first, second in zip(batches_of(small).epoch(1), batches_of(small, channels_last=False).epoch(1), strict=True):
        assert torch.equal(first.images, second.images)
        assert first.images.is_contiguous(memory_format=torch.channels_last)
        assert second.images.is_contiguous()


def test_an_epoch_can_be_continued_at_any_step(small):
    batches = batches_of(small)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, start=1))
    assert len(rest) == len(whole) - 1
    for expected, batch in zip(whole[1:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, batch, strict=True) if a is not None)


def test_evaluation_batches_are_in_order_and_not_augmented(small):
    dataset = load(small().data, "cpu")
    images = torch.cat(list(plain_batches(dataset, dataset.test, 7, channels_last=True)))
    assert torch.equal(images, dataset.normalise(dataset.test.images.permute(0, 3, 1, 2)))


def test_splits_of_shapes_are_balanced_disjoint_and_prefixes_of_larger_ones(small):
    dataset = load(small().data, "cpu")
    splits = (dataset.train, dataset.val, dataset.test)
    assert [len(split) for split in splits] == [64, 50, 60]
    for split in splits:
        counts = torch.bincount(split.labels, minlength=10)
        assert int(counts.max() - counts.min()) <= 1
    images = [image.numpy().tobytes() for split in splits for image in split.images]
    assert len(set(images)) == len(images)
    larger = load(small("data.num_train=128").data, "cpu")
    assert torch.equal(larger.train.images[:64], dataset.train.images)
    assert torch.equal(larger.val.images, dataset.val.images)
