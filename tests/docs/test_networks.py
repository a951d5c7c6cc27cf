"""The examples of docs/networks.md: files as written, and commands as given but for the sizes of the tests."""

import shlex
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from kdbench.config import RunConfig, compose
from kdbench.runner.run import check_run
from tests.conftest import SMALL, complete
from tests.docs.test_docs import CHECKOUT, blocks, command_lines, write_files

PAGE = CHECKOUT / "docs" / "networks.md"
SIZES = [override for override in SMALL if not override.startswith(("student=", "teacher="))]
COMMANDS = [" ".join(map(shlex.quote, words)) for words in command_lines(PAGE) if words[0] == "kdbench"]
QUICK = (0,)
"""Numbers of the commands that are executed every day."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page shows, and those that its commands name."""
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def write_weights(folder: Path) -> None:
    """Write the files with weights that the commands name."""
    from my_networks import Net  # type: ignore[import-not-found]  # shown in the page

    torch.manual_seed(0)
    save_file(Net(1000).state_dict(), folder / "net_imagenet.safetensors")
    weights, average = Net(10).state_dict(), Net(10).state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": prefixed, "epoch": 9}, folder / "epoch=9-step=100.ckpt")
    torch.save(prefixed, folder / "teacher.pth")
    torch.save({"state_dict": weights, "state_dict_ema": average}, folder / "both.pth")
    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    published = Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    torch.save(torchvision.models.resnet18().state_dict(), cache / published)


def config_of(command: str, folder: Path) -> RunConfig:
    """Return the config of a command, small, with its output in a folder."""
    words = shlex.split(command)
    config_dir = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
    overrides = [word for word in words[1:] if "=" in word]
    if any(word.startswith("teacher.checkpoint_key") for word in overrides):
        overrides = [word.replace("teacher.pth", "both.pth") for word in overrides]
    return compose([*SIZES, *overrides, f"output_root={folder / 'out'}"], config_dir)


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n in QUICK else pytest.mark.wide) for n in range(len(COMMANDS))]
)
def test_commands_run_as_given(number: int, files: Path) -> None:
    write_weights(files)
    config = config_of(COMMANDS[number], files)
    check_run(config)
    assert complete(config).is_complete()


def test_stored_weights_load_as_shown(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("kdbench --config-dir my_configs student=net teacher=none method=ce", files)
    complete(config).path.rename(files / "run")
    (block,) = [block for block in blocks(PAGE, "python") if "load_state_dict" in block]
    exec(compile(block, str(PAGE), "exec"), {})


def test_every_command_of_the_page_is_a_case() -> None:
    assert len(COMMANDS) == PAGE.read_text().count("\nkdbench ")
