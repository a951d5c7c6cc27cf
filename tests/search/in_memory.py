"""Searches whose storage is in memory, and whose runs are folders with a summary: nothing is trained."""

from typing import Any

import optuna
from omegaconf import OmegaConf

from kdbench.search.options import Options
from kdbench.search.search import Search
from kdbench.search.settings import SearchKeys, read_keys
from kdbench.search.space import read_space
from kdbench.search.trials import Arm, Members
from tests.messages_of_search import KEYS

OPTIONS = {"recipe=short": {"epochs": 3}, "recipe=paper": {"epochs": 9}}


def node(overrides: tuple[str, ...]) -> Any:
    """Compose a config whose recipe is short by default, and whose method logit has a key of its own."""
    recipe = next((OPTIONS[o] for o in overrides if o.startswith("recipe=")), OPTIONS["recipe=short"])
    method = {"temperature": 4} if "method=logit" in overrides else {}
    return OmegaConf.create({"recipe": recipe | {"lr": 0.1}, "method": method, "picked": "method=logit" in overrides})


def keys(**changes: Any) -> SearchKeys:
    return read_keys(KEYS | {"n_trials": 16} | changes)


def arm_of(*space: str, **changes: Any) -> Arm:
    study = optuna.create_study(direction="maximize")
    options = Options(read_space(list(space)), lambda _: None, node)
    return Arm(study, study._storage, options, keys(**changes), "")


def search_of(arm: Arm, members: Members) -> Search:
    return Search("s", "", arm.keys, ["val_acc"], [arm], members, None, None, waits=False)


def tell_complete(arm: Arm, score: float = 0.5, run: str = "", **attributes: Any) -> None:
    """Draw a trial and record it as complete."""
    drawn = arm.draw("here")
    assert drawn is not None
    own = {"status": "complete", "run": run, "scores": {"val_acc": score}}
    arm.set_attrs(drawn.number, own | attributes)
    arm.study.tell(drawn.number, score)
