"""The hash of the user's code covers every way in which an import path can name it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdbench.rundir.source import is_local, source_identity

NETWORKS = """
import functools
from kdbench.models.cifar_resnet import CifarResNet

class Builder:
    def __call__(self, num_classes):
        return num_classes

    @classmethod
    def build(cls, num_classes):
        return num_classes

def build(width, num_classes):
    return width

narrow = functools.partial(build, WIDTH)
shared = functools.partial(CifarResNet, WIDTH)
instance = Builder()
"""


@pytest.fixture
def identity_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], dict[str, str]]]:
    """Return the source identity of a name in a module that is written with a width and imported anew."""
    monkeypatch.syspath_prepend(tmp_path)

    def identity(name: str, width: int) -> dict[str, str]:
        (tmp_path / "own_networks.py").write_text(NETWORKS.replace("WIDTH", str(width)))
        sys.modules.pop("own_networks", None)
        return source_identity(f"own_networks.{name}")

    yield identity
    sys.modules.pop("own_networks", None)


@pytest.mark.parametrize("name", ["build", "Builder", "narrow", "shared", "instance", "Builder.build"])
def test_an_edited_module_has_another_hash(identity_with: Callable[[str, int], dict[str, str]], name: str) -> None:
    first, edited, again = identity_with(name, 8), identity_with(name, 99), identity_with(name, 8)
    assert first.keys() == {"source_sha256"}
    assert first == again != edited


def test_a_class_of_kdbench_has_a_hash_only_where_own_code_names_it(
    identity_with: Callable[[str, int], dict[str, str]],
) -> None:
    own = "kdbench.models.cifar_resnet.CifarResNet"
    assert source_identity(own) == {}
    assert identity_with("shared", 8).keys() == {"source_sha256"}
    assert source_identity(own) == {}


def test_code_beside_the_libraries_of_an_environment_is_own_code() -> None:
    """A virtual environment may have been made in the folder of a project."""
    assert is_local(Path(sys.prefix) / "my_methods.py")
    assert not is_local(Path(pytest.__file__))
