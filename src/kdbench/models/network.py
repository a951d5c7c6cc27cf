"""One wrapper for every architecture: a forward that answers logits and the stages one asked for."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import hydra.utils
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from kdbench.config import ModelConfig
from kdbench.errors import ConfigError, first_line, nearest


class Output(NamedTuple):
    """What a network says of a batch."""

    logits: Tensor
    """[N, C]."""
    features: Mapping[str, Tensor]
    """Stage name to maps [N, C, H, W] or embeddings [N, D]; only the stages that the network was built with."""


class Network(nn.Module):
    """A network with named stages. `body` is the architecture's own module tree, with its own state-dict names.

    `architecture` is the same for networks that compute the same function of images and weights.
    """

    def __init__(self, body: nn.Module, logits: str, stages: Mapping[str, str], architecture: str) -> None:
        super().__init__()
        self.body = body
        self.architecture = architecture
        self.logits = logits
        self.stages = dict(stages)

    def forward(self, images: Tensor) -> Output:
        nodes = self.body(images)
        return Output(nodes[self.logits], {stage: nodes[node] for stage, node in self.stages.items()})


@dataclass(frozen=True)
class Description:
    """What can be known of an architecture without training or even allocating it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Stage name to the shape of one image's output, without the batch dimension."""
    num_params: int
    macs: int
    """Multiply-accumulates of one image's forward pass, in convolutions and matrix products."""


def build(config: ModelConfig, num_classes: int, stages: Sequence[str] = (), key: str = "student") -> Network:
    """A freshly initialised network that answers logits and `stages`.

    Initialisation draws from torch's global generator, as torchvision's models do.

    Args:
        config: The architecture.
        num_classes: C of the logits.
        stages: Names from `config.stages`.
        key: Where the architecture stands in the run's config, for errors.

    Raises:
        ConfigError: the architecture cannot be built from its arguments, or has no such node.
    """
    try:
        raw = hydra.utils.get_method(config.target)(**config.arguments, num_classes=num_classes)
        # The network's last node is its answer; names are the same in training and in evaluation.
        nodes = get_graph_node_names(raw, suppress_diff_warning=True)[0]
    except Exception as error:
        given = ", ".join(f"{name}={value}" for name, value in config.arguments.items())
        raise ConfigError(f"{key}={config.name}: {config.target}({given}) fails: {first_line(error)}") from error
    wanted = {stage: config.stages[stage] for stage in stages}
    for node in wanted.values():
        if not any(name == node or name.startswith(f"{node}.") for name in nodes):
            outermost = dict.fromkeys(name.partition(".")[0] for name in nodes)
            raise ConfigError(
                f"{key}.stages names the node {node!r}; {nearest(node, nodes)}; outermost ones: {', '.join(outermost)}"
            )
    answers = {node: node for node in (*wanted.values(), nodes[-1])}
    body = create_feature_extractor(raw, return_nodes=answers, suppress_diff_warning=True)
    keep_stages(body)
    architecture = repr((config.target, config.arguments, num_classes, wanted))
    return Network(body, nodes[-1], wanted, architecture)


def keep_stages(body: Any) -> None:
    """Let nothing overwrite a stage's output: what comes next in the graph may be an activation that works in place."""
    for graph in (body.train_graph, body.eval_graph):  # torchvision keeps one for each mode
        answers = next(node for node in graph.nodes if node.op == "output").args[0]
        for node in answers.values():
            for user in list(node.users):  # changing one registers it anew
                if user.op == "call_module" and getattr(body.get_submodule(user.target), "inplace", False):
                    body.get_submodule(user.target).inplace = False
                elif user.kwargs.get("inplace"):
                    user.kwargs = {**user.kwargs, "inplace": False}
                elif user.target is operator.iadd and user.args[0] is node:
                    user.target = operator.add
    body.recompile()


_described: dict[str, Description] = {}


def describe(config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], key: str) -> Description:
    """Shapes, parameters and MACs of an architecture, from a pass without memory or arithmetic; kept for the next run.

    Raises:
        ConfigError: it cannot be built, or cannot take such images.
    """
    known = repr((config.target, config.arguments, config.stages, num_classes, image_shape))
    if known not in _described:
        _described[known] = describe_fresh(config, num_classes, image_shape, key)
    return _described[known]


def describe_fresh(config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], key: str) -> Description:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build(config, num_classes, tuple(config.stages), key).eval()
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                output = network(torch.empty(1, *image_shape))
        except Exception as error:
            raise ConfigError(
                f"{key}={config.name} cannot take images of {image_shape}: {first_line(error)}"
            ) from error
    return Description(
        shapes={stage: tuple(output.features[stage].shape[1:]) for stage in config.stages},
        num_params=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2,
    )
