"""The command as a person uses it."""

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from kdbench import cli
from kdbench.locks import held
from kdbench.stopping import leave_if_asked
from tests.conftest import NARROW, SMALL, composed_once

TINY = (*SMALL, *NARROW, "output_root=out")


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".locks" not in p.parts)


def test_one_call_is_one_run_and_writes_its_directory_and_its_teachers_only(kdbench, tmp_path):
    result = kdbench(*TINY)
    assert result.code == 0, result.err
    assert result.err == ""
    names = {name.split("/")[2].rsplit("_", 1)[0] for name in files(tmp_path / "home")}
    assert names == {"shapes_resnet20_ce_seed0", "shapes_resnet8_logit_from_resnet20_seed0"}
    again = kdbench(*TINY)
    assert again.code == 0
    assert "complete already, skipped" in again.out


def test_sweep_makes_every_run_one_record_and_a_table(kdbench, teachers_once, tmp_path):
    shutil.copytree(teachers_once / "runs", tmp_path / "home" / "out" / "runs")
    result = kdbench("-m", *TINY, "method=ce,logit,feature")
    assert result.code == 0, result.err
    home = tmp_path / "home"
    records = [name for name in files(home) if not name.startswith("out/runs/")]
    assert len(records) == 1
    record = json.loads((home / records[0]).read_text())
    assert [job["status"] for job in record["jobs"]] == ["complete"] * 3
    assert all((home / job["run"] / "summary.json").is_file() for job in record["jobs"])
    header, *rows = result.out[result.out.index("student  teacher") :].splitlines()[:4]
    assert header.split("  ")[0] == "student"
    assert [row.split()[2] for row in rows] == ["ce", "logit", "feature"]
    assert rows[0].split()[5] == "-"
    assert rows[1].split()[5][0] in "+-"


def test_failing_jobs_print_their_lines_and_the_others_run(kdbench, tmp_path):
    result = kdbench("-m", *TINY, "method=ce,lgit", "recipe.epochs=1,0")
    assert result.code == 1
    lines = result.err.splitlines()
    assert len(lines) == 4
    assert "method=lgit is no option; did you mean logit?" in result.err
    assert "recipe.epochs is 0" in result.err
    assert lines[-1] == "kdbench: error: 3 of 4 jobs failed (each said why above)"
    (record,) = (tmp_path / "home" / "out" / "sweeps").iterdir()
    assert [job["status"] for job in json.loads(record.read_text())["jobs"]].count("complete") == 1


def test_job_that_fails_only_when_it_starts_does_not_stop_the_others(kdbench):
    result = kdbench("-m", *TINY, "method=ce", "data.num_train=64,200000")
    assert result.code == 1
    assert "draws at most 100000 images" in result.err
    assert "Traceback" not in result.err


def test_sweep_without_a_job_that_can_run_writes_nothing(kdbench, tmp_path):
    result = kdbench("-m", *TINY, "method=ce", "recipe.epochs=0,-1")
    assert result.code == 1
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.slow
def test_overwrite_repeats_a_run(kdbench):
    kdbench(*TINY, "method=ce")
    result = kdbench(*TINY, "method=ce", "overwrite=true")
    assert result.code == 0
    assert "epoch 1/1" in result.out


def test_printing_a_config_writes_nothing(kdbench, tmp_path):
    result = kdbench("--cfg", "job", "method=ce")
    assert result.code == 0
    assert "CrossEntropy" in result.out
    assert not list((tmp_path / "home").iterdir())


def test_own_configs_are_added_with_config_dir(kdbench, tmp_path):
    own = tmp_path / "own"
    for folder in ("model", "pair"):
        (own / folder).mkdir(parents=True)
    (own / "model" / "narrow.yaml").write_text(
        "_target_: kdbench.models.cifar_resnet.CifarResNet\ndepth: 8\nwidths: [8, 8, 16, 32]\n"
        "stages: {layer1: layer1, layer2: layer2, layer3: layer3, pooled: flatten}\n"
    )
    (own / "pair" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /teacher: narrow\n  - override /student: narrow\n"
    )
    tiny = [o for o in TINY if not o.startswith(("student", "teacher=", "teacher.widths"))]
    result = kdbench("--config-dir", str(own), *tiny, "pair=mine")
    assert result.code == 0, result.err
    assert "narrow logit from narrow" in result.out
    wrong = kdbench("--config-dir", str(own), *TINY, "student=narow")
    assert wrong.code == 2
    assert "did you mean narrow?" in wrong.err


@pytest.mark.parametrize(
    ("asked", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)]
)
def test_signal_ends_a_run_with_one_line(kdbench, monkeypatch, asked, code):
    from kdbench import run

    before = signal.getsignal(asked)

    def interrupted(*arguments):
        signal.raise_signal(asked)
        leave_if_asked()

    monkeypatch.setattr(run, "fit", interrupted)
    result = kdbench(*TINY, "method=ce")
    assert result.code == code
    assert result.err == f"kdbench: stopped by {asked.name}; the same command goes on where it was\n"
    assert signal.getsignal(asked) is before


LARGEST_FILES = [10_000, 200_000]
"""Files may not grow past a limit, which fails as a full disk does: first the metrics, then the weights."""


@pytest.mark.parametrize("limit", LARGEST_FILES)
def test_disk_without_room_is_said_in_one_line(kdbench, tmp_path, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        result = kdbench(*SMALL, "output_root=out", "method=ce")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said_in_one_line(result.code, result.err, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("limit", LARGEST_FILES)
def test_disk_without_room_is_said_in_one_line_until_the_process_ends(tmp_path, limit):
    def restrict():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "kdbench", *SMALL, "output_root=out", "method=ce"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=restrict)
    said_in_one_line(result.returncode, result.stderr, tmp_path)


def said_in_one_line(code, err, folder):
    assert code == 1, err
    assert err.count("\n") == 1
    assert err.startswith("kdbench: error: out/runs/shapes_resnet8_ce_seed0_")
    assert not list(folder.rglob("summary.json"))


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        (cli.main_study, ["--minutes", "x"], "argument --minutes: invalid float value: 'x'; see kdbench-study --help"),
        (cli.main_report, ["runs"], "the following arguments are required: --out; see kdbench-report --help"),
        (
            cli.main_bench,
            ["--rounds", "0"],
            "argument --rounds: '0' is no whole number of at least 1; see kdbench-bench",
        ),
        (cli.main_bench, ["=1"], "Config group override must be a string or a list"),
        (cli.main_study, ["study=lab", "+=1", "--dry-run"], "Config group override must be a string or a list"),
    ],
)
def test_flags_of_the_other_commands_are_refused_in_one_line_too(monkeypatch, capfd, entry, arguments, message):
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as leaving:
        entry()
    err = capfd.readouterr().err
    assert leaving.value.code == 2
    assert message in err
    assert err.count("\n") == 1


def test_weights_that_overflow_after_the_last_step_are_no_result(kdbench, tmp_path):
    result = kdbench(*TINY, "method=ce", "recipe.lr=1e9", "data.num_train=40", "recipe.batch_size=20")
    assert result.code == 1
    assert "epoch 1: the weights give logits that are not finite. Lower recipe.lr" in result.err
    assert result.err.count("\n") == 1
    assert not list((tmp_path / "home").rglob("summary.json"))


def test_wrong_order_of_flags_is_explained(kdbench):
    result = kdbench("method=ce", "-m", "seed=0,1")
    assert result.code == 2
    assert "flags such as -m stand before the first KEY=VALUE" in result.err


def test_interrupted_sweep_keeps_a_record_of_what_was_done(kdbench, tmp_path, monkeypatch):
    from kdbench import run

    fit, calls = run.fit, []

    def second_is_interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            leave_if_asked()
        fit(*arguments)

    monkeypatch.setattr(run, "fit", second_is_interrupted)
    assert kdbench("-m", *TINY, "method=ce", "seed=0,1,2").code == 130
    (record,) = (tmp_path / "home" / "out" / "sweeps").iterdir()
    jobs = json.loads(record.read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["complete", "interrupted", "not started"]


def test_broken_yaml_of_the_user_is_named(kdbench, tmp_path):
    (tmp_path / "own" / "model").mkdir(parents=True)
    file = tmp_path / "own" / "model" / "broken.yaml"
    for content, message in (("{a: [", "is no valid YAML"), ("- a\n- b\n", "describes no model")):
        file.write_text(content)
        result = kdbench("--config-dir", str(tmp_path / "own"), *TINY)
        assert result.code == 2
        assert f"{file} {message}" in result.err
        assert result.err.count("\n") == 1


def test_help_and_version_read_well_and_import_neither_torch_nor_torchvision():
    code = (
        "import sys; from kdbench import cli\n"
        "for flag in ('--version', '--help'):\n"
        "    sys.argv = ['kdbench', flag]\n"
        "    try: cli.main()\n"
        "    except SystemExit as leaving: print(flag, leaving.code or 0, file=sys.stderr)\n"
        "print([m for m in ('torch', 'torchvision') if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.splitlines() == ["--version 0", "--help 0", "[]"]
    version, _, help_text = result.stdout.partition("\n")
    assert version.startswith("kdbench")
    assert help_text.startswith("kdbench")
    assert "method: ce, feature, logit" in help_text
    assert "experiment=quickstart" in help_text


def test_runs_that_another_process_has_are_left_and_no_errors(kdbench, tmp_path):
    from kdbench.run import located

    home = tmp_path / "home"
    config = composed_once(*TINY, "method=ce", "seed=1")
    directory = located(config)[1]
    lock = home / "out" / ".locks" / f"{directory.key}.lock"
    with held(lock, "this run"):
        alone = kdbench(*TINY, "method=ce", "seed=1", "on_busy=skip")
        sweep = kdbench("-m", *TINY, "method=ce", "seed=0,1", "on_busy=skip")
    assert (alone.code, sweep.code) == (75, 75)
    assert alone.err.startswith("kdbench: process ")
    assert alone.err.count("\n") == 1
    assert "left: process " in sweep.out
    assert sweep.err == "kdbench: 1 of 2 jobs were left to the processes that have them\n"
    (record,) = (home / "out" / "sweeps").iterdir()
    assert [job["status"] for job in json.loads(record.read_text())["jobs"]] == ["complete", "left"]
