"""Sessions of measurement: their latencies are never compared."""

import pytest

from kdbench.report.deployment.comparisons import ask
from tests.report.conftest import report_of
from tests.report.deployment.writing import write_measured, write_trained


@pytest.fixture
def sessions(tmp_path):
    """Distilled and plain networks measured in one session, and the plain ones again on another machine."""
    for seed in range(3):
        small = write_trained(tmp_path, "resnet8", seed, 0.86 + seed / 1000)
        distilled = write_trained(tmp_path, "resnet8", seed, 0.88, method="logit", teacher="resnet32")
        for run in (small, distilled):
            write_measured(tmp_path, run, ["a", "b"], ms=1.0, size=100)
        write_measured(tmp_path, small, ["c"], ms=7.0, size=100, device="another CPU", threads=4)
    return tmp_path


def test_a_form_has_a_row_for_each_session(sessions):
    table = report_of(sessions).deployment.table
    assert list(zip(table.form, table.session, table.onnx_ms, table.measured_on, strict=True)) == [
        ("resnet8 baseline", 1, 1.0, "a CPU with 1 thread"),
        ("resnet8 baseline", 2, 7.0, "another CPU with 4 threads"),
        ("resnet8 logit from resnet32", 1, 1.0, "a CPU with 1 thread"),
    ]


def test_figure_and_sentences_are_about_the_session_with_the_most_runs(sessions):
    report = report_of(sessions)
    assert len(report.deployment.compared) == 2
    assert {form.session.device for form in report.deployment.compared} == {"a CPU"}
    for question in ask(report.deployment.compared):
        assert question.costs == pytest.approx((1, 1) if question.measure == "latency" else (100, 100))
    assert "All of it is about session 1: 6 runs of 2 forms" in report.deployment.sentences[-1]
    (remark,) = [remark for remark in report.remarks if "sessions" in remark]
    assert "session 1: 6 runs on a CPU with 1 thread; session 2: 3 runs on another CPU with 4 threads" in remark


@pytest.mark.parametrize("other", [{"together": ["other"]}, {"device": "another CPU"}, {"threads": 2}])
def test_another_process_device_or_number_of_threads_is_another_session(other, tmp_path):
    small = write_trained(tmp_path, "resnet8", 0, 0.86)
    distilled = write_trained(tmp_path, "resnet8", 0, 0.88, method="logit", teacher="resnet32")
    write_measured(tmp_path, small, ["both"], ms=1, size=100)
    write_measured(tmp_path, distilled, other.get("together", ["both"]), ms=1, size=100,
                   **{key: value for key, value in other.items() if key != "together"})  # fmt: skip
    table = report_of(tmp_path).deployment.table
    assert sorted(table.session) == [1, 2]
    assert len(report_of(tmp_path).deployment.compared) == 1


def test_one_session_has_no_remark(tmp_path):
    write_measured(tmp_path, write_trained(tmp_path, "resnet8", 0, 0.86), ms=1, size=100)
    assert not [remark for remark in report_of(tmp_path).remarks if "session" in remark]
