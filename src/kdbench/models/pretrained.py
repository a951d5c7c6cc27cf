"""First weights of a network: a file, or weights that torchvision or timm publish; the classifier stays fresh."""

import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn

from kdbench.config.sections import ModelConfig
from kdbench.errors import ConfigError, first_line, nearest
from kdbench.models.checkpoint_files import read_checkpoint
from kdbench.models.weights import is_counter, load_state


def weights_file(config: ModelConfig) -> Path:
    """Return the file of a network's first weights, fetched into the cache of torch or Hugging Face if it is not there.

    Args:
        config: an architecture with `weights`: a file; or of torchvision's and timm's networks, DEFAULT or a name.

    Raises:
        ConfigError: there are no such weights, or they cannot be fetched.
    """
    case = (config.target, repr(config.arguments), str(config.weights), str(torch.hub.get_dir()))
    if case not in _files or not _files[case].is_file():
        _files[case] = find_file(config)
    return _files[case]


_files: dict[tuple[str, str, str, str], Path] = {}
"""Files that this process has found."""


def find_file(config: ModelConfig) -> Path:
    """Find or fetch the file of a network's first weights. Errors: see `weights_file`."""
    assert config.weights is not None
    path = Path(config.weights).expanduser()
    if path.is_file():
        return path
    published = config.target.rpartition(".")[2]
    if config.target.startswith("torchvision.models."):
        return fetch_torchvision(published, config)
    if config.target == "kdbench.models.resnet.torchvision_resnet":
        return fetch_torchvision(str(config.arguments.get("arch")), config)
    if config.target.startswith("timm."):
        return fetch_timm(str(config.arguments.get("model_name", published)), config)
    raise refusal(
        config, f"there is no such file; {config.target} is not of torchvision or timm, whose weights have names"
    )


log = logging.getLogger(__name__)


def refusal(config: ModelConfig, problem: str) -> ConfigError:
    """Return the error for first weights that cannot be used."""
    return ConfigError(f"weights={config.weights} of {config.name}: {problem}", code="not_found", key="weights")


def fetch_torchvision(name: str, config: ModelConfig) -> Path:
    """Return the file of weights that torchvision publishes."""
    try:
        members: Any = torchvision.models.get_model_weights(name)
    except ValueError:
        raise refusal(config, f"there is no such file, and torchvision publishes none for {name}") from None
    wanted = str(config.weights).rpartition(".")[2]  # the name of the enumeration may stand before
    if wanted not in members.__members__:
        raise refusal(config, f"there is no such file or name; {nearest(wanted, members.__members__)}")
    url = members[wanted].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), file.stem.rpartition("-")[2], progress=False)
        except Exception as error:  # of the network or the disk
            raise refusal(config, f"{url} cannot be fetched: {first_line(error)}; give its file") from None
    return file


def fetch_timm(name: str, config: ModelConfig) -> Path:
    """Return the file of weights that timm publishes: DEFAULT, or a tag such as augreg_in21k."""
    try:
        from huggingface_hub import hf_hub_download
        from timm.models import get_pretrained_cfg
    except ImportError:
        raise refusal(config, "timm is not installed: pip install 'kdbench[timm]'") from None
    full = name if config.weights == "DEFAULT" else f"{name.partition('.')[0]}.{config.weights}"
    try:
        published = get_pretrained_cfg(full, allow_unregistered=False)
    except Exception:  # types differ among versions
        published = None
    if published is None or not published.hf_hub_id:
        raise refusal(config, f"there is no such file, and timm publishes no {full}")
    place = (published.hf_hub_id, published.hf_hub_filename or "model.safetensors")
    try:
        return Path(hf_hub_download(*place, local_files_only=True))  # without a request, where it is there
    except Exception:  # types differ among versions
        log.info("weights=%s: fetching %s", config.weights, published.hf_hub_id)
    try:
        return Path(hf_hub_download(*place))
    except Exception as error:  # of the network or the disk
        raise refusal(config, f"{published.hf_hub_id} cannot be fetched: {first_line(error)}; give its file") from None


def load_pretrained(body: nn.Module, config: ModelConfig, num_classes: int) -> list[str]:
    """Load a network's first weights in place; tensors of a classifier for other classes stay as they are.

    Args:
        body: the architecture's own module, freshly initialised.
        config: its config, with `weights`.
        num_classes: C of the logits.

    Returns:
        Remarks for the user.

    Raises:
        ConfigError: they cannot be read, or do not fit in more than the classifier.
    """
    file, own = weights_file(config), body.state_dict()
    try:
        loaded, remarks = read_checkpoint(file, own, None, head_of=num_classes)
    except ConfigError as error:
        several = "it holds several sets of weights that fit; give a file with one"
        problem = several if error.code == "ambiguous" else error
        raise ConfigError(
            f"student.weights={config.weights} of {config.name}: {problem}", code=error.code, key="student.weights"
        ) from None
    fresh = [name for name in own if name not in loaded and not is_counter(name)]
    load_state(body, loaded)
    return [*remarks, f"{file.name} loaded" + (f"; new: {', '.join(fresh)}" if fresh else "")]
