"""Reports of runs that are missing, damaged, mixed or single, and of names full of markup."""

import json
import math
import re
import shutil

import numpy as np
import pytest

from kdbench.cli import main_report
from kdbench.rundir.summary import checksum_of
from tests.conftest import complete
from tests.report.conftest import report_of, write_failed_run, write_group, write_run, write_selected

BASELINE, DISTILLED = (90.0, 90.2, 89.9), (90.5, 90.4, 90.6)
BY_LOGIT = {"teacher": "resnet20", "method": "logit"}


@pytest.fixture
def runs(tmp_path):
    """Write a distilled group and a baseline of three runs each."""
    write_group(tmp_path / "runs", BASELINE)
    write_group(tmp_path / "runs", DISTILLED, **BY_LOGIT)
    return tmp_path / "runs"


def test_a_folder_without_runs_is_refused_by_name(tmp_path, kdbench_report):
    (tmp_path / "empty").mkdir()
    result = kdbench_report(tmp_path / "empty")
    assert (result.code, result.error.code, result.error.key) == (2, "no_run", "PATH")
    assert str(tmp_path / "empty") in str(result.error)
    assert not result.folder.exists()


def test_a_missing_path_is_refused_by_name(tmp_path, runs, kdbench_report):
    result = kdbench_report(runs, tmp_path / "nowhere")
    assert (result.code, result.error.code, result.folder.exists()) == (2, "not_found", False)
    assert str(tmp_path / "nowhere") in str(result.error)


def test_a_file_instead_of_a_run_directory_is_refused(runs, kdbench_report):
    result = kdbench_report(next(runs.rglob("summary.json")))
    assert (result.code, result.error.code) == (2, "not_found")


def test_the_command_line_says_a_refusal_in_one_line_and_exits_with_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kdbench-report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as left:
        main_report()
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert "nowhere" in err
    assert len(err.splitlines()) == 1


def test_runs_that_are_not_finished_are_left_out_and_counted(tmp_path, runs, kdbench_report):
    for name in ("config.yaml", "train.log"):
        (runs / "unfinished").mkdir(exist_ok=True)
        (runs / "unfinished" / name).write_text("")
    write_run(runs, seed=9, status="running", **BY_LOGIT)
    result = kdbench_report(runs)
    assert result.code == 0
    assert "2 unfinished runs were left out" in result.out
    assert len(result.table("runs")) == 6


@pytest.mark.parametrize(
    ("key", "value", "old"),
    [("dataset", "shapes", "cifar10"), ("num_train", 1000, 45000), ("num_val", 7, 5000), ("num_test", 8, 10000)],
)
def test_mixed_runs_are_refused_with_the_keys_and_their_values(runs, kdbench_report, key, value, old):
    write_run(runs, seed=9, accuracy=0.5, **{key: value})
    result = kdbench_report(runs)
    assert (result.code, result.error.code, result.error.key) == (2, "mismatch", key)
    assert re.search(rf"{key}: ({value} and {old}|{old} and {value});", str(result.error))
    assert not result.folder.exists()


NAMES = [f"kind {n}" for n in range(10)]


@pytest.mark.parametrize(
    ("names", "said"),
    [([*NAMES[:8], "kind 9", "kind 8"], "class 8 is 'kind "), (NAMES[:9], "10 and 9 names|9 and 10 names")],
)
def test_runs_whose_class_names_differ_are_refused(tmp_path, kdbench_report, names, said):
    write_group(tmp_path / "runs", BASELINE, class_names=NAMES)
    write_group(tmp_path / "runs", DISTILLED, class_names=names, **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs")
    assert (result.code, result.error.code, result.error.key) == (2, "mismatch", "class_names")
    assert re.search(f"class_names: ({said})", str(result.error))


def test_runs_of_other_class_names_stand_apart_when_allowed(tmp_path, kdbench_report):
    write_group(tmp_path / "runs", BASELINE, class_names=NAMES)
    write_group(tmp_path / "runs", DISTILLED, class_names=NAMES[::-1], **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs", "--allow-mixed")
    assert result.code == 0
    assert result.table("gains")["delta"].isna().all()


def test_summaries_without_class_names_go_with_any(runs, kdbench_report):
    write_group(runs, DISTILLED, class_names=NAMES, method="feature", teacher="resnet20")
    result = kdbench_report(runs)
    assert result.code == 0
    assert result.table("gains")["delta"].notna().all()


def test_a_folder_of_data_that_is_not_there_is_refused(runs, kdbench_report, tmp_path):
    result = kdbench_report(runs, "--data-root", tmp_path / "nowhere")
    assert (result.code, result.error.code, result.error.key) == (2, "not_found", "--data-root")


def test_all_differing_keys_are_named_at_once(runs, kdbench_report):
    write_run(runs, dataset="shapes", num_train=5)
    assert re.search(r"dataset: .*num_train: ", str(kdbench_report(runs).error))


def test_mixed_runs_are_reported_when_allowed(runs, kdbench_report):
    write_group(runs, (50.0, 51.0), dataset="shapes")
    result = kdbench_report(runs, "--allow-mixed")
    assert result.code == 0
    assert result.table("gains")["base_mean"].tolist() == pytest.approx([sum(BASELINE) / 3])
    assert len(result.table("groups")) == 3


def test_another_protocol_version_is_named(runs, kdbench_report):
    write_run(runs, seed=9, schema_version=99)
    result = kdbench_report(runs)
    assert (result.code, result.error.code, result.error.key) == (2, "mismatch", "schema_version")
    assert kdbench_report(runs, "--allow-mixed").code == 0


def test_one_seed_has_means_without_tests_and_a_remark(tmp_path, kdbench_report):
    write_group(tmp_path / "runs", (90.0,))
    write_group(tmp_path / "runs", (90.5,), **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs")
    assert result.code == 0
    row = result.table("gains").iloc[0]
    assert row["delta"] == pytest.approx(0.5)
    assert row[["std", "ci_low", "p_welch", "p_paired", "p_holm", "mde80", "p_equivalence"]].isna().all()
    assert row[["significant", "equivalent"]].isna().all()
    assert "1 gain: one seed only: means without tests" in result.out
    assert "No gain can be tested" in result.out
    for page in ("report.html", "report.md"):
        assert not re.search(r"[>| ]nan[<| ]", result.text(page))


def test_one_seed_in_one_arm_is_no_test_either(tmp_path, kdbench_report):
    write_group(tmp_path / "runs", BASELINE)
    write_group(tmp_path / "runs", (90.5,), **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs")
    assert result.table("gains")["p_welch"].isna().all()
    assert "one seed only" in result.out


def test_duplicates_of_a_run_count_once_with_a_remark(runs, tmp_path, kdbench_report):
    first = sorted(runs.iterdir())[0]
    shutil.copytree(first, tmp_path / "copies" / "again")
    result = kdbench_report(runs, tmp_path / "copies")
    assert result.code == 0
    assert f"{tmp_path / 'copies' / 'again'} is the same run as {first}" in result.out
    assert len(result.table("runs")) == 6


def test_one_path_given_twice_is_no_duplicate(runs, kdbench_report):
    result = kdbench_report(runs, runs, runs / ".." / "runs")
    assert "the same run" not in result.out
    assert len(result.table("runs")) == 6


def test_a_duplicate_with_other_numbers_has_a_remark_of_its_own(runs, tmp_path, kdbench_report):
    first = sorted(runs.iterdir())[0]
    summary = json.loads((first / "summary.json").read_text())
    write_run(tmp_path / "copies", **{k: v for k, v in summary.items() if k != "test_acc_best"}, test_acc_best=0.1)
    result = kdbench_report(runs, tmp_path / "copies")
    assert "the same key but other numbers" in result.out
    assert result.table("runs")["test_acc_best"].min() > 80


def test_runs_of_one_group_with_the_same_seeds_have_a_remark(runs):
    write_run(runs, seed=0, accuracy=0.9, run_key="twice")
    assert any("several runs have the same seeds" in line for line in report_of(runs).remarks)


DAMAGE = {
    "empty": "",
    "cut off": '{"student": "resnet8", "me',
    "no object": "[1, 2]",
    "no UTF-8": b"\xff\xfe\x00{",
    "nothing in it": "{}",
    "accuracy of 93": {"test_acc_best": 93.0},
    "accuracy in words": {"test_acc_best": "high"},
    "NaN": {"test_acc_best": math.nan},
    "no seed": {"seed": None},
    "seed in words": {"seed": "zero"},
    "key that is a list": {"run_key": ["a"]},
    "agreement in words": {"agreement": "high"},
    "calibration in words": {"test_ece": "low"},
    "likelihood that is a list": {"test_nll": [1]},
    "classes that are a number": {"per_class_acc": 5},
    "size in words": {"num_params": "many"},
    "infinite size": {"num_params": math.inf},
    "environment in words": {"environment": "mine"},
    "checksum of another summary": {"checksum": "0" * 64},
}


def damage(folder, content):
    file = folder / "summary.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_damaged_summary_is_named_and_left_out_with_exit_code_1(runs, kdbench_report):
    folder = write_run(runs, seed=9, accuracy=0.01, **BY_LOGIT)
    damage(folder, DAMAGE["cut off"])
    result = kdbench_report(runs)
    assert result.code == 1
    assert str(folder / "summary.json") in result.err
    assert len(result.table("runs")) == 6


def test_summaries_damaged_in_every_way_are_all_named_and_left_out(runs, kdbench_report):
    folders = {kind: write_run(runs, seed=9 + n, accuracy=0.01, **BY_LOGIT) for n, kind in enumerate(DAMAGE)}
    for kind, folder in folders.items():
        damage(folder, DAMAGE[kind])
    result = kdbench_report(runs)
    assert result.code == 1
    assert len(result.table("runs")) == 6
    pages = [result.text(page).replace("\\", "") for page in ("report.html", "report.md")]
    for kind, folder in folders.items():
        assert str(folder / "summary.json") in result.err, kind
        assert all(folder.name in page for page in pages), kind


def test_only_damaged_summaries_are_no_runs(tmp_path, kdbench_report):
    folder = write_run(tmp_path / "runs")
    (folder / "summary.json").write_text("{")
    result = kdbench_report(tmp_path / "runs")
    assert (result.code, result.error.code) == (2, "no_run")
    assert folder.name in str(result.error)


def test_keys_that_a_summary_lacks_are_null(runs, kdbench_report):
    kept = ("run_key", "student", "teacher", "method", "role", "seed", "test_acc_best")
    for file in runs.rglob("summary.json"):
        summary = json.loads(file.read_text())
        file.write_text(json.dumps({key: summary[key] for key in kept}))
    result = kdbench_report(runs)
    assert result.code == 0
    assert result.table("gains")["delta"].tolist() == pytest.approx([(sum(DISTILLED) - sum(BASELINE)) / 3])


def test_a_missing_baseline_has_a_remark_and_no_substitute(tmp_path, kdbench_report):
    write_group(tmp_path / "runs", BASELINE, student="resnet14")
    write_group(tmp_path / "runs", DISTILLED, **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs")
    assert result.code == 0
    row = result.table("gains").iloc[0]
    assert row[["delta", "base_mean", "p_welch", "p_holm", "ci_low"]].isna().all()
    assert row["n_base"] == 0
    assert re.search(r"no baseline .*: resnet8 logit from resnet20", result.out)
    assert "No gain can be computed" in result.out


@pytest.mark.parametrize(
    ("baseline", "distilled"),
    [((90.0,) * 3, (90.5,) * 3), ((90.0,) * 3, (90.0,) * 3), ((90.0,) * 3, DISTILLED), (BASELINE, (90.5,) * 3)],
    ids=["both arms", "both arms, no gain", "baseline", "distilled"],
)
def test_identical_values_are_no_error_and_no_warning(tmp_path, kdbench_report, baseline, distilled):
    for student in ("resnet8", "resnet14"):
        write_group(tmp_path / "runs", baseline, student=student)
        write_group(tmp_path / "runs", distilled, student=student, **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs")
    gains = result.table("gains")
    is_tested = len({*baseline}) > 1 or len({*distilled}) > 1
    assert (result.code, result.err) == (0, "")
    assert gains["delta"].tolist() == pytest.approx([(sum(distilled) - sum(baseline)) / 3] * 2)
    assert gains["p_welch"].notna().all() == is_tested
    assert result.table("interactions")["p"].notna().all() == is_tested
    assert ("no variation over seeds: no test" in result.out) != is_tested


@pytest.mark.parametrize(
    "content",
    [
        b"", b"hello", b"- 1\n- 2\n", b"study: x\n", b"{unclosed: [", b"\xff\xfe\x00", b"a: ${b}\n",
        b"study: x\nchosen_by: y\nselection_seeds: 3\nfinal_seeds: [1]\nwinners: []\n",
        b"study: x\nchosen_by: y\nselection_seeds: [0]\nfinal_seeds: one\nwinners: []\n",
        b"study: x\nchosen_by: y\nselection_seeds: [0]\nfinal_seeds: [1]\nwinners: 3\n",
        b"study: x\nchosen_by: y\nselection_seeds: [0]\nfinal_seeds: [1]\nwinners: [{candidates: []}]\n",
        b"study: x\nchosen_by: y\nselection_seeds: [0]\nfinal_seeds: [1]\nwinners: [{candidates: [1]}]\n",
    ],
    ids=["empty", "words", "list", "keys missing", "no YAML", "no UTF-8", "interpolation", "seeds are a number",
         "seeds are a word", "winners are a number", "winner without its keys", "candidate that is a number"],
)  # fmt: skip
def test_a_file_that_is_no_selection_is_refused(runs, tmp_path, kdbench_report, content):
    file = tmp_path / "selected.yaml"
    file.write_bytes(content)
    result = kdbench_report(runs, "--select", file)
    assert (result.code, result.error.code, result.error.key) == (2, "damaged", "--select")
    assert not result.folder.exists()


def test_a_selection_that_is_not_there_is_refused(runs, tmp_path, kdbench_report):
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        result = kdbench_report(runs, "--select", path)
        assert (result.code, result.error.code, result.error.key) == (2, "not_found", "--select")


def test_a_selection_that_leaves_no_run_is_refused(tmp_path, kdbench_report):
    write_run(tmp_path / "runs", run_key="tried", **BY_LOGIT)
    winner = {"candidates": [{"overrides": [], "score": 1.0, "run_keys": ["tried"]}]}
    selected = write_selected(tmp_path / "selected.yaml", [winner], (0,), (1,))
    result = kdbench_report(tmp_path / "runs", "--select", selected)
    assert (result.code, result.error.code, result.error.key) == (2, "no_run", "--select")


@pytest.mark.parametrize("margin", ["0", "-1", "nan", "inf"])
def test_a_margin_that_is_no_margin_is_refused(runs, kdbench_report, margin):
    result = kdbench_report(runs, f"--margin={margin}")
    assert (result.code, result.error.code, result.error.key) == (2, "out_of_range", "--margin")


def test_an_output_folder_that_cannot_be_is_refused(runs, tmp_path, kdbench_report):
    (tmp_path / "report").write_text("a file")
    result = kdbench_report(runs)
    assert (result.code, result.error.code, result.error.key) == (2, "not_writable", "--out")


HOSTILE = r"<b>|x|</b> & \input{y} $1_2$ 100% #3 ~^ `c` *d* [e](f) \"g\""
"""A student that HTML, LaTeX and Markdown would all take for more than a name."""


@pytest.fixture
def hostile(tmp_path, kdbench_report):
    write_group(tmp_path / "runs", BASELINE, student=HOSTILE)
    write_group(
        tmp_path / "runs", DISTILLED, student=HOSTILE, teacher=HOSTILE, method=HOSTILE, environment={"x": HOSTILE}
    )
    return kdbench_report(tmp_path / "runs", "--title", HOSTILE)


def test_names_are_text_in_html(hostile):
    page = hostile.text("report.html")
    assert "<b>" not in page
    assert "&lt;b&gt;|x|&lt;/b&gt; &amp; " in page


def test_names_are_text_in_markdown(hostile):
    page = hostile.text("report.md")
    rows = [line for line in page.splitlines() if line.startswith("|") and "x" in line and "input" in line]
    assert rows
    for line in page.splitlines():
        if line.startswith("    "):
            continue  # a block of code: nothing is markup
        assert not re.search(r"(?<!\\)<b>|(?<!\\)\[e\]|(?<!\\)\*d\*|(?<!\\)`c`", line), line
    header = next(line for line in page.splitlines() if line.startswith("| student"))
    unescaped = re.compile(r"(?<!\\)\|")
    for row in rows[:1]:
        assert len(unescaped.findall(row)) == len(unescaped.findall(header))


def test_a_title_of_several_lines_stays_in_its_block(runs, kdbench_report):
    result = kdbench_report(runs, "--title", "one\n\n# two")
    assert not any(line.startswith("# two") for line in result.text("report.md").splitlines())


def test_a_selection_of_another_study_is_refused(runs, tmp_path, kdbench_report):
    selected = write_selected(tmp_path / "selected.yaml", [{"student": "resnet14"}], (9,), (0, 1))
    result = kdbench_report(runs, "--select", selected)
    assert (result.code, result.error.code, result.error.key) == (2, "mismatch", "--select")


def test_seeds_that_differ_are_named_where_the_paired_test_is_missing(tmp_path, kdbench_report):
    write_group(tmp_path / "runs", BASELINE)
    write_group(tmp_path / "runs", (*DISTILLED, 90.1), seeds=(0, 1, 2, 100), **BY_LOGIT)
    row = kdbench_report(tmp_path / "runs").table("gains").iloc[0]
    assert math.isnan(row["p_paired"])
    assert row["remarks"] == "seeds 0, 1, 2, 100 against 0, 1, 2: no paired test"


def test_a_mixed_report_is_marked_and_every_row_has_its_data(runs, kdbench_report):
    write_group(runs, BASELINE, num_train=1000)
    write_group(runs, DISTILLED, num_train=1000, **BY_LOGIT)
    result = kdbench_report(runs, "--allow-mixed")
    assert "MIXED (num_train: 1000 and 45000)" in result.out
    assert sorted(result.table("gains")["setting"]) == ["num_train=1000", "num_train=45000"]


def test_a_missing_list_of_paths_is_refused(runs, kdbench_report):
    result = kdbench_report("@gone.txt")
    assert (result.code, result.error.code, result.error.key) == (2, "not_found", "PATH")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("config.yaml", "config_sha256"),
        ("metrics.csv", "metrics_sha256"),
        ("logits.safetensors", "logits_sha256"),
    ],
)
def test_a_run_whose_files_have_changed_is_left_out(runs, kdbench_report, name, key):
    changed = write_run(runs, seed=9, **{key: "0" * 64}, **BY_LOGIT)
    summary = json.loads((changed / "summary.json").read_text())
    (changed / "summary.json").write_text(json.dumps(summary | {"checksum": checksum_of(summary)}))
    (changed / name).write_bytes(b"another")
    result = kdbench_report(runs)
    assert result.code == 1
    assert f"{changed.name}/{name}" in result.err
    assert len(result.table("runs")) == 6


def test_logits_kept_in_half_precision_are_taken(runs, kdbench_report):
    logits = np.zeros((4, 10), np.float16), np.zeros(4, np.uint8)
    write_run(runs, seed=9, logits=logits, logits_sha256="0" * 64, **BY_LOGIT)
    assert kdbench_report(runs).code == 0


def test_student_of_a_teacher_that_was_replaced_is_named(runs, kdbench_report):
    teacher = write_run(runs, student="resnet20", weights_sha256="a" * 64)
    key = json.loads((teacher / "summary.json").read_text())["run_key"]
    student = write_run(runs, seed=9, teacher_key=key, teacher_weights_sha256="b" * 64, **BY_LOGIT)
    out = kdbench_report(runs).out
    assert re.search(rf"{student.name} was trained with other teacher weights than .*{teacher.name}", out)


@pytest.mark.parametrize("with_teachers", [True, False])
def test_given_teachers_are_one_remark_since_their_training_images_are_unknown(
    tmp_path, runs, kdbench_report, with_teachers
):
    for key in ("one", "two"):
        write_group(runs, DISTILLED, **BY_LOGIT, teacher_seed=None, teacher_key=key, baseline_key="b", group_key=key)
        if with_teachers:
            unknown = {"recipe": None, "init_seed": None, "data_seed": None, "epochs": None, "test_acc_final": None}
            write_run(runs, student="resnet20", method="checkpoint", run_key=key, **unknown | {"seed": None})
    result = kdbench_report(runs)
    assert (result.code, result.err) == (0, "")
    assert len(result.table("runs")) == 12 + 2 * with_teachers
    (remark,) = [line for line in result.out.splitlines() if "teacher.checkpoint" in line]
    assert "2 teachers (resnet20)" in remark
    assert result.text("report.md").count(remark.removeprefix("note: ")) == 1


@pytest.mark.slow
def test_the_runs_of_a_given_teacher_are_a_whole_report(small, tmp_path, trained_teachers, kdbench_report):
    weights = next((tmp_path / "out" / "runs").glob("*/best.safetensors"))
    shutil.copy(weights, tmp_path / "given.safetensors")
    for method in ("ce", "logit"):
        complete(
            small(
                f"method={method}",
                f"teacher.checkpoint={tmp_path / 'given.safetensors'}",
                f"output_root={tmp_path / 'given'}",
            )
        )
    result = kdbench_report(tmp_path / "given" / "runs")
    assert (result.code, result.err) == (0, "")
    assert set(result.table("runs").method) == {"ce", "logit", "checkpoint"}
    assert result.out.count("teacher.checkpoint") == 1


# Without validation

TEXT = "trained without validation images held out; accuracy of the last epoch"


@pytest.mark.slow
def test_runs_without_validation_are_marked_on_the_page_and_in_each_tables_note(tmp_path, kdbench_report):
    without = {"validation": False, "best_val_acc": None, "best_val_epoch": None}
    write_group(tmp_path / "runs", BASELINE, history=[0.5, 0.9], **without)
    write_group(tmp_path / "runs", DISTILLED, **BY_LOGIT, **without)
    result = kdbench_report(tmp_path / "runs", figures=True)
    assert result.code == 0
    page = result.text("report.html")
    notes = re.findall(r'<p class="note">(.*?)</p>', page)
    assert len(notes) >= 3
    assert all(f"All runs were {TEXT}." in note for note in notes)
    assert f"<li>all runs were {TEXT}</li>" in page
    assert result.text("tables.tex").count(f"All runs were {TEXT}.") == 2  # the captions of groups and gains
    assert "held out" in result.text("report.md")
    assert "no run has validation images that were held out" in page  # no curves of images trained on
    assert "at the last epoch" in page
    assert result.table("gains").delta.tolist() == pytest.approx([np.mean(DISTILLED) - np.mean(BASELINE)])


def test_runs_with_and_without_validation_are_never_compared(tmp_path, runs, kdbench_report):
    write_group(tmp_path / "runs", (91.0, 91.1, 91.2), validation=False, best_val_acc=None, best_val_epoch=None)
    result = kdbench_report(tmp_path / "runs")
    assert (result.code, result.error.code, result.error.key) == (2, "mismatch", "validation")
    mixed = report_of(tmp_path / "runs", allow_mixed=True)
    assert any(remark == f"groups with validation=False were {TEXT}" for remark in mixed.remarks)
    assert [row.setting for row in mixed.groups if row.shared.validation is False] == ["validation=False"]
    (gain,) = mixed.gains
    assert gain.baseline.shared.validation is True
    write_run(tmp_path / "runs", validation=False, accuracy=0.92, **BY_LOGIT)
    own = [gain for gain in report_of(tmp_path / "runs", allow_mixed=True).gains if not gain.group.shared.validation]
    assert [gain.baseline.shared.validation for gain in own] == [False]


def test_runs_without_the_key_belong_to_those_with_validation(tmp_path, runs):
    write_run(tmp_path / "runs", seed=7, validation=True)
    assert len(report_of(tmp_path / "runs").runs) == 7


def test_a_selection_among_runs_without_validation_is_refused(tmp_path, kdbench_report):
    folder = write_run(tmp_path / "runs", validation=False, **BY_LOGIT)
    candidates = [{"overrides": [], "score": 90.0, "run_keys": [folder.name.rpartition("_")[2]]}]
    selected = write_selected(tmp_path / "selected.yaml", [{"candidates": candidates}], [0], [0])
    result = kdbench_report(tmp_path / "runs", "--select", selected)
    assert (result.code, result.error.code, result.error.key) == (2, "no_validation", "--select")


def test_histories_that_cannot_be_read_are_a_remark(tmp_path):
    folders = [write_run(tmp_path, seed=seed, history=[0.5, 0.6]) for seed in range(3)]
    (folders[0] / "metrics.csv").write_text("")
    (folders[1] / "metrics.csv").write_text("epoch,val_acc\n1,much\n")
    (remark,) = [
        line for line in report_of(tmp_path).remarks if line.startswith("metrics.csv of 2 runs cannot be read")
    ]
    assert folders[0].name in remark
    assert folders[1].name in remark


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([[0.5] * 4, [0.5] * 4], ["a", "b", "a", "c"], "3 different class names for 4 class accuracies"),
        ([[0.5] * 4, [0.5] * 4], ["a", "b"], "2 different class names for 4 class accuracies"),
        ([[0.5] * 4, [0.5] * 3], ["a", "b", "c", "d"], "runs have 3 and 4 class accuracies"),
    ],
)
def test_class_accuracies_that_do_not_fit_their_names_are_a_remark(tmp_path, values, names, expected):
    for seed, accuracies in enumerate(values):
        write_run(tmp_path, seed=seed, per_class_acc=accuracies, class_names=names)
    (remark,) = [line for line in report_of(tmp_path).remarks if "classes have numbers for names" in line]
    assert expected in remark


def test_a_name_does_not_turn_round_what_follows_it(tmp_path, kdbench_report):
    write_group(tmp_path / "runs", (90.0, 90.2), student="abc\u202edef")
    write_group(tmp_path / "runs", (91.0, 91.1), student="abc\u202edef", **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs")
    for page in ("report.html", "report.md"):
        assert "\u202e" not in result.text(page)
        assert "u202edef" in result.text(page)


def test_no_complete_run_names_those_that_failed_and_what_to_do(tmp_path, kdbench_report):
    write_failed_run(tmp_path / "runs")
    error = str(kdbench_report(tmp_path / "runs").error)
    assert "FAILED, and without a result: resnet8 ce, seed 0 (not_finite)" in error
    assert error.endswith("repeat these runs, or give a folder that holds complete ones such as outputs/runs")
