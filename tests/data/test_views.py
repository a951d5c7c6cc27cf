import pytest
import torch
from torchvision.transforms import Compose, Normalize, RandomCrop, ToTensor
from torchvision.transforms import functional as tv

from kdbench.data import Dataset, DataSpec, Split
from kdbench.data.views import NO_VIEWS, Views, epoch_plan

VIEWS = Views(padding=4, flip=True)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def torchvision_view(image_HWC, view):
    """Return the result of RandomCrop(32, padding=4) and RandomHorizontalFlip for given random numbers."""
    pil = tv.pad(tv.to_pil_image(image_HWC.permute(2, 0, 1)), RandomCrop(32, padding=4).padding)
    row, column, flip = view // 18, view // 2 % 9, view % 2
    cropped = tv.crop(pil, row, column, 32, 32)
    return tv.pil_to_tensor(tv.hflip(cropped) if flip else cropped)


@pytest.mark.parametrize("image", range(5))
def test_all_162_views_equal_torchvision_bit_for_bit(images, image):
    all_views = torch.arange(162)
    batched = VIEWS.crop(VIEWS.pad(images), torch.full((162,), image), all_views)
    for view in all_views.tolist():
        assert torch.equal(batched[view], torchvision_view(images[image], view)), view


def test_a_batch_can_mix_images_and_views(images):
    indices, chosen = torch.tensor([4, 0, 4]), torch.tensor([161, 80, 3])
    batch = VIEWS.crop(VIEWS.pad(images), indices, chosen)
    for position in range(3):
        assert torch.equal(batch[position], torchvision_view(images[indices[position]], int(chosen[position])))


def test_torchvisions_random_crop_gives_only_these_views(images):
    every = {VIEWS.crop(VIEWS.pad(images), torch.tensor([0]), torch.tensor([v])).numpy().tobytes() for v in range(162)}
    transform, image = RandomCrop(32, padding=4), tv.to_pil_image(images[0].permute(2, 0, 1))
    for _ in range(50):
        assert tv.pil_to_tensor(transform(image)).numpy().tobytes() in every


def test_the_identity_view_is_the_image(images):
    view = torch.tensor([VIEWS.identity])
    assert torch.equal(VIEWS.crop(VIEWS.pad(images), torch.tensor([2]), view)[0], images[2].permute(2, 0, 1))


def test_crops_are_channels_last_in_memory(images):
    crops = VIEWS.crop(VIEWS.pad(images), torch.arange(5), torch.arange(5))
    assert crops.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_equals_torchvision_bit_for_bit(images):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    split = Split(images, torch.zeros(5, dtype=torch.int64), torch.arange(5))
    dataset = Dataset("any", DataSpec(10, (3, 32, 32), (), mean, std), split, split, split, VIEWS, "cpu")
    transform = Compose([ToTensor(), Normalize(mean, std)])
    expected = torch.stack([transform(image.numpy()) for image in images])
    assert torch.equal(dataset.normalise(images.permute(0, 3, 1, 2)), expected)


def test_an_epoch_plan_is_a_permutation_with_all_views_equally_likely():
    order, chosen = epoch_plan(20_000, VIEWS, data_seed=0, epoch=0)
    assert torch.equal(order.sort().values, torch.arange(20_000))
    counts = torch.bincount(chosen, minlength=162)
    assert len(counts) == 162
    # 123 expected of each; five standard deviations of a binomial are 55.
    assert int(counts.min()) > 68
    assert int(counts.max()) < 178


def test_an_epoch_plan_depends_on_seed_and_epoch_only():
    def plan(seed, epoch):
        return torch.cat(epoch_plan(100, VIEWS, seed, epoch))

    torch.manual_seed(1)
    first = plan(3, 4)
    torch.manual_seed(2)
    assert torch.equal(first, plan(3, 4))
    assert not torch.equal(plan(3, 4), plan(4, 3))
    assert not torch.equal(plan(3, 4), plan(3, 5))


def test_the_epoch_plan_of_published_runs_is_unchanged():
    order, chosen = epoch_plan(45_000, VIEWS, data_seed=0, epoch=0)
    assert order[:4].tolist() == [22267, 11363, 24447, 19212]
    assert chosen[:4].tolist() == [93, 153, 112, 57]


def test_without_augmentation_the_order_is_the_same_and_every_view_is_the_image():
    order, _ = epoch_plan(100, VIEWS, 0, 0)
    plain_order, plain_views = epoch_plan(100, NO_VIEWS, 0, 0)
    assert torch.equal(order, plain_order)
    assert bool((plain_views == NO_VIEWS.identity).all())


@pytest.mark.parametrize("views", [Views(4, True), Views(4, False), Views(0, True), Views(7, False), NO_VIEWS])
def test_the_identity_view_of_every_kind_is_the_image(images, views):
    chosen = torch.full((5,), views.identity)
    assert torch.equal(views.crop(views.pad(images), torch.arange(5), chosen), images.permute(0, 3, 1, 2))


@pytest.mark.parametrize(("padding", "flip", "number"), [(4, True, 162), (4, False, 81), (0, True, 2), (2, True, 50)])
def test_views_are_as_many_as_padding_and_flip_make(padding, flip, number):
    views = Views(padding, flip)
    images = torch.randint(0, 256, (1, 12, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rows = torch.zeros(number, dtype=torch.int64)
    crops = views.crop(views.pad(images), rows, torch.arange(number))
    assert crops.shape == (number, 3, 12, 10)
    assert len({crop.contiguous().numpy().tobytes() for crop in crops}) == views.number == number
