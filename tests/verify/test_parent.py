"""Runs of every kind against their parents: what passes, and which changes by hand are found."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdbench.pipeline.measure import measure
from kdbench.rundir.files import sha256
from kdbench.rundir.summary import read_unverified
from kdbench.runner import measuring
from kdbench.verify.checks import NOT_CHECKED, PASS
from kdbench.verify.command import verify_runs
from kdbench.verify.parent import PARENT
from tests.conftest import rest_wide
from tests.derived import ON_CPU, Copies
from tests.verify.conftest import checked, edit_logits, edit_summary, flip_test_logits, rewrite_summary

Change = Callable[[Path], None]


def measured(run: Path) -> Path:
    """Measure a run and return the new run directory."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "peak_memory", lambda *_: 12345)
        assert measure([str(run), "rounds=3", "batches=[1]", "engines=[torch]", *ON_CPU]) == 0
    (found,) = run.parent.glob("*_measured_*")
    return found


def zero_a_weight(run: Path) -> None:
    """Set weights to zero that were not, and the hash of the file with them."""
    file = run / "best.safetensors"
    state = load_file(file)
    name = next(name for name, value in state.items() if value.ndim == 4 and value.is_floating_point())
    state[name][:2] = 0
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(state, file, metadata)
    rewrite_summary(run, weights_sha256=sha256(file))


@pytest.mark.parametrize("arm", rest_wide(["structured", "magnitude", "bf16", "int8", "tuned"], every_day=2))
def test_a_run_of_each_kind_passes(copies: Copies, capsys: pytest.CaptureFixture[str], arm: str) -> None:
    run = copies(arm)[arm]
    assert verify_runs([str(run)]) == 0, capsys.readouterr().out
    passed = checked(run, PASS, quick=False)
    assert PARENT in passed
    assert ("compression repeated" in passed) == (arm != "tuned")


def test_a_quick_check_says_that_the_compression_was_not_repeated(copies: Copies) -> None:
    assert checked(copies("magnitude")["magnitude"], NOT_CHECKED)["compression repeated"] == "--quick"


def test_a_compression_whose_weights_were_changed_is_found(copies: Copies) -> None:
    run = copies("structured")["structured"]
    zero_a_weight(run)
    assert {"nonzero_params", "sparsity"} <= checked(run, quick=True).keys()


def test_logits_that_the_compression_does_not_give_are_found(copies: Copies) -> None:
    run = copies("structured")["structured"]
    edit_logits(run, lambda logits: logits["test_logits"].add_(1.0))
    rewrite_summary(run, logits_sha256=sha256(run / "logits.safetensors"))
    assert "compression repeated" in checked(run, quick=False)


def test_numbers_that_were_changed_are_found(copies: Copies) -> None:
    run = copies("structured")["structured"]
    changes = {
        "nonzero_params": 7,
        "sparsity": 0.5,
        "parent_test_acc": 0.99,
        "parent_agreement": 0.123,
        "parent_kl_t1": 9.0,
        "num_params": 7,
        "macs": 7,
    }
    rewrite_summary(run, **changes)
    assert checked(run).keys() == changes.keys()


def change_weights(parent: Path) -> None:
    content = bytearray((parent / "best.safetensors").read_bytes())
    content[-1] ^= 1
    (parent / "best.safetensors").write_bytes(content)


def change_summary(parent: Path) -> None:
    edit_summary(parent, test_nll=0.0)


def change_key(parent: Path) -> None:
    rewrite_summary(parent, run_key="0" * 16)


@pytest.mark.parametrize(
    ("change", "found"), [(change_weights, "parent_weights_sha256"), (change_summary, PARENT), (change_key, PARENT)]
)
def test_a_parent_that_was_changed_since_is_found(copies: Copies, change: Change, found: str) -> None:
    runs = copies("structured")
    change(runs["root"])
    assert found in checked(runs["structured"])


def test_a_parent_that_is_gone_is_not_checked(copies: Copies) -> None:
    runs = copies("structured")
    runs["root"].rename(runs["root"].parents[1] / "elsewhere")
    assert checked(runs["structured"]) == {}
    assert PARENT in checked(runs["structured"], NOT_CHECKED)


@pytest.mark.slow
def test_a_measurement_passes_and_its_logits_and_its_lineage_are_checked(
    copies: Copies, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(copies("magnitude")["magnitude"])
    assert verify_runs([str(run)]) == 0, capsys.readouterr().out
    assert "logits in the engine" in checked(run, PASS)
    recorded = read_unverified(run)[0].parent_test_acc
    assert recorded is not None
    rewrite_summary(run, parent_test_acc=recorded / 2 + 0.3)
    assert checked(run).keys() == {"parent_test_acc"}
    rewrite_summary(run, parent_test_acc=recorded)
    edit_logits(run, flip_test_logits)
    rewrite_summary(run, logits_sha256=sha256(run / "logits.safetensors"))
    assert "logits in the engine" in checked(run)
