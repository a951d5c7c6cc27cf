"""Half precision: every weight and every operation in 16 bits."""

import dataclasses
from dataclasses import dataclass

from kdbench.compress.base import Compressed, Compression, Subject
from kdbench.config.schema import one_of
from kdbench.errors import ConfigError
from kdbench.models.compressed import FLOATS, base_of, half_precision

TARGET = f"{half_precision.__module__}.{half_precision.__qualname__}"


class HalfPrecision(Compression):
    """Conversion of weights, buffers and all operations to a 16-bit type; images and logits stay float32.

    Its network has no stages: they would be in 16 bits too, where methods compute in 32.
    """

    @dataclass
    class Config:
        dtype: str = one_of(*FLOATS)

    trainable = False
    after_masks = True

    def apply(self, subject: Subject) -> Compressed:
        state = subject.body.to(FLOATS[self.config.dtype]).state_dict()
        wrong = next((name for name, tensor in state.items() if not bool(tensor.isfinite().all())), None)
        if wrong is not None:
            raise ConfigError(
                f"compress={self.config.dtype}: {wrong} of {subject.model.name} has values beyond the range of "
                f"{self.config.dtype}; use bf16",
                code="out_of_range",
                key=self.config.dtype,
            )
        arguments = {"base": base_of(subject.model), "dtype": self.config.dtype}
        return Compressed(dataclasses.replace(subject.model, target=TARGET, arguments=arguments, stages={}), state)
