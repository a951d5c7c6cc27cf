"""Construction of networks from their configs."""

from collections.abc import Sequence

from kdbench.config.sections import ModelConfig
from kdbench.data.source import DataSpec
from kdbench.errors import ConfigError
from kdbench.models.builders import build_body
from kdbench.models.describe import summarize
from kdbench.models.network import Network


def build(
    config: ModelConfig, spec: DataSpec, stages: Sequence[str] = (), key: str = "student", trained: bool = True
) -> Network:
    """Return a freshly initialised network that computes logits and `stages`.

    Random numbers come from the global generators, as in torchvision's models.

    Args:
        config: the architecture.
        spec: number of classes and shape of the images.
        stages: names from `config.stages`.
        key: place of the architecture in the run's config, for errors.
        trained: whether it is to be trained; see `summarize`.

    Raises:
        ConfigError: see `summarize`; or a stage cannot be used.
    """
    summary = summarize(config, spec, key, trained)
    for stage in stages:
        if stage in summary.refused:
            raise ConfigError(
                f"{key}.stages.{stage}: {summary.refused[stage]}", code="unusable_stage", key=f"{key}.stages.{stage}"
            )
    wanted = {stage: summary.sources[stage] for stage in stages}
    return Network(
        build_body(config, spec.num_classes, spec.input_shape, key),
        wanted,
        summary.logits,
        repr(
            (
                config.target,
                summary.builder,
                config.arguments,
                spec.num_classes,
                spec.input_shape,
                summary.logits,
                wanted,
            )
        ),
        summary.fusable,
        summary.host_random,
        summary.changing,
        summary.own_code,
    )
