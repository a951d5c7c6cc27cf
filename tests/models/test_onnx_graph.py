"""Networks as ONNX graphs: what they compute, what they hold, and what ONNX cannot express."""

import sys
from collections.abc import Callable

import onnx
import onnxruntime
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.models.onnx_graph import session_of, to_onnx
from tests.compress.subjects import apply, named, own, some_images, subject_of
from tests.conftest import rest_wide


def logits_of(graph: bytes, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.parametrize(
    "name", rest_wide(["resnet8", "vgg11", "vit_tiny", "timm/mobilenetv3_small_100", "resnet18", "wrn16_2"])
)
def test_a_graph_gives_the_logits_of_the_network_for_any_number_of_images(name: str) -> None:
    body = subject_of(named(f"student={name}")).body
    graph = to_onnx(body, (3, 32, 32))
    for count in (1, 2, 7):
        images = some_images(count)
        with torch.no_grad():
            expected = body(images)
        torch.testing.assert_close(logits_of(graph, images), expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return to_onnx(subject_of(own("TwoConvolutions")).body, (3, 32, 32))


def test_a_graph_names_its_input_and_output_and_holds_no_paths(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.name for entry in model.graph.input] == ["images"]
    assert [entry.name for entry in model.graph.output] == ["logits"]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
    assert b"/" + __file__.split("/")[1].encode() + b"/" not in graph
    assert b".py" not in graph


def test_the_same_network_gives_the_same_bytes(graph: bytes) -> None:
    assert to_onnx(subject_of(own("TwoConvolutions")).body, (3, 32, 32)) == graph


def test_an_operation_that_onnx_does_not_have_is_named_with_its_layer(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as error:
        to_onnx(subject_of(own("SingularValues")).body, (3, 32, 32))
    assert (error.value.code, error.value.key) == ("not_exportable", "--to")
    assert "aten._linalg_svd, which values computes" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_network_that_cannot_be_traced_is_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as error:
        to_onnx(subject_of(own("Branch")).body, (3, 32, 32))
    assert (error.value.code, error.value.key) == ("not_exportable", "--to")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_compression_that_needs_a_graph_names_itself_as_the_key() -> None:
    with pytest.raises(ConfigError) as error:
        apply(subject_of(own("SingularValues")), "int8")
    assert (error.value.code, error.value.key) == ("not_exportable", "int8")
    assert "--to" not in str(error.value)


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("onnxscript", lambda graph: to_onnx(torch.nn.Flatten(), (3, 32, 32))),
        ("onnxruntime", lambda graph: session_of(graph, 1)),
        ("torch_pruning", lambda graph: apply(subject_of(own("TwoConvolutions")), "structured")),
    ],
)
def test_a_missing_extra_is_named_with_its_command(
    graph: bytes, monkeypatch: pytest.MonkeyPatch, package: str, use: Callable[[bytes], object]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as error:
        use(graph)
    assert (error.value.code, error.value.key) == ("missing_extra", package.replace("_", "-"))
    assert "pip install 'kdbench[deploy]'" in str(error.value)


def test_a_graph_that_the_runtime_cannot_execute_is_refused_by_its_node(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    model.graph.node[0].op_type = "Convolve"
    with pytest.raises(ConfigError) as error:
        session_of(model.SerializeToString(), 1)
    assert (error.value.code, error.value.key) == ("not_executable", "onnxruntime")
    assert "Convolve" in str(error.value)
