"""Construction of networks from their configs."""

from collections.abc import Sequence

from kdbench.config.sections import ModelConfig
from kdbench.data.dataset import IMAGE_SHAPE
from kdbench.errors import ConfigError
from kdbench.models.builders import build_body
from kdbench.models.describe import summarize
from kdbench.models.network import Network


def build(
    config: ModelConfig, num_classes: int, stages: Sequence[str] = (), key: str = "student", trained: bool = True
) -> Network:
    """Return a freshly initialised network that computes logits and `stages`.

    Random numbers come from the global generators, as in torchvision's models.

    Args:
        config: the architecture.
        num_classes: C of the logits.
        stages: names from `config.stages`.
        key: place of the architecture in the run's config, for errors.
        trained: whether it is to be trained; see `summarize`.

    Raises:
        ConfigError: see `summarize`; or a stage cannot be used.
    """
    summary = summarize(config, num_classes, IMAGE_SHAPE, key, trained)
    for stage in stages:
        if stage in summary.refused:
            raise ConfigError(
                f"{key}.stages.{stage}: {summary.refused[stage]}", code="unusable_stage", key=f"{key}.stages.{stage}"
            )
    wanted = {stage: summary.sources[stage] for stage in stages}
    return Network(
        build_body(config, num_classes, IMAGE_SHAPE, key),
        wanted,
        summary.logits,
        repr((config.target, summary.builder, config.arguments, num_classes, summary.logits, wanted)),
        summary.fusable,
        summary.host_random,
        summary.changing,
        summary.own_code,
    )
