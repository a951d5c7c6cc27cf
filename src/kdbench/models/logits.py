"""The logits among what a network returns and computes: which they are, and what is wrong with them."""

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.config.sections import ModelConfig
from kdbench.errors import ConfigError
from kdbench.models.network import LogitsKey, StageSource, select_logits
from kdbench.models.record import ForwardRecord, tensors_of
from kdbench.models.stages import Pass, describe_value, module_source, shape_text
from kdbench.system.random import seeded


class LogitsFinder:
    """Search for the logits of one network.

    Args:
        config: its architecture.
        key: place of the architecture in the run's config, for errors.
        body: the network.
        images: batch [N, C, H, W] of the recorded passes; N is not the number of classes.
        num_classes: number of classes.
    """

    def __init__(self, config: ModelConfig, key: str, body: nn.Module, images: Tensor, num_classes: int) -> None:
        self.wanted = config.logits
        self.target = config.target
        self.key = key
        self.name = f"{key}={config.name}"
        self.body = body
        self.images = images
        self.size = len(images)
        self.num_classes = num_classes

    def find(self, one: Pass, mode: str) -> StageSource | LogitsKey:
        """Return the source of the logits: the key of the config, or the only tensor, or an entry `logits`.

        Raises:
            ConfigError: there are several tensors and no key, or the key names none of them.
        """
        found, wanted, calls = tensors_of(one.returned), self.wanted, one.record.calls
        own = isinstance(one.returned, Tensor) and mode == "evaluation"  # it may return several in training
        if isinstance(wanted, list):
            places = tuple(map(str, wanted))
            if own or all(self.are_logits(found.get(place)) for place in places):
                return places
        elif wanted is not None:
            place = str(wanted)
            if place in found:
                return place
            if len(calls.get(place, ())) == 1 and isinstance(calls[place][0].output, Tensor):
                return module_source(self.body, place, StageSource("output", place), None, [one])
            if own:  # the pass in training mode shows whether there is such a place
                return place
        elif len(found) == 1 or "logits" in found:
            return None
        raise self.ambiguous(one, mode)

    def ambiguous(self, one: Pass, mode: str) -> ConfigError:
        """Return the error for logits that are not clear, with the candidates."""
        wanted = self.wanted
        return ConfigError(
            f"{self.name} returns {describe_value(one.returned)} in {mode} mode"
            + ("" if wanted is None else f", where {self.key}.logits={wanted} is not [N, {self.num_classes}]")
            + f"; say which are the logits with {self.key}.logits=: {self.candidates(one)}",
            code="ambiguous_logits",
            key=f"{self.key}.logits",
        )

    def candidates(self, one: Pass) -> str:
        """Return the places that hold float tensors [N, num_classes], in words."""
        returned = [place for place, tensor in tensors_of(one.returned).items() if place and self.are_logits(tensor)]
        calls = one.record.calls
        modules = [path for path in calls if len(calls[path]) == 1 and self.are_logits(calls[path][0].output)]
        mean = [f"[{','.join(returned)}] (their mean)"] if len(returned) > 1 else []
        several = list(dict.fromkeys([*returned, *mean, *modules]))
        return ", ".join(several) or f"nothing that it computes is [N, {self.num_classes}]"

    def are_logits(self, value: Any) -> bool:
        """Return whether a value is a float tensor [N, num_classes]."""
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return is_float and tuple(value.shape) == (self.size, self.num_classes)

    def take(self, logits: StageSource | LogitsKey, one: Pass) -> Tensor:
        """Return the logits of a recorded pass."""
        if isinstance(logits, StageSource):
            return one.tensor(logits)
        return one.returned if isinstance(one.returned, Tensor) else select_logits(one.returned, logits)

    def check(self, logits: Tensor, mode: str) -> None:
        """Check that logits are a float tensor [N, num_classes].

        Raises:
            ConfigError: they are not.
        """
        if self.are_logits(logits):
            return
        first = logits.shape[:1] == (self.size,)
        shape = shape_text(logits) if first else f"{list(logits.shape)} for {self.size} images"
        raise ConfigError(
            f"{self.name} gives logits {shape} of {logits.dtype} in {mode} mode; they must be float "
            f"[N, {self.num_classes}]: {self.target} must use the argument num_classes, or say with "
            f"{self.key}.logits which output they are",
            code="wrong_logits",
            key=self.key,
        )

    def dropped(self, logits: StageSource | LogitsKey, training: Pass) -> list[str]:
        """Return a remark on what the network returns in training mode and that is not used, if there is any."""
        found = tensors_of(training.returned)
        if isinstance(logits, StageSource):
            used = {logits.path}
        elif logits is None:
            used = {"logits"} if "logits" in found else set(found)
        else:
            used = {logits} if isinstance(logits, str) else set(logits)
        taken = self.take(logits, training)
        others = [place or "its output" for place, t in found.items() if place not in used and t is not taken]
        if not others:
            return []
        chosen = ", ".join(sorted(used))
        text = f"{self.name}: logits: {chosen}; not used of what it returns in training: {', '.join(others)}"
        if unreached := self.unreached(logits):
            text += f"; its evaluation uses {', '.join(unreached[:4])}, which no gradient reaches in training"
        return [text]

    def unreached(self, logits: StageSource | LogitsKey) -> list[str]:
        """Return the parameters on which the logits depend in evaluation mode and not in training mode."""
        named = {name: p for name, p in self.body.named_parameters() if p.requires_grad}
        if not named:
            return []
        reached = []
        for train in (False, True):
            self.body.train(train)
            with ForwardRecord(self.body) as record, seeded(0), torch.enable_grad():
                one = Pass(record, self.body(self.images))
            gradients = torch.autograd.grad(self.take(logits, one).sum(), list(named.values()), allow_unused=True)
            reached.append({name for name, gradient in zip(named, gradients, strict=True) if gradient is not None})
        return [name for name in named if name in reached[0] - reached[1]]
