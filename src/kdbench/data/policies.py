"""RandAugment and TrivialAugment (Wide) for batches of uint8 images, with an operation drawn for each image.

Operations, ranges and distribution are those of torchvision.transforms.RandAugment and TrivialAugmentWide with 31
magnitudes, nearest interpolation and black fill; the results are those of torchvision's operations on uint8 tensors.
What depends on the magnitude alone is computed by torchvision once, on the CPU: the source of each pixel for geometric
operations, the new value of each grey level for operations on single values. Batches then read these tables.

Shape suffixes: B images of a batch, G images with operations of one kind, P pixels of an image after a black one,
N, C, H, W as usual.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

NUM_MAGNITUDES = 31
MAX_PIXELS = 512 * 512
"""float32 holds every integer up to this one, so images of pixel numbers go through torchvision unrounded."""


class Operation(NamedTuple):
    """An operation with its magnitude."""

    name: str
    magnitude: float
    """In the unit of torchvision's operation, with the sign; 0 where the operation has no magnitude."""


class Range(NamedTuple):
    """Magnitudes of an operation."""

    magnitudes: Tensor
    """[31] for magnitudes 0 to 30, or [1] for an operation without magnitude."""
    signed: bool
    """True if the sign of the magnitude is drawn."""


def rand_augment_ranges(height: int, width: int) -> dict[str, Range]:
    """Return the operations of RandAugment for images of one size."""
    return ranges(0.3, 150.0 / 331.0 * width, 150.0 / 331.0 * height, rotation=30.0, factor=0.9, removed_bits=4)


def trivial_augment_ranges() -> dict[str, Range]:
    """Return the operations of TrivialAugment (Wide)."""
    return ranges(0.99, 32.0, 32.0, rotation=135.0, factor=0.99, removed_bits=6)


def ranges(shear: float, x: float, y: float, rotation: float, factor: float, removed_bits: int) -> dict[str, Range]:
    """Return the 14 operations by name, in torchvision's order.

    Args:
        shear: largest tangent of the angle.
        x: largest translation in x, in pixels.
        y: largest translation in y, in pixels.
        rotation: largest angle in degrees.
        factor: largest change of the factors of Brightness, Color, Contrast and Sharpness from 1.
        removed_bits: largest number of bits that Posterize sets to 0.
    """
    bits = 8 - (torch.arange(NUM_MAGNITUDES) / ((NUM_MAGNITUDES - 1) / removed_bits)).round().int()
    return {
        "Identity": Range(torch.zeros(1), False),
        "ShearX": Range(torch.linspace(0.0, shear, NUM_MAGNITUDES), True),
        "ShearY": Range(torch.linspace(0.0, shear, NUM_MAGNITUDES), True),
        "TranslateX": Range(torch.linspace(0.0, x, NUM_MAGNITUDES), True),
        "TranslateY": Range(torch.linspace(0.0, y, NUM_MAGNITUDES), True),
        "Rotate": Range(torch.linspace(0.0, rotation, NUM_MAGNITUDES), True),
        "Brightness": Range(torch.linspace(0.0, factor, NUM_MAGNITUDES), True),
        "Color": Range(torch.linspace(0.0, factor, NUM_MAGNITUDES), True),
        "Contrast": Range(torch.linspace(0.0, factor, NUM_MAGNITUDES), True),
        "Sharpness": Range(torch.linspace(0.0, factor, NUM_MAGNITUDES), True),
        "Posterize": Range(bits, False),
        "Solarize": Range(torch.linspace(255.0, 0.0, NUM_MAGNITUDES), False),
        "AutoContrast": Range(torch.zeros(1), False),
        "Equalize": Range(torch.zeros(1), False),
    }


def shear_x(images: Tensor, magnitude: float) -> Tensor:
    """Shear images [..., H, W] along x; the magnitude is the tangent of the angle."""
    degrees = math.degrees(math.atan(magnitude))
    return tv.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=[degrees, 0.0], center=[0, 0])


def shear_y(images: Tensor, magnitude: float) -> Tensor:
    """Shear images [..., H, W] along y; the magnitude is the tangent of the angle."""
    degrees = math.degrees(math.atan(magnitude))
    return tv.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, degrees], center=[0, 0])


def translate_x(images: Tensor, magnitude: float) -> Tensor:
    """Move images [..., H, W] along x by whole pixels."""
    return tv.affine(images, angle=0.0, translate=[int(magnitude), 0], scale=1.0, shear=[0.0, 0.0])


def translate_y(images: Tensor, magnitude: float) -> Tensor:
    """Move images [..., H, W] along y by whole pixels."""
    return tv.affine(images, angle=0.0, translate=[0, int(magnitude)], scale=1.0, shear=[0.0, 0.0])


GEOMETRIC: dict[str, Callable[[Tensor, float], Tensor]] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": tv.rotate,
}
"""Operations that move pixels."""
POINTWISE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Brightness": lambda images, magnitude: tv.adjust_brightness(images, 1.0 + magnitude),
    "Posterize": lambda images, magnitude: tv.posterize(images, int(magnitude)),
    "Solarize": tv.solarize,
}
"""Operations that map grey levels to grey levels."""
BLENDED = ("Color", "Contrast", "Sharpness")
"""Operations that mix the image with another one."""


class Policy:
    """RandAugment or TrivialAugment for RGB images of one size.

    Args:
        name: "rand_augment", or "trivial_augment", which has one operation per image and draws its magnitude.
        height: height of the images in pixels.
        width: width of the images in pixels.
        device: device of the images.
        num_ops: operations per image, at least 1; TrivialAugment ignores it.
        magnitude: magnitude of all operations in [0, 30]; TrivialAugment ignores it.

    Raises:
        ValueError: an argument is outside of its range.
    """

    operations: list[Operation]
    """All operations that can be drawn, with magnitude and sign; a draw is an index into this list."""
    num_ops: int

    def __init__(self, name: str, height: int, width: int, device: str, num_ops: int = 2, magnitude: int = 9) -> None:
        if name not in ("rand_augment", "trivial_augment"):
            raise ValueError(f"policy is {name!r}; it must be 'rand_augment' or 'trivial_augment'")
        if num_ops < 1:
            raise ValueError(f"num_ops is {num_ops}; it must be at least 1")
        if not 0 <= magnitude < NUM_MAGNITUDES:
            raise ValueError(f"magnitude is {magnitude}; it must be in [0, {NUM_MAGNITUDES - 1}]")
        if not 0 < height * width <= MAX_PIXELS:
            raise ValueError(f"images are {height} x {width}; they must have 1 to {MAX_PIXELS} pixels")
        self.height = height
        self.width = width
        self.device = torch.device(device)
        if name == "rand_augment":
            self.num_ops = num_ops
            all_ranges = rand_augment_ranges(height, width)
            # Operations without magnitude have one entry, which every magnitude means.
            drawn = {
                operation: Range(values if len(values) == 1 else values[magnitude : magnitude + 1], signed)
                for operation, (values, signed) in all_ranges.items()
            }
        else:
            self.num_ops = 1
            drawn = trivial_augment_ranges()
        self._list_operations(drawn)
        self._build_tables()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return operations for `count` images: [count, num_ops] int64 on the CPU, indices into `operations`.

        Every operation is equally likely, then every magnitude of it, then both signs.
        """
        shape = (count, self.num_ops)
        names = torch.randint(len(self._starts), shape, generator=generator)
        magnitudes = torch.randint(NUM_MAGNITUDES, shape, generator=generator)
        signs = torch.randint(2, shape, generator=generator)
        # Sizes are 1 or 31, and 1 or 2, so that the remainders are uniform too.
        num_magnitudes, num_signs = self._num_magnitudes[names], self._num_signs[names]
        return self._starts[names] + magnitudes % num_magnitudes * num_signs + signs % num_signs

    def apply(self, images_NCHW: Tensor, draws: Tensor) -> Tensor:
        """Return the images after their operations, without waiting for the device.

        Args:
            images_NCHW: [B, 3, H, W] uint8 on the device of the policy; unchanged.
            draws: [B, num_ops] int64 on the CPU, from `draw`; column 0 is applied first.

        Returns:
            [B, 3, H, W] uint8, channels-last in memory where the images are, otherwise contiguous. The result of an
            image depends on its own pixels and draws only.

        Raises:
            ValueError: the images have another shape or type.
        """
        if images_NCHW.shape[1:] != (3, self.height, self.width) or images_NCHW.dtype != torch.uint8:
            raise ValueError(
                f"images are {list(images_NCHW.shape)} {images_NCHW.dtype}; "
                f"they must be [B, 3, {self.height}, {self.width}] torch.uint8"
            )
        assert draws.shape == (len(images_NCHW), self.num_ops)
        channels_last = not images_NCHW.is_contiguous() and images_NCHW.is_contiguous(memory_format=torch.channels_last)
        images = images_NCHW.contiguous()
        selections, table_rows, sizes = self._plan(draws)
        for step in range(self.num_ops):
            # Images with operations of one kind become neighbours.
            images = images.index_select(0, selections[step])
            chunks = zip(images.split(sizes[step]), table_rows[step].split(sizes[step]), self._kinds, strict=True)
            for chunk, rows, apply_kind in chunks:
                if len(chunk) and apply_kind is not None:
                    chunk.copy_(apply_kind(chunk, rows))
        images = images.index_select(0, selections[self.num_ops])
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images

    def _list_operations(self, drawn: dict[str, Range]) -> None:
        """Set `operations`, and for each name the place of its first one and its numbers of magnitudes and signs."""
        self.operations = []
        starts = []
        for name, (magnitudes, signed) in drawn.items():
            starts.append(len(self.operations))
            for magnitude in magnitudes.tolist():
                self.operations += [Operation(name, sign * float(magnitude)) for sign in ((1, -1) if signed else (1,))]
        self._starts = torch.tensor(starts)
        self._num_magnitudes = torch.tensor([len(magnitudes) for magnitudes, _ in drawn.values()])
        self._num_signs = torch.tensor([2 if signed else 1 for _, signed in drawn.values()])

    def _build_tables(self) -> None:
        """Set the kinds of operations, the kind of each operation, its row in the table of the kind, and the tables."""
        kinds: list[tuple[tuple[str, ...], Callable[[Tensor, Tensor], Tensor] | None]] = [
            (("Identity",), None),
            (tuple(GEOMETRIC), self._move_pixels),
            (tuple(POINTWISE), self._look_up),
            (("Color",), self._change_color),
            (("Contrast",), self._change_contrast),
            (("Sharpness",), self._change_sharpness),
            (("AutoContrast",), lambda images, rows: tv.autocontrast(images)),
            (("Equalize",), lambda images, rows: tv2.equalize(images)),
        ]
        self._kinds = [apply_kind for _, apply_kind in kinds]
        kind_of_name = {name: kind for kind, (names, _) in enumerate(kinds) for name in names}
        self._kind_of = torch.tensor([kind_of_name[operation.name] for operation in self.operations])
        self._row_of = torch.zeros_like(self._kind_of)
        for names in (GEOMETRIC, POINTWISE, BLENDED):
            places = torch.tensor([place for place, operation in enumerate(self.operations) if operation.name in names])
            self._row_of[places] = torch.arange(len(places))

        # Pixel 0 is black, for what lies outside of the image; torchvision fills with 0.
        pixels = torch.arange(1, self.height * self.width + 1, dtype=torch.float32).view(1, self.height, self.width)
        maps = [GEOMETRIC[name](pixels, magnitude) for name, magnitude in self.operations if name in GEOMETRIC]
        self._maps = torch.stack(maps).flatten(1).to(torch.int32).to(self.device)
        levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
        tables = [POINTWISE[name](levels, magnitude) for name, magnitude in self.operations if name in POINTWISE]
        self._tables = torch.stack(tables).flatten(1).to(self.device)
        # In float64 and then rounded, as torchvision's Python numbers are when they meet a float32 tensor.
        factors = torch.tensor([1.0 + m for name, m in self.operations if name in BLENDED], dtype=torch.float64)
        self._factors = torch.stack([factors, 1.0 - factors]).to(torch.float32).to(self.device)
        # A tensor, because CUDA multiplies by the reciprocal of a number, which is not always the quotient.
        self._num_pixels = torch.tensor(float(self.height * self.width), device=self.device)

    def _plan(self, draws: Tensor) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Return the order in which images are computed.

        Returns:
            selections [num_ops + 1, B] on the device: places, in the order before, of the images in the order of each
            step, and at last in the order of the batch; rows [num_ops, B] on the device: rows in the tables, in the
            order of the step; for each step, numbers of images of each kind.
        """
        selections, rows, sizes = [], [], []
        places = torch.arange(len(draws))
        for column in draws.unbind(1):
            kinds = self._kind_of[column]
            order = kinds.argsort(stable=True)
            selections.append(places[order])
            rows.append(self._row_of[column[order]])
            sizes.append(kinds.bincount(minlength=len(self._kinds)).tolist())
            places = order.argsort()
        # One upload per batch, from pinned memory, so that the host does not wait for a CUDA device.
        plan = torch.stack([*selections, places, *rows])
        if self.device.type == "cuda":
            plan = plan.pin_memory()
        selected, table_rows = plan.to(self.device, non_blocking=True).split([self.num_ops + 1, self.num_ops])
        return selected, table_rows, sizes

    def _move_pixels(self, images_GCHW: Tensor, rows: Tensor) -> Tensor:
        """Apply geometric operations."""
        sources_GCP = torch.nn.functional.pad(images_GCHW.flatten(2), (1, 0))
        maps = self._maps.index_select(0, rows).long()[:, None].expand(-1, 3, -1)
        return sources_GCP.gather(2, maps).view_as(images_GCHW)

    def _look_up(self, images_GCHW: Tensor, rows: Tensor) -> Tensor:
        """Apply operations that map grey levels to grey levels."""
        tables = self._tables.index_select(0, rows)
        return tables.gather(1, images_GCHW.flatten(1).long()).view_as(images_GCHW)

    def _change_color(self, images_GCHW: Tensor, rows: Tensor) -> Tensor:
        """Change the saturation."""
        return self._blend(images_GCHW, tv.rgb_to_grayscale(images_GCHW), rows)

    def _change_contrast(self, images_GCHW: Tensor, rows: Tensor) -> Tensor:
        """Change the contrast."""
        # Sums of integers do not depend on the order, so on no batch, thread or device. Up to 65,793 pixels they are
        # exact in float32, and the mean is torchvision's.
        sums = tv.rgb_to_grayscale(images_GCHW).sum(dim=(-3, -2, -1), keepdim=True, dtype=torch.int64)
        return self._blend(images_GCHW, sums.float() / self._num_pixels, rows)

    def _change_sharpness(self, images_GCHW: Tensor, rows: Tensor) -> Tensor:
        """Change the sharpness."""
        if self.height <= 2 or self.width <= 2:
            return images_GCHW
        # torchvision's kernel is 5/13 in the centre and 1/13 around it, and the result is rounded. The sums here are
        # integers, exact in float32, and thirteenths are never close to a half, so the rounding is the same; three
        # shifted sums take a twentieth of the time of a convolution on the CPU.
        blurred = images_GCHW.float()
        centre = blurred[..., 1:-1, 1:-1]
        columns = blurred[..., :-2, :] + blurred[..., 1:-1, :] + blurred[..., 2:, :]
        sums = (columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]).add_(centre, alpha=4)
        centre.copy_(sums.div_(13).round_())
        return self._blend(images_GCHW, blurred, rows)

    def _blend(self, images_GCHW: Tensor, others_GCHW: Tensor, rows: Tensor) -> Tensor:
        """Return factor * image + (1 - factor) * other image, with the factor of each image."""
        factors, rest = self._factors.index_select(1, rows)[:, :, None, None, None]
        # Products are rounded before the sum, as torchvision's are.
        return (images_GCHW * factors).add_(others_GCHW * rest).clamp_(0, 255).to(torch.uint8)
