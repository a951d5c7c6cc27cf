"""The table at the end of a sweep, and what the command imports."""

import subprocess
import sys

import pytest

from kdbench.errors import ConfigError
from kdbench.report.table import runs_table
from tests.report.conftest import write_run


def lines_of(paths):
    return [line.split() for line in runs_table(paths).splitlines()[1:]]


def test_a_gain_is_over_the_baseline_run_of_the_same_seed(tmp_path):
    paths = [
        write_run(tmp_path, method="my_ce", role="baseline", seed=seed, accuracy=accuracy, baseline_key=f"b{seed}")
        for seed, accuracy in ((0, 0.9), (1, 0.8))
    ]
    for seed in (0, 1, 2):
        others = {"teacher": "resnet20", "method": "logit", "baseline_key": f"b{seed}"}
        paths.append(write_run(tmp_path, seed=seed, accuracy=0.91, **others))
    assert [line[5] for line in lines_of(paths)] == ["-", "-", "+1.00", "+11.00", "-"]
    assert [line[3] for line in lines_of(paths)] == ["0", "1", "0", "1", "2"]


def test_a_line_names_the_protocol_of_runs_without_validation(tmp_path):
    path = write_run(tmp_path, validation=False)
    assert runs_table([path]).splitlines()[-1].startswith("all runs were trained without validation images held out")


def test_a_run_given_twice_is_one_line(tmp_path):
    path = write_run(tmp_path)
    assert len(lines_of([path, path])) == 1


def test_a_folder_without_a_complete_run_is_refused(tmp_path):
    with pytest.raises(ConfigError) as refused:
        runs_table([tmp_path])
    assert refused.value.code == "no_run"


def test_command_line_and_help_import_nothing_heavy():
    code = (
        "import sys\n"
        "from kdbench.report.command import report\n"
        "try:\n    report(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(bool({'torch', 'pandas', 'scipy', 'matplotlib', 'jinja2', 'statsmodels'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
