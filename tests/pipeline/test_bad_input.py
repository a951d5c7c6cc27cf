"""Command lines that cannot be: one line each, with a code and the key, before anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.pipeline.compress import compress
from kdbench.pipeline.export import export
from kdbench.pipeline.measure import measure
from kdbench.pipeline.steps import read_chain
from tests.conftest import complete
from tests.derived import ON_CPU, Copies, texts

Command = Callable[[list[str]], object]


def refusal(command: Command, *arguments: str | Path) -> tuple[str, str]:
    with pytest.raises(ConfigError) as error:
        command(texts(arguments))
    assert "\n" not in str(error.value)
    return error.value.code, error.value.key


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        (["method=nonsense"], "unknown_option", "method"),
        (["chain=[structured,nonsense]"], "unknown_option", "chain"),
        (["chain=[]"], "unknown_option", "chain"),
        ([], "usage", "method"),
        (["method=int8", "chain=[int8]"], "usage", "method"),
        (["chain=[int8,structured]"], "wrong_order", "chain"),
        (["chain=[int8,magnitude]"], "wrong_order", "chain"),
        (["chain=[fp16,int8]"], "wrong_order", "chain"),
        (["chain=[magnitude,structured]"], "wrong_order", "chain"),
        (["chain=[magnitude,finetune,low_rank]"], "wrong_order", "chain"),
        (["chain=[int8,finetune]"], "wrong_order", "chain"),
        (["chain=[bf16,finetune]"], "wrong_order", "chain"),
        (["method=int8", "structured.ratio=0.5"], "unused_key", "structured.ratio"),
        (["chain=[int8]", "finetune.recipe.epochs=1"], "unused_key", "finetune.recipe.epochs"),
        (["method=int8", "int8.bits=4"], "unknown_key", "int8.bits"),
        (["method=int8", "method.bits=4"], "unknown_key", "int8.bits"),
        (["method=magnitude", "magnitude.sparsity=0"], "out_of_range", "magnitude.sparsity"),
        (["method=magnitude", "method.sparsity=1"], "out_of_range", "magnitude.sparsity"),
        (["method=structured", "structured.ratio=1"], "out_of_range", "structured.ratio"),
        (["method=structured", "structured.norm=3"], "out_of_range", "structured.norm"),
        (["method=structured", "structured.scope=layer"], "out_of_range", "structured.scope"),
        (["method=int8", "int8.images=0"], "out_of_range", "int8.images"),
        (["method=low_rank", "low_rank.energy=2"], "out_of_range", "low_rank.energy"),
    ],
)
def test_chains_and_settings_that_cannot_be_are_refused(overrides: list[str], code: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_chain(overrides)
    assert (error.value.code, error.value.key) == (code, key)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "chain",
    ["[structured,magnitude,int8]", "[magnitude,magnitude]", "[int8,distil,int8]", "[magnitude,distil,structured]",
     "[structured,finetune,low_rank,finetune,magnitude,finetune,fp16]"],
)  # fmt: skip
def test_chains_in_an_order_that_can_be_are_read(chain: str) -> None:
    assert read_chain([f"chain={chain}"]).steps == tuple(chain[1:-1].split(","))


def test_a_step_that_cannot_follow_the_run_itself_is_refused(copies: Copies) -> None:
    """The order is that of two commands here, and known once the run is read."""
    run = copies("bf16")["bf16"]
    before = sorted(run.parent.iterdir())
    with pytest.raises(ConfigError, match="structured cannot follow bf16") as error:
        compress(texts([run, "method=structured", *ON_CPU]))
    assert (error.value.code, error.value.key) == ("wrong_order", "chain")
    assert [path for path in sorted(run.parent.iterdir()) if (path / "summary.json").exists()] == before


def test_distil_without_a_student_is_refused(copies: Copies) -> None:
    found = refusal(compress, copies()["root"], "chain=[distil]", *ON_CPU)
    assert found == ("missing_value", "distil.student")


@pytest.mark.parametrize(
    ("override", "code", "key"),
    [
        ("student=resnet20", "set_by_chain", "student"),
        ("data=cifar10", "set_by_chain", "data"),
        ("data.num_train=10", "set_by_chain", "data.num_train"),
        ("output_root=elsewhere", "set_by_chain", "output_root"),
        ("parent=0123456789abcdef", "set_by_chain", "parent"),
    ],
)
def test_what_the_chain_sets_itself_is_refused(copies: Copies, override: str, code: str, key: str) -> None:
    assert refusal(compress, copies()["root"], "method=magnitude", override) == (code, key)


@pytest.mark.parametrize("command", [compress, measure, export])
def test_runs_that_are_none_are_refused(copies: Copies, tmp_path: Path, command: Command) -> None:
    rest = {compress: ("method=magnitude",), measure: (), export: ("--to", "onnx", "--out", tmp_path / "x")}[command]
    assert refusal(command, tmp_path / "nowhere", *rest) == ("not_found", "RUN")
    run = copies()["root"]
    (run / "summary.json").unlink()
    (run / "train.log").touch()
    assert refusal(command, run, *rest) == ("no_run", "RUN")


def test_a_command_without_a_run_is_refused() -> None:
    assert refusal(compress, "method=int8") == ("missing_value", "RUN")
    assert refusal(measure) == ("missing_value", "RUN")
    assert refusal(compress, "run", "method=int8", "--nonsense") == ("usage", "--nonsense")


def test_a_run_without_its_weights_is_refused(copies: Copies) -> None:
    run = copies()["root"]
    (run / "best.safetensors").unlink()
    assert refusal(compress, run, "method=magnitude") == ("no_network", "RUN")


def test_weights_that_were_changed_since_are_refused(copies: Copies) -> None:
    run = copies()["root"]
    content = bytearray((run / "best.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "best.safetensors").write_bytes(content)
    assert refusal(compress, run, "method=magnitude")[0] == "checksum"


def test_runs_under_different_output_roots_are_refused(copies: Copies, tmp_path: Path) -> None:
    run = copies()["root"]
    other = tmp_path / "other" / "runs" / run.name
    other.parent.mkdir(parents=True)

    shutil.copytree(run, other)
    assert refusal(measure, run, other) == ("mismatch", "RUN")


@pytest.mark.slow
def test_a_run_that_predicts_with_its_method_is_not_compressed(small: Callable[..., RunConfig]) -> None:
    run = complete(small("method=simkd", "recipe.epochs=1")).path
    assert refusal(compress, run, "method=magnitude") == ("method_predicts", "RUN")


@pytest.mark.parametrize(
    ("settings", "code", "key"),
    [
        (["engines=[tensorrt]"], "out_of_range", "engines"),
        (["engines=[]"], "out_of_range", "engines"),
        (["batches=[0]"], "out_of_range", "batches"),
        (["rounds=2"], "out_of_range", "rounds"),
        (["threads=0"], "out_of_range", "threads"),
        (["nonsense=1"], "unknown_key", "nonsense"),
        (["runtime.threads=2"], "unused_key", "runtime.threads"),
    ],
)
def test_settings_of_a_measurement_that_cannot_be_are_refused(settings: list[str], code: str, key: str) -> None:
    assert refusal(measure, "run", *settings) == (code, key)


@pytest.mark.parametrize("kind", ["compress", "measure", "other"])
def test_kdbench_itself_trains_alone(small: Callable[..., RunConfig], kind: str) -> None:
    with pytest.raises(ConfigError) as error:
        small("method=ce", "teacher=none", f"kind={kind}")
    assert (error.value.code, error.value.key) == ("out_of_range", "kind")
