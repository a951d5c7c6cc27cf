"""The rest of the report beside compressed and measured networks."""

import shutil

import pytest

from kdbench.errors import ConfigError
from kdbench.report.results import tables_of
from kdbench.report.table import runs_table
from tests.report.conftest import report_of, write_failed_run, write_group, write_selected
from tests.report.deployment.writing import write_measured, write_study, write_trained

OWN = ("deployment", "deployment_classes")


def kept(root, target, kind):
    """Copy the runs of one kind."""
    target.mkdir()
    for folder in root.iterdir():
        text = (folder / "summary.json").read_text()
        found = next((kind for kind in ("compress", "measure") if f'"kind": "{kind}"' in text), "train")
        if found == kind:
            shutil.copytree(folder, target / folder.name)
    return target


@pytest.fixture
def study(tmp_path):
    root = tmp_path / "runs"
    write_study(root)
    return root


def test_all_other_parts_are_about_trained_runs_alone(study, tmp_path, kdbench_report):
    whole = kdbench_report(study)
    texts = {path.name: path.read_bytes() for path in whole.folder.glob("*.csv")}
    shutil.copytree(kept(study, tmp_path / "trained", "train"), tmp_path / "moved")
    shutil.rmtree(study)
    shutil.move(tmp_path / "moved", study)  # the same paths, which stand in runs.csv
    alone = kdbench_report(study)
    assert set(texts) == {path.name for path in alone.folder.glob("*.csv")}
    different = {name for name, text in texts.items() if text != (alone.folder / name).read_bytes()}
    assert different == {f"{name}.csv" for name in OWN}


def test_a_report_without_such_runs_has_no_such_part(tmp_path):
    write_group(tmp_path, (90, 91))
    write_group(tmp_path, (91, 92), teacher="t", method="logit")
    report = report_of(tmp_path)
    assert not report.deployment.forms
    assert not report.deployment.sentences
    assert not report.deployment.remarks
    assert all(len(tables_of(report)[name]) == 0 for name in OWN)


def test_a_page_without_such_runs_does_not_mention_them(tmp_path, kdbench_report):
    write_group(tmp_path / "runs", (90, 91))
    result = kdbench_report(tmp_path / "runs")
    assert not [name for name in ("report.html", "report.md") if "deployment" in result.text(name).lower()]
    assert "device</h2>" not in result.text("report.html")


def test_measured_runs_alone_make_a_report(study, tmp_path, kdbench_report):
    result = kdbench_report(kept(study, tmp_path / "measured", "measure"))
    assert result.code == 0
    assert "No trained run is here" in result.out
    assert "no gain" not in result.out
    table = result.table("deployment")
    assert table.n.sum() == 36
    assert table.start_change.isna().all()
    assert len(result.table("runs")) == 0


def test_compressed_runs_alone_make_a_report(study, tmp_path, kdbench_report):
    result = kdbench_report(kept(study, tmp_path / "compressed", "compress"))
    assert result.code == 0
    assert set(result.table("deployment").remarks) == {"compressed, not measured"}


def test_measured_runs_of_other_data_are_refused(tmp_path):
    run = write_trained(tmp_path, "resnet8", 0, 0.9)
    write_measured(tmp_path, run, ms=1, size=1, dataset="shapes")
    with pytest.raises(ConfigError) as error:
        report_of(tmp_path)
    assert error.value.key == "dataset"
    assert len(report_of(tmp_path, allow_mixed=True).deployment.forms) == 1


def test_measured_runs_go_with_runs_that_were_trained_without_validation(tmp_path):
    run = write_trained(tmp_path, "resnet8", 0, 0.9, validation=False)
    write_measured(tmp_path, run, ms=1, size=1)
    assert len(report_of(tmp_path).deployment.forms) == 1


def test_a_failed_measurement_is_no_failed_training(tmp_path):
    write_group(tmp_path, (90, 91))
    write_group(tmp_path, (91, 92), teacher="t", method="logit")
    before = report_of(tmp_path).verdict
    write_failed_run(tmp_path, seed=7, kind="measure", parent_key="x", code="not_exported", message="an operator")
    report = report_of(tmp_path)
    assert report.verdict == before
    assert [run.code for run in report.failed] == ["not_exported"]


def test_the_table_of_the_console_lists_runs_of_every_kind(study):
    text = runs_table([study])
    assert len(text.splitlines()) == 1 + len(list(study.iterdir()))


def test_networks_that_were_not_selected_are_left_out(tmp_path):
    root = tmp_path / "runs"
    for alpha in (0.1, 0.9):
        own = {"teacher": "resnet20", "method": "logit", "method_params": {"alpha": alpha}, "run_key": f"key{alpha}"}
        run = write_trained(root, "resnet8", 1, 0.9, recipe={}, **own)
        write_measured(root, run, ms=1, size=1)
    winners = [{"method_params": {"alpha": 0.9}}]
    report = report_of(root, write_selected(tmp_path / "selected.yaml", winners, [0], [1]))
    assert [form.runs[0].start["run_key"] for form in report.deployment.forms] == ["key0.9"]
    assert "1 run of networks that were not selected: left out of deployment" in report.remarks
