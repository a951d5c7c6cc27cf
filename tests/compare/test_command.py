"""`kdbench-compare` as a command: output, exit codes, and what it imports."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdbench.cli import main_compare
from tests.compare.conftest import logits_for, random_run
from tests.report.conftest import write_run

CHECKOUT = Path(__file__).parents[2]
COMMAND = """
import json, sys
sys.argv = ["kdbench-compare", *{arguments!r}]
from kdbench.cli import main_compare
try:
    main_compare()
finally:
    heavy = ("torch", "torchvision", "pandas", "matplotlib", "statsmodels")
    print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
"""


def test_tables_and_json_need_no_large_library(tmp_path):
    labels = np.random.default_rng(0).integers(0, 10, 10_000)
    runs = [write_run(tmp_path, seed=s, logits=(logits_for(labels, s, 10), labels)) for s in range(2)]
    code = COMMAND.format(arguments=[*map(str, runs), "--teacher", str(runs[0]), "--json"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == []
    assert json.loads(done.stdout)["images"] == 10_000


def test_exit_codes_and_one_line_on_standard_error(tmp_path, monkeypatch, capsys):
    run = random_run(tmp_path)
    for arguments, code in (([run, run], 0), ([run, tmp_path / "nowhere"], 2)):
        monkeypatch.setattr(sys, "argv", ["kdbench-compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main_compare()
        assert leaving.value.code == code
    out, err = capsys.readouterr()
    assert out.startswith("300 test images, 5 classes\n")
    assert err.startswith("kdbench-compare: error: RUN_B is ")
    assert err.count("\n") == 1


def test_the_page_shows_the_output_of_its_command(monkeypatch, as_lines):
    monkeypatch.chdir(CHECKOUT)
    page = Path("docs/functional.md").read_text()
    (command,) = re.findall(r"^kdbench-compare (results/.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert "\n".join(as_lines(*shlex.split(command.replace("\\\n", " ")))) in page


def test_help_says_which_run_is_the_control(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdbench-compare", "--help"])
    with pytest.raises(SystemExit) as leaving:
        main_compare()
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "A is the distilled student and B its control: gains are those of A over B" in text
