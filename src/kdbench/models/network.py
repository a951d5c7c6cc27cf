"""One wrapper for every architecture: its forward pass returns logits and the selected stages."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import hydra.utils
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from kdbench.config.sections import ModelConfig
from kdbench.errors import ConfigError, first_line, nearest


class Output(NamedTuple):
    """Output of a network for a batch."""

    logits: Tensor
    """[N, C]."""
    features: Mapping[str, Tensor]
    """Stage name to maps [N, C, H, W] or embeddings [N, D]; only the stages that the network was built with."""


class Network(nn.Module):
    """A network with named stages.

    Args:
        body: the architecture's own module tree, with its own state-dict names.
        logits: node of the logits.
        stages: node of each stage.
        architecture: text that is the same for networks that compute the same function of images and weights.
    """

    def __init__(self, body: nn.Module, logits: str, stages: Mapping[str, str], architecture: str) -> None:
        super().__init__()
        self.body = body
        self.architecture = architecture
        self.logits = logits
        self.stages = dict(stages)

    def forward(self, images: Tensor) -> Output:
        """Return logits and stages of images [N, C, H, W]."""
        nodes = self.body(images)
        return Output(nodes[self.logits], {stage: nodes[node] for stage, node in self.stages.items()})


@dataclass(frozen=True)
class ModelSummary:
    """Properties of an architecture that are known without training or allocating it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Stage name to the shape of one image's output, without the batch dimension."""
    num_params: int
    macs: int
    """Multiply-accumulates of one image's forward pass, in convolutions and matrix products."""


def build(config: ModelConfig, num_classes: int, stages: Sequence[str] = (), key: str = "student") -> Network:
    """Return a freshly initialised network that computes logits and `stages`.

    Random numbers come from torch's global generator, as in torchvision's models.

    Args:
        config: the architecture.
        num_classes: C of the logits.
        stages: names from `config.stages`.
        key: place of the architecture in the run's config, for errors.

    Raises:
        ConfigError: the architecture cannot be built from its arguments, or has no such node.
    """
    try:
        raw = hydra.utils.get_method(config.target)(**config.arguments, num_classes=num_classes)
        # The last node gives the logits; names are the same in training and in evaluation.
        nodes = get_graph_node_names(raw, suppress_diff_warning=True)[0]
    except Exception as error:
        given = ", ".join(f"{name}={value}" for name, value in config.arguments.items())
        inner = f"{key}.{error.key}" if isinstance(error, ConfigError) and error.key else key
        code = error.code if isinstance(error, ConfigError) else "not_buildable"
        raise ConfigError(
            f"{key}={config.name}: {config.target}({given}) failed: {first_line(error)}", code=code, key=inner
        ) from error
    wanted = {stage: config.stages[stage] for stage in stages}
    for node in wanted.values():
        if not any(name == node or name.startswith(f"{node}.") for name in nodes):
            outermost = dict.fromkeys(name.partition(".")[0] for name in nodes)
            raise ConfigError(
                f"{key}.stages: there is no node {node!r}; {nearest(node, nodes)}; "
                f"outermost nodes: {', '.join(outermost)}",
                code="not_found",
                key=f"{key}.stages",
            )
    returned = {node: node for node in (*wanted.values(), nodes[-1])}
    body = create_feature_extractor(raw, return_nodes=returned, suppress_diff_warning=True)
    keep_stages(body)
    architecture = repr((config.target, config.arguments, num_classes, wanted))
    return Network(body, nodes[-1], wanted, architecture)


def keep_stages(body: Any) -> None:
    """Keep in-place operations from overwriting a stage's output: the next node may be an in-place activation."""
    for graph in (body.train_graph, body.eval_graph):  # torchvision keeps one for each mode
        outputs = next(node for node in graph.nodes if node.op == "output").args[0]
        for node in outputs.values():
            for user in list(node.users):  # changing one registers it anew
                if user.op == "call_module" and getattr(body.get_submodule(user.target), "inplace", False):
                    body.get_submodule(user.target).inplace = False
                elif user.kwargs.get("inplace"):
                    user.kwargs = {**user.kwargs, "inplace": False}
                elif user.target is operator.iadd and user.args[0] is node:
                    user.target = operator.add
    body.recompile()


_summaries: dict[str, ModelSummary] = {}


def summarize(config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], key: str) -> ModelSummary:
    """Return shapes, parameters and MACs of an architecture, from a pass without memory or arithmetic.

    The result is kept for the next run of the process.

    Raises:
        ConfigError: the architecture cannot be built, or cannot process such images.
    """
    case = repr((config.target, config.arguments, config.stages, num_classes, image_shape))
    if case not in _summaries:
        _summaries[case] = summarize_fresh(config, num_classes, image_shape, key)
    return _summaries[case]


def summarize_fresh(config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], key: str) -> ModelSummary:
    """Compute the summary of an architecture; see `summarize`."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build(config, num_classes, tuple(config.stages), key).eval()
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                output = network(torch.empty(1, *image_shape))
        except Exception as error:
            raise ConfigError(
                f"{key}={config.name} cannot process images of {image_shape}: {first_line(error)}",
                code="mismatch",
                key=key,
            ) from error
    return ModelSummary(
        shapes={stage: tuple(output.features[stage].shape[1:]) for stage in config.stages},
        num_params=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2,
    )
