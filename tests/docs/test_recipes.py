"""The examples of docs/recipes.md: files as written, and commands as given but for the sizes of the tests."""

from pathlib import Path

import pytest

from kdbench.runner.run import check_run
from tests.conftest import complete
from tests.docs.examples import commands_of, config_of, use_random_images
from tests.docs.test_docs import CHECKOUT, README, write_files

PAGE = CHECKOUT / "docs" / "recipes.md"
METHODS = CHECKOUT / "docs" / "methods.md"
COMMANDS = commands_of(PAGE)
QUICK = (0,)
"""Numbers of the commands that are executed every day."""


def sizes_of(command: str) -> list[str]:
    """Return fewer epochs than those of a command, and narrower networks."""
    sizes = ["data.num_train=100"] if "cifar100" in command else ["data.num_train=32"]
    if "data=" not in command and "experiment=" not in command:
        sizes.append("data=shapes")
    if "x4" in command:
        sizes += ["student.widths=[8,8,16,32]", "teacher.widths=[8,8,16,32]"]
    if "milestones" in command:
        return sizes
    if "wrn" in command:
        sizes += ["student.depth=10", "teacher.depth=10"]
    if "recipe=crd" in command or "experiment=crd" in command:
        milestones = "milestones=[1,2,3]"
        return [
            *sizes,
            "recipe.epochs=4",
            "teacher.recipe.epochs=4",
            f"recipe.{milestones}",
            f"teacher.recipe.{milestones}",
        ]
    epochs = 10 if "warmup_epochs=9" in command else 6 if "vit" in command else 2
    return [*sizes, f"recipe.epochs={epochs}", "teacher.recipe.epochs=1"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page, the README and docs/methods.md show."""
    for page in (PAGE, README, METHODS):
        write_files(page, tmp_path)
    use_random_images(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n in QUICK else pytest.mark.wide) for n in range(len(COMMANDS))]
)
def test_commands_run_as_given(number: int, files: Path) -> None:
    config = config_of(COMMANDS[number], sizes_of(COMMANDS[number]), files)
    check_run(config)
    assert complete(config).is_complete()


def test_every_command_of_the_page_is_a_case() -> None:
    assert len(COMMANDS) == PAGE.read_text().count("\nkdbench ")


def test_table_of_keys_lists_every_key_of_a_recipe() -> None:
    from dataclasses import fields

    from kdbench.config import RecipeConfig

    section = PAGE.read_text().split("## Keys")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = [name for cell in cells for name in cell.replace("`", "").replace(",", "").split()]
    assert sorted(listed) == sorted(f.name for f in fields(RecipeConfig))
