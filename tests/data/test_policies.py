from itertools import pairwise

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from kdbench.data.policies import NUM_MAGNITUDES, Policy

SIZES = [(32, 32), (24, 40)]
POLICIES = ["rand_augment", "trivial_augment"]


def sample_images(height, width):
    """Return noise, a dark image of few levels, colour ramps, one colour, and the two extremes: [6, 3, H, W] uint8."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, height, width), generator=generator)
    dark = torch.randint(3, 40, (3, height, width), generator=generator)
    ramp = torch.arange(height * width).view(1, height, width) * torch.tensor([1, 2, 5]).view(3, 1, 1) // 4 % 256
    colour = torch.tensor([200, 17, 90]).view(3, 1, 1).expand(3, height, width)
    extremes = torch.randint(0, 2, (3, height, width), generator=generator) * 255
    return torch.stack([noise, dark, ramp, colour, torch.zeros_like(noise), extremes]).to(torch.uint8)


def torchvision_result(image, operation):
    """Return the result of torchvision's RandAugment and TrivialAugmentWide for one drawn operation."""
    return _apply_op(image, operation.name, operation.magnitude, InterpolationMode.NEAREST, None)


def single_draws(policy, entries):
    """Return draws that apply one operation to each image, and the identity after it."""
    draws = torch.zeros(len(entries), policy.num_ops, dtype=torch.int64)
    assert policy.operations[0].name == "Identity"
    draws[:, 0] = entries
    return draws


def torchvision_operations(space, magnitude=None):
    """Return all pairs of name and magnitude of an `_augmentation_space`, at one magnitude or at all."""
    operations = []
    for name, (magnitudes, signed) in space.items():
        values = [0.0] if magnitudes.ndim == 0 else magnitudes.tolist()
        if magnitude is not None and len(values) > 1:
            values = values[magnitude : magnitude + 1]
        operations += [(name, sign * float(value)) for value in values for sign in ((1, -1) if signed else (1,))]
    return operations


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_operations_and_magnitudes_of_rand_augment_are_those_of_torchvision(height, width):
    space = RandAugment()._augmentation_space(NUM_MAGNITUDES, (height, width))
    assert len(space) == 14
    for magnitude in range(NUM_MAGNITUDES):
        policy = Policy("rand_augment", height, width, "cpu", magnitude=magnitude)
        assert policy.operations == torchvision_operations(space, magnitude)


def test_operations_and_magnitudes_of_trivial_augment_are_those_of_torchvision():
    space = TrivialAugmentWide()._augmentation_space(NUM_MAGNITUDES)
    assert Policy("trivial_augment", 32, 32, "cpu").operations == torchvision_operations(space)


def test_defaults_are_those_of_torchvision():
    policy, reference = Policy("rand_augment", 32, 32, "cpu"), RandAugment()
    assert policy.num_ops == reference.num_ops
    space = reference._augmentation_space(reference.num_magnitude_bins, (32, 32))
    assert policy.operations == torchvision_operations(space, reference.magnitude)


@pytest.mark.parametrize(("height", "width"), [*SIZES, (7, 5), (3, 3), (2, 9), (1, 1)])
def test_every_operation_of_trivial_augment_equals_torchvision_bit_for_bit(height, width):
    policy = Policy("trivial_augment", height, width, "cpu")
    draws = single_draws(policy, torch.arange(len(policy.operations)))
    for image in sample_images(height, width):
        results = policy.apply(image.expand(len(draws), -1, -1, -1), draws)
        for operation, result in zip(policy.operations, results, strict=True):
            assert torch.equal(result, torchvision_result(image, operation)), operation


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_operation_of_rand_augment_equals_torchvision_bit_for_bit_at_every_magnitude(height, width):
    for magnitude in range(NUM_MAGNITUDES):
        policy = Policy("rand_augment", height, width, "cpu", magnitude=magnitude)
        draws = single_draws(policy, torch.arange(len(policy.operations)))
        for image in sample_images(height, width)[:2]:
            results = policy.apply(image.expand(len(draws), -1, -1, -1), draws)
            for operation, result in zip(policy.operations, results, strict=True):
                assert torch.equal(result, torchvision_result(image, operation)), (magnitude, operation)


@pytest.mark.parametrize("num_ops", [1, 2, 3])
def test_operations_of_an_image_are_applied_in_the_order_of_the_draws(num_ops):
    policy = Policy("rand_augment", 24, 40, "cpu", num_ops=num_ops, magnitude=17)
    draws = policy.draw(60, torch.Generator().manual_seed(1))
    images = sample_images(24, 40).repeat(10, 1, 1, 1)
    results = policy.apply(images, draws)
    for image, entries, result in zip(images, draws.tolist(), results, strict=True):
        for entry in entries:
            image = torchvision_result(image, policy.operations[entry])
        assert torch.equal(result, image), entries


@pytest.mark.parametrize(
    ("name", "transform"), [("rand_augment", RandAugment(1)), ("trivial_augment", TrivialAugmentWide())]
)
def test_torchvisions_transform_gives_only_results_of_these_operations(name, transform):
    image = sample_images(32, 32)[0]
    policy = Policy(name, 32, 32, "cpu", num_ops=1)
    entries = torch.arange(len(policy.operations))[:, None]
    every = {result.numpy().tobytes() for result in policy.apply(image.expand(len(entries), -1, -1, -1), entries)}
    torch.manual_seed(0)
    for _ in range(100):
        assert transform(image).numpy().tobytes() in every


@pytest.mark.parametrize("name", POLICIES)
def test_operations_then_magnitudes_then_signs_are_equally_likely(name):
    policy = Policy(name, 32, 32, "cpu")
    draws = policy.draw(200_000, torch.Generator().manual_seed(0))
    names = [operation.name for operation in policy.operations]
    probabilities = torch.tensor([1 / 14 / names.count(operation) for operation in names], dtype=torch.float64)
    for column in draws.unbind(1):
        counts = torch.bincount(column, minlength=len(names))
        assert len(counts) == len(names)
        expected = len(column) * probabilities
        deviations = (counts - expected) / (expected * (1 - probabilities)).sqrt()
        assert float(deviations.abs().max()) < 5
        # A uniform distribution has a chi-square statistic near its degrees of freedom.
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - (len(names) - 1)) < 5 * (2 * (len(names) - 1)) ** 0.5


def test_operations_of_an_image_are_drawn_independently():
    policy = Policy("rand_augment", 32, 32, "cpu", num_ops=2)
    size = len(policy.operations)
    first, second = policy.draw(200_000, torch.Generator().manual_seed(0)).unbind(1)
    pairs = torch.bincount(first * size + second, minlength=size * size).view(size, size).double()
    expected = pairs.sum(1, keepdim=True) * pairs.sum(0, keepdim=True) / pairs.sum()
    assert float(((pairs - expected).abs() / expected.sqrt()).max()) < 5


@pytest.mark.parametrize("name", POLICIES)
def test_draws_depend_on_the_generator_only(name):
    policy = Policy(name, 32, 32, "cpu")

    def draws(seed):
        return policy.draw(100, torch.Generator().manual_seed(seed))

    torch.manual_seed(1)
    first = draws(3)
    torch.manual_seed(2)
    assert torch.equal(first, draws(3))
    assert not torch.equal(first, draws(4))
    assert torch.equal(first, Policy(name, 224, 160, "cpu").draw(100, torch.Generator().manual_seed(3)))
    assert first.shape == (100, policy.num_ops)
    assert first.dtype == torch.int64


def test_trivial_augment_has_one_operation_and_ignores_the_settings_of_rand_augment():
    policy = Policy("trivial_augment", 32, 32, "cpu", num_ops=3, magnitude=4)
    assert policy.num_ops == 1
    assert policy.operations == Policy("trivial_augment", 32, 32, "cpu").operations


@pytest.mark.parametrize("name", POLICIES)
def test_an_image_has_the_same_result_alone_and_in_any_batch(name):
    policy = Policy(name, 24, 40, "cpu")
    images = sample_images(24, 40).repeat(20, 1, 1, 1)
    draws = policy.draw(len(images), torch.Generator().manual_seed(2))
    together = policy.apply(images, draws)
    alone = [policy.apply(images[i : i + 1], draws[i : i + 1]) for i in range(len(images))]
    assert torch.equal(together, torch.cat(alone))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    assert torch.equal(together[order], policy.apply(images[order], draws[order]))
    parts = [policy.apply(images[a:b], draws[a:b]) for a, b in pairwise([0, 7, 50, len(images)])]
    assert torch.equal(together, torch.cat(parts))


def test_results_do_not_depend_on_the_number_of_threads():
    images = sample_images(64, 64).repeat(16, 1, 1, 1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            policy = Policy("rand_augment", 64, 64, "cpu", magnitude=30)
            results.append(policy.apply(images, policy.draw(len(images), torch.Generator().manual_seed(5))))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", POLICIES)
def test_the_memory_format_is_kept_and_the_input_is_unchanged(name, memory_format):
    policy = Policy(name, 24, 40, "cpu")
    images = sample_images(24, 40).contiguous(memory_format=memory_format)
    before = images.clone()
    for seed in range(10):
        draws = policy.draw(len(images), torch.Generator().manual_seed(seed))
        results = policy.apply(images, draws)
        assert results.is_contiguous(memory_format=memory_format)
        assert results.dtype == torch.uint8
        assert torch.equal(results, policy.apply(images.contiguous(), draws))
        assert torch.equal(images, before)
        assert results.data_ptr() != images.data_ptr()


def test_strided_images_give_contiguous_results():
    policy = Policy("trivial_augment", 24, 40, "cpu")
    draws = policy.draw(6, torch.Generator().manual_seed(0))
    wide = sample_images(24, 80)
    results = policy.apply(wide[..., ::2], draws)
    assert results.is_contiguous()
    assert torch.equal(results, policy.apply(wide[..., ::2].contiguous(), draws))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (33, 31)])
def test_at_magnitude_0_only_solarize_autocontrast_and_equalize_change_an_image(height, width):
    policy = Policy("rand_augment", height, width, "cpu", magnitude=0)
    image = sample_images(height, width)[1]
    draws = single_draws(policy, torch.arange(len(policy.operations)))
    results = policy.apply(image.expand(len(draws), -1, -1, -1), draws)
    changed = {o.name for o, r in zip(policy.operations, results, strict=True) if not torch.equal(r, image)}
    # Solarize inverts from grey level 255 on, which the dark image lacks.
    assert changed == {"AutoContrast", "Equalize"}


def test_an_empty_batch_gives_an_empty_batch():
    policy = Policy("rand_augment", 32, 32, "cpu")
    draws = policy.draw(0, torch.Generator())
    assert draws.shape == (0, 2)
    assert policy.apply(torch.empty(0, 3, 32, 32, dtype=torch.uint8), draws).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 1, 32, 32), torch.uint8),
        ((2, 4, 32, 32), torch.uint8),
        ((2, 3, 32, 40), torch.uint8),
        ((3, 32, 32), torch.uint8),
        ((2, 3, 32, 32), torch.float32),
    ],
)
def test_images_of_another_shape_or_type_are_an_error(shape, dtype):
    policy = Policy("trivial_augment", 32, 32, "cpu")
    draws = policy.draw(2, torch.Generator())
    with pytest.raises(ValueError, match=r"must be \[B, 3, 32, 32\] torch.uint8") as error:
        policy.apply(torch.zeros(shape, dtype=dtype), draws)
    assert str(list(shape)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "auto_augment"}, "policy is 'auto_augment'"),
        ({"num_ops": 0}, "num_ops is 0"),
        ({"magnitude": -1}, "magnitude is -1"),
        ({"magnitude": 31}, "magnitude is 31"),
        ({"height": 0}, "images are 0 x 32"),
        ({"height": 2**12, "width": 2**12}, "images are 4096 x 4096"),
    ],
)
def test_settings_outside_of_their_range_are_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Policy(**{"name": "rand_augment", "height": 32, "width": 32, "device": "cpu", **arguments})
