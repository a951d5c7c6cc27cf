"""What only several CUDA devices can show."""

import pytest
import torch

from tests.train.test_parallel import COMMON, SMOOTH, TEACHER, check_equal, compare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def test_two_gpus_compute_what_one_does(tmp_path):
    options = tmp_path / "conf"
    (options / "model").mkdir(parents=True)
    (options / "model" / "smooth.yaml").write_text(SMOOTH)
    common = [word for word in COMMON if not word.startswith("runtime.device")]
    runs = [
        (*common, "runtime.device=cuda", "runtime.profile=repro", "recipe.lr=0.05", *TEACHER, f"method={method}")
        for method in ("logit", "feature", "rkd")
    ]
    check_equal(compare(options, tmp_path, 2, *runs), runs)
