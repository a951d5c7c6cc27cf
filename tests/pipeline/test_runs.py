"""Runs that begin with other runs: fine-tuning, distillation from and into compressed networks, and chains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kdbench
from kdbench.config import RunConfig
from kdbench.data import load
from kdbench.pipeline.compress import compress
from kdbench.pipeline.compress import plan as plan_of
from kdbench.rundir.identity import run_key
from kdbench.rundir.load import load_run
from kdbench.rundir.recorded_config import read_config
from kdbench.runner import compressing
from kdbench.runner import derived as derived_runs
from kdbench.runner.build import build_parts
from kdbench.runner.run import resolve_run
from tests.conftest import complete
from tests.derived import ON_CPU, Copies, compressed, folder_of, summary_of

ON_SHAPES = ("method=ce", "teacher=none", "data.num_train=200", "recipe.epochs=1")


@pytest.mark.parametrize("arm", ["root", "structured", "magnitude"])
def test_a_run_trains_on_from_the_weights_of_its_parent(
    small: Callable[..., RunConfig], copies: Copies, arm: str
) -> None:
    run = copies(*{arm} - {"root"})[arm]
    config, _ = resolve_run(small(*ON_SHAPES, f"parent={run}"))
    assert config.parent is not None
    assert config.parent.run == summary_of(run).run_key
    assert config.student.name == f"{summary_of(run).student}-tuned"
    parts = build_parts(config)
    own = load_file(run / "best.safetensors")
    state = parts.student.body.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)
    images = parts.dataset.test.images.permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (parts.dataset.spec.mean, parts.dataset.spec.std))
    with torch.no_grad():
        logits = parts.student.eval()((images - mean) / std).logits
    np.testing.assert_allclose(logits.numpy(), load_run(run).logits["test_logits"], atol=1e-4)


def test_zeros_of_a_pruned_network_stay_in_a_run_with_weight_decay(
    small: Callable[..., RunConfig], copies: Copies
) -> None:
    run = copies("magnitude")["magnitude"]
    tuned = complete(small(*ON_SHAPES, f"parent={run}", "recipe.weight_decay=0.01", "recipe.momentum=0.9")).path
    before, after = (load_file(path / "best.safetensors") for path in (run, tuned))
    masks = [name for name in before if name.endswith(".mask")]
    assert len(masks) > 8
    for name in masks:
        assert torch.equal(before[name], after[name])
    parameters = [
        (before[n.replace("0.mask", "original")], after[n.replace("0.mask", "original")], before[n]) for n in masks
    ]
    assert any(bool((new[mask] != old[mask]).any()) for old, new, mask in parameters)
    with torch.no_grad():
        body = kdbench.load_student(tuned).network.body
        for name in masks:
            layer = body.get_submodule(name.partition(".parametrizations")[0])
            assert not bool(layer.weight[~before[name]].any())
    assert summary_of(tuned).kind == "train"
    assert summary_of(tuned).parent_key == summary_of(run).run_key


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["structured", pytest.param("int8", marks=pytest.mark.wide)])
def test_a_compressed_network_is_a_teacher(small: Callable[..., RunConfig], copies: Copies, arm: str) -> None:
    run = copies(arm)[arm]
    student = complete(small("method=logit", "data.num_train=200", "recipe.epochs=1", f"teacher.run={run}")).path
    summary = summary_of(student)
    assert summary.teacher_key == summary_of(run).run_key
    assert summary.teacher_test_acc == pytest.approx(summary_of(run).test_acc_best)
    own, taught = load_run(student).logits["test_logits"], load_run(run).logits["test_logits"]
    assert summary.agreement == pytest.approx(float((own.argmax(1) == taught.argmax(1)).mean()))


@pytest.mark.slow
def test_a_pruned_network_is_distilled_into(small: Callable[..., RunConfig], copies: Copies) -> None:
    runs = copies("structured")
    student = complete(
        small("method=logit", "data.num_train=200", "recipe.epochs=1", f"teacher.run={runs['root']}",
              f"parent={runs['structured']}")
    ).path  # fmt: skip
    summary = summary_of(student)
    assert summary.num_params == summary_of(runs["structured"]).num_params
    assert (summary.parent_key, summary.teacher_key) == (
        summary_of(runs["structured"]).run_key,
        summary_of(runs["root"]).run_key,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm", ["structured", "magnitude", "int8", pytest.param("bf16", marks=pytest.mark.wide),
            pytest.param("tuned", marks=pytest.mark.wide)],
)  # fmt: skip
def test_a_compressed_run_loads_as_a_network(copies: Copies, arm: str) -> None:
    run = copies(arm)[arm]
    network = kdbench.load_student(run)
    images = load(read_config(run / "config.yaml").data, "cpu").test.images.permute(0, 3, 1, 2)
    own = load_run(run).logits["test_logits"]
    with torch.no_grad():
        np.testing.assert_allclose(network(images).numpy(), own, atol=1e-4 * float(np.abs(own).max()) + 1e-5)


# Chains

CHAIN = ("chain=[structured,finetune,magnitude]", "finetune.recipe.epochs=1", "structured.ratio=0.25")


def planned_keys(run: Path, *overrides: str) -> list[str]:
    """Return the keys of a chain's runs as they are planned, before any is executed."""
    from kdbench.pipeline.arguments import read_runs
    from kdbench.pipeline.compress import parser_of
    from kdbench.pipeline.steps import read_chain

    given = parser_of().parse_args([str(run)])
    links = plan_of(read_runs([str(run)], [])[0], read_chain([*overrides, *ON_CPU]), given)
    return [link.key for link in links]


@pytest.mark.slow
def test_the_keys_of_a_chain_are_known_before_it_is_executed_and_it_is_done_once(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copies()["root"]
    keys = planned_keys(run, *CHAIN)
    assert len(set(keys)) == 3
    assert compressed(run, *CHAIN) == 0
    found = {summary_of(path).run_key: path for path in run.parent.iterdir() if path.name != run.name}
    assert sorted(found) == sorted(keys)
    for key, path in found.items():
        assert run_key(read_config(path / "config.yaml")) == key
    assert [summary_of(found[key]).parent_key for key in keys] == [summary_of(run).run_key, *keys[:2]]
    assert planned_keys(run, *CHAIN) == keys

    def fail(*_: Any) -> None:
        raise AssertionError("it was done already")

    monkeypatch.setattr(derived_runs, "compress_network", fail)
    assert compressed(run, *CHAIN) == 0


@pytest.mark.slow
def test_an_interrupted_chain_continues_with_the_same_command(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copies()["root"]
    write = compressing.write_compressed
    written: list[str] = []

    def stop_at_magnitude(config: RunConfig, *arguments: Any) -> None:
        assert config.compress is not None
        if config.compress.name == "magnitude" and "magnitude" not in written:
            written.append("magnitude")
            raise KeyboardInterrupt
        written.append(config.compress.name)
        write(config, *arguments)

    monkeypatch.setattr(compressing, "write_compressed", stop_at_magnitude)
    with pytest.raises(KeyboardInterrupt):
        compressed(run, *CHAIN)
    assert written == ["structured", "magnitude"]
    trained = folder_of(run.parent, "-tuned")
    before = (trained / "summary.json").read_bytes()
    assert compressed(run, *CHAIN) == 0
    assert written == ["structured", "magnitude", "magnitude"]
    assert (trained / "summary.json").read_bytes() == before
    assert summary_of(folder_of(run.parent, "-magnitude")).parent_key == summary_of(trained).run_key


@pytest.mark.slow
def test_distillation_in_a_chain_is_from_the_network_of_the_step_before(copies: Copies) -> None:
    run = copies()["root"]
    arguments = ("chain=[structured,distil]", "distil.student=resnet8", "distil.student.widths=[4,4,8,8]",
                 "distil.recipe.epochs=1")  # fmt: skip
    assert compress([str(run), *arguments, *ON_CPU]) == 0
    pruned, student = folder_of(run.parent, "-structured"), next(run.parent.glob("*_from_*"))
    assert summary_of(student).teacher_key == summary_of(pruned).run_key
    assert summary_of(student).method == "logit"
