"""Forms of networks: which runs belong together, and how they are called."""

from tests.report.conftest import report_of
from tests.report.deployment.writing import INT8, STRUCTURED, write_compressed, write_measured, write_trained


def forms_of(root):
    return [form.name for form in report_of(root).deployment.forms]


def measure(root, run, **others):
    return write_measured(root, run, ms=1, size=1000, **others)


def test_names_say_network_training_and_steps(tmp_path):
    teacher = write_trained(tmp_path, "resnet32", 0, 0.93)
    small = write_trained(tmp_path, "resnet8", 0, 0.86)
    distilled = write_trained(tmp_path, "resnet8", 0, 0.88, method="logit", teacher="resnet32")
    control = write_trained(tmp_path, "resnet8", 0, 0.87, method="label_smoothing", role="control")
    for run in (teacher, small, distilled, control):
        measure(tmp_path, run)
    pruned = write_compressed(tmp_path, distilled, STRUCTURED, 0.8)
    measure(tmp_path, write_compressed(tmp_path, pruned, INT8, 0.79))
    assert forms_of(tmp_path) == [
        "resnet8 baseline", "resnet8 label_smoothing", "resnet8 logit from resnet32",
        "resnet8 logit from resnet32, structured 0.5", "resnet8 logit from resnet32, structured 0.5, int8",
        "resnet32 teacher",
    ]  # fmt: skip


def test_runs_that_differ_in_their_seeds_are_one_form(tmp_path):
    for seed in range(3):
        measure(tmp_path, write_trained(tmp_path, "resnet8", seed, 0.9))
    (form,) = report_of(tmp_path).deployment.forms
    assert [run.seeds for run in form.runs] == [(0, 0), (1, 1), (2, 2)]


def test_fine_tuning_is_a_step_after_those_before_it(tmp_path):
    trained = write_trained(tmp_path, "resnet32", 0, 0.93)
    pruned = write_compressed(tmp_path, trained, STRUCTURED, 0.8)
    kept = {key: pruned[key] for key in ("compression", "num_params", "macs")} | {"parent_key": pruned["run_key"]}
    tuned = write_trained(tmp_path, "resnet32-structured", 0, 0.9, **kept)
    taught = write_trained(
        tmp_path, "resnet32-structured", 0, 0.91, method="logit", teacher="resnet56", run_key="taught", **kept
    )
    for run in (pruned, tuned, taught):
        measure(tmp_path, write_compressed(tmp_path, run, INT8, 0.79))
    assert forms_of(tmp_path) == [
        "resnet32 baseline, structured 0.5", "resnet32 baseline, structured 0.5, int8",
        "resnet32 baseline, structured 0.5, fine-tuned by logit from resnet56, int8",
        "resnet32 baseline, structured 0.5, fine-tuned, int8",
    ]  # fmt: skip
    starts = [form.runs[0].start["run_key"] for form in report_of(tmp_path).deployment.forms]
    assert set(starts) == {trained["run_key"]}


def test_without_its_parents_a_network_has_the_name_without_its_steps(tmp_path):
    apart, root = tmp_path / "apart", tmp_path / "runs"
    pruned = write_compressed(apart, write_trained(apart, "resnet32", 0, 0.93), STRUCTURED, 0.8)
    measure(root, write_compressed(apart, pruned, INT8, 0.79))
    assert forms_of(root) == ["resnet32 baseline, structured 0.5, int8"]


def test_settings_that_differ_between_steps_or_trainings_are_named(tmp_path):
    for alpha in (0.1, 0.9):
        own = {"method": "logit", "teacher": "resnet32", "method_params": {"alpha": alpha}}
        run = write_trained(tmp_path, "resnet8", 0, 0.88, run_key=f"logit{alpha}", **own)
        measure(tmp_path, write_compressed(tmp_path, run, {"name": "int8", "images": 512}, 0.8))
    other = write_compressed(tmp_path, run, {"name": "int8", "images": 64}, 0.8, run_key="fewer")
    measure(tmp_path, other)
    assert forms_of(tmp_path) == [
        "resnet8 logit from resnet32, alpha=0.1, int8 images=512",
        "resnet8 logit from resnet32, alpha=0.9, int8 images=512",
        "resnet8 logit from resnet32, alpha=0.9, int8 images=64",
    ]


def test_runs_of_a_form_that_share_seeds_have_no_interval(tmp_path):
    for number in range(2):
        run = write_trained(tmp_path / "apart", "resnet8", 0, 0.9, run_key=f"run{number}")
        measure(tmp_path / "runs", write_compressed(tmp_path / "apart", run, INT8, 0.88 + number / 100))
    row = report_of(tmp_path / "runs").deployment.table.iloc[0]
    assert row.n == 2
    assert row[["parent_low", "parent_high"]].isna().all()
    assert "share seeds" in row.remarks


def test_runs_that_are_their_own_ancestors_end_the_search(tmp_path):
    run = write_trained(tmp_path, "resnet8", 0, 0.9)
    first = write_compressed(tmp_path, run, INT8, 0.8, parent_key="second", run_key="first")
    write_compressed(tmp_path, first, INT8, 0.8, run_key="second")
    assert len(report_of(tmp_path).deployment.forms) == 2
