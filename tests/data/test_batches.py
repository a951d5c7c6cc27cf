import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.data import Batches, load
from kdbench.data.batches import plain_batches
from kdbench.data.mixing import erase, mix, smoothed
from kdbench.data.views import Views
from tests.conftest import rest_wide

VIEWS = Views(padding=4, flip=True)


def batches_of(small, *overrides, batch_size=30, seed=0, channels_last=True):
    config = small(f"recipe.batch_size={batch_size}", *overrides)
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


# Augmentation beyond crop and flip

EVERYTHING = (
    "recipe.policy=rand_augment", "recipe.erasing=0.5", "recipe.mixup=0.8", "recipe.cutmix=1",
    "recipe.label_smoothing=0.1", "data.padding=2",
)  # fmt: skip
AUGMENTATIONS = {
    "everything": EVERYTHING,
    "trivial_augment": ("recipe.policy=trivial_augment",),
    "mixup": ("recipe.mixup=0.2",),
    "no_flip": ("data.flip=false",),
    "rand_augment": ("recipe.policy=rand_augment", "recipe.policy_ops=3"),
    "erasing": ("recipe.erasing=0.5",),
    "cutmix": ("recipe.cutmix=1",),
    "mixup_and_cutmix": ("recipe.mixup=0.8", "recipe.cutmix=1"),
    "label_smoothing": ("recipe.label_smoothing=0.1",),
    "no_padding": ("data.padding=0",),
    "no_augmentation": ("data.augment=false",),
}


def every_augmentation():
    """Parameters: every setting by name. All but the first ones are slow tests."""
    return pytest.mark.parametrize("name", rest_wide(AUGMENTATIONS, every_day=4))


def assert_equal_batches(first, second):
    for one, other in zip(first, second, strict=True):
        for name, a, b in zip(one._fields, one, other, strict=True):
            assert (a is None) == (b is None), name
            assert a is None or torch.equal(a, b), name


@every_augmentation()
def test_an_epoch_depends_on_data_seed_and_epoch_alone(small, name):
    augmentation = AUGMENTATIONS[name]
    batches = batches_of(small, *augmentation)
    first = list(batches.epoch(3))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(123)
    list(batches.epoch(0))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert_equal_batches(first, batches_of(small, *augmentation).epoch(3))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    others = [next(batches.epoch(4)), next(batches_of(small, *augmentation, seed=1).epoch(3))]
    assert not any(torch.equal(first[0].images, other.images) for other in others)


@every_augmentation()
@pytest.mark.parametrize("memory", rest_wide(["host", "device"]))
def test_an_augmented_epoch_can_be_continued_at_any_step(small, name, memory):
    batches = batches_of(small, *AUGMENTATIONS[name], f"data.memory={memory}")
    whole = list(batches.epoch(2))
    assert [len(batch.labels) for batch in whole] == [30, 30, 4]
    for start in range(len(whole) + 1):
        assert_equal_batches(whole[start:], batches.epoch(2, start))


@every_augmentation()
def test_augmented_images_are_the_same_on_device_and_host_and_in_both_memory_formats(small, name):
    augmentation = AUGMENTATIONS[name]
    first = list(batches_of(small, *augmentation).epoch(1))
    assert_equal_batches(first, batches_of(small, *augmentation, "data.memory=host").epoch(1))
    contiguous = list(batches_of(small, *augmentation, channels_last=False).epoch(1))
    assert_equal_batches(first, contiguous)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in first)
    assert all(batch.images.is_contiguous() for batch in contiguous)


@pytest.mark.parametrize("augmentation", [value for value in AUGMENTATIONS.values() if value[0].startswith("recipe")])
def test_augmentation_of_a_recipe_does_not_change_order_and_views(small, augmentation):
    data = [override for override in augmentation if override.startswith("data")]
    for plain, augmented in zip(
        batches_of(small, *data).epoch(1), batches_of(small, *augmentation).epoch(1), strict=True
    ):
        assert torch.equal(plain.indices, augmented.indices)
        assert torch.equal(plain.views, augmented.views)


def test_one_kind_of_augmentation_does_not_change_the_draws_of_another(small):
    draws = batches_of(small, *EVERYTHING).draw(1)
    for name in ("rand_augment", "erasing", "mixup_and_cutmix"):
        alone = batches_of(small, *AUGMENTATIONS[name], "recipe.policy_ops=2").draw(1)
        for field in ("operations", "erased", "shares", "boxes"):
            value = getattr(alone, field)
            assert value is None or torch.equal(value, getattr(draws, field)), (name, field)


def test_the_steps_of_an_augmented_batch_are_policy_then_normalisation_then_erasing_then_mixing(small):
    batches = batches_of(small, *EVERYTHING)
    dataset = batches.dataset
    draws, views = batches.draw(2), Views(padding=2, flip=True)
    for step, batch in enumerate(batches.epoch(2)):
        part = slice(30 * step, 30 * (step + 1))
        crops = views.crop(views.pad(dataset.train.images), draws.order[part], draws.views[part])
        images = dataset.normalise(batches.policy.apply(crops, draws.operations[part]))
        images = erase(images, draws.erased[part])
        labels = dataset.train.labels[draws.order[part]]
        images, targets = mix(images, smoothed(labels, 10, 0.1), draws.shares[step], draws.boxes[step])
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.soft_targets, targets)
        assert batch.targets is batch.soft_targets


@pytest.mark.parametrize("name", rest_wide(["mixup_and_cutmix", "mixup", "cutmix"], every_day=3))
def test_labels_of_mixed_images_are_those_with_the_larger_share(small, name):
    batches = batches_of(small, *AUGMENTATIONS[name], batch_size=8)
    rolled = 0
    for epoch in range(3):
        for plan, batch in zip(batches.plan(epoch), batches.epoch(epoch), strict=True):
            own = batches.dataset.train.labels[plan.rows]
            partner = own.roll(1)
            share = float(plan.shares[2])
            rolled += share < 0.5
            assert torch.equal(batch.labels, own if share >= 0.5 else partner)
            expected = share * F.one_hot(own, 10) + (1 - share) * F.one_hot(partner, 10)
            assert torch.allclose(batch.soft_targets, expected.float(), atol=1e-6)
            assert torch.allclose(batch.soft_targets.sum(dim=1), torch.ones(len(own)))
    assert rolled


def test_without_mixing_and_smoothing_targets_are_the_labels(small):
    batch = next(batches_of(small, "recipe.policy=rand_augment", "recipe.erasing=0.5").epoch(0))
    assert batch.soft_targets is None
    assert batch.targets is batch.labels


def test_smoothed_labels_leave_the_images_as_they_are(small):
    plain, batch = (next(batches_of(small, *more).epoch(0)) for more in ((), AUGMENTATIONS["label_smoothing"]))
    assert torch.equal(plain.images, batch.images)
    assert torch.equal(batch.targets, smoothed(plain.labels, 10, 0.1))


def test_a_part_of_a_batch_has_the_rows_of_each_tensor(small):
    batch = next(batches_of(small, *EVERYTHING).epoch(0))
    part = batch.part(slice(3, 7))
    assert all(torch.equal(a, b[3:7]) for a, b in zip(part, batch, strict=True))
    plain = next(batches_of(small).epoch(0)).part(slice(0, 2))
    assert plain.soft_targets is None
    assert len(plain.images) == 2


def test_a_batch_of_one_image_is_mixed_with_itself(small):
    batches = batches_of(small, "recipe.mixup=0.8", "recipe.cutmix=1", "data.num_train=61")
    plain = list(batches_of(small, "data.num_train=61").epoch(0))[-1]
    last = list(batches.epoch(0))[-1]
    assert len(last.labels) == 1
    assert torch.allclose(last.images, plain.images, atol=1e-6)
    assert torch.equal(last.labels, plain.labels)
    assert torch.allclose(last.soft_targets, F.one_hot(plain.labels, 10).float())
