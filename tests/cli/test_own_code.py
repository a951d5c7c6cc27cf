"""A method of the user's own, edited between two calls of the same command."""

import subprocess
import sys
import textwrap

import pytest

from tests.conftest import NARROW, SMALL

METHOD = """
from kdbench.methods import LogitDistillation, LossOutput

FACTOR = 1.0

class Scaled(LogitDistillation):
    def forward(self, *args):
        terms, logits = super().forward(*args)
        return LossOutput(terms | {"total": FACTOR * terms["total"]}, logits)
"""


@pytest.mark.slow
def test_an_edited_method_is_another_run(tmp_path):
    file = tmp_path / "my_method.py"
    file.write_text(textwrap.dedent(METHOD))
    (tmp_path / "my" / "method").mkdir(parents=True)
    (tmp_path / "my" / "method" / "scaled.yaml").write_text(
        "_target_: my_method.Scaled\nalpha: 0.5\nce_weight: null\nkd_weight: null\ntemperature: 4.0\n"
    )

    def run():
        result = subprocess.run(
            [sys.executable, "-B", "-m", "kdbench", "--config-dir", "my", *SMALL, *NARROW, "method=scaled"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return "epoch 1/1" in result.stdout, sorted((tmp_path / "outputs" / "runs").glob("*_scaled_*"))

    trained, first = run()
    assert (trained, len(first)) == (True, 1)
    assert run() == (False, first)
    file.write_text(file.read_text().replace("FACTOR = 1.0", "FACTOR = 2.0"))
    trained, both = run()
    assert (trained, len(both)) == (True, 2)
    numbers = [(folder / "metrics.csv").read_text() for folder in both]
    assert numbers[0] != numbers[1]
