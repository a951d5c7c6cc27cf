#!/usr/bin/env python3
"""Run all checks that need a GPU, in under nine minutes: `make gpu-checks`.

Writes benchmarks/gpu-DEVICE.json after each part and, from all such files, the table of docs/gpu-checks.md.
    scripts/gpu_checks.py            run the checks on this machine's CUDA device
    scripts/gpu_checks.py --page     run nothing, and write the table from the existing files
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu-checks.md"
RESULTS = ROOT / "benchmarks"
TESTS_LIMIT, LOCKSTEP_LIMIT, BENCH_LIMIT = 180, 60, 280
"""Limits in seconds; the results of a part that reaches its limit are kept."""
NO_DEVICE = 2
"""Exit code on a machine without a CUDA device."""
LOCKSTEP = ("--set", "gpu-lockstep", "--rounds", "3", "--seconds", "1")
BENCH = ("--set", "gpu", "--rounds", "3", "--seconds", "1")


@dataclass(frozen=True)
class Check:
    """One line of the page: what is checked, and by which test functions, or by which case and arm of the benchmark."""

    what: str
    tests: tuple[str, ...] = ()
    case: tuple[str, str] | None = None
    """Student and method of a case of `kdbench-bench --set gpu`."""
    arm: str = "kdbench"
    lockstep: bool = False

    @property
    def command(self) -> str:
        """Command that runs the check, as Markdown."""
        if self.lockstep:
            return f"`kdbench-bench {' '.join(LOCKSTEP)}`"
        if self.tests:
            return "`pytest -m gpu -k '" + " or ".join(self.tests) + "'`"
        return f"`kdbench-bench {' '.join(BENCH)}`"


CHECKS = (
    Check("every method trains in fp32, bf16 and fp16", ("test_every_method_trains_in_every_precision",)),
    Check("`auto` chooses CUDA, and bf16 where it is native", ("test_auto_chooses_cuda_and_its_native_precision",)),
    Check(
        "`runtime.profile=repro` repeats bit for bit, every method",
        ("test_runs_of_the_repro_profile_repeat_bit_for_bit",),
    ),
    Check(
        "a run killed after epoch 2, or in the middle of epoch 3, resumes to the same bits",
        ("test_killed_run_resumes_to_the_same_numbers",),
    ),
    Check(
        "a run that a signal stops resumes to the same bits",
        ("test_run_that_a_signal_stops_resumes_to_the_same_numbers",),
    ),
    Check(
        "a step that is not finite blocks all later ones on the device",
        ("test_first_step_that_is_not_finite_blocks_all_later_ones_and_is_named",),
    ),
    Check(
        "a step that is not finite can be skipped, together with its change of running statistics",
        ("test_step_that_is_not_finite_may_be_skipped_with_what_it_did_to_running_statistics",),
    ),
    Check(
        "no training step waits for the host, with a live and with a cached teacher, captured or eager",
        ("test_no_step_waits_for_the_host",),
    ),
    Check(
        "50 steps captured as CUDA graphs and eager: losses within 1e-5 in fp32, every method",
        ("test_captured_steps_compute_what_eager_ones_do",),
    ),
    Check(
        "20 steps of the fused optimiser and of the plain one: losses within 1e-5 in fp32",
        ("test_fused_optimiser_steps_as_the_plain_one_does",),
    ),
    Check(
        "a method that waits for the device is trained eagerly, after one log line with the reason",
        ("test_a_step_that_cannot_be_captured_stays_eager_with_one_line",),
    ),
    Check(
        "runs in lockstep compute what each does alone, bit for bit with `runtime.profile=repro`",
        ("test_lockstep_computes_what_each_run_does_alone",),
    ),
    Check(
        "a compiled student trains as the plain one does",
        ("test_compiled_student_trains_and_is_close_to_the_plain_one",),
    ),
    Check("two GPUs, by torchrun and NCCL, compute what one does", ("test_two_gpus_compute_what_one_does",)),
    Check(
        "`hydra/launcher=joblib`: no GPU ever has two runs, unless told so, and all of them work",
        (
            "test_no_gpu_ever_has_two_runs_and_all_of_them_work",
            "test_two_workers_share_a_gpu_where_they_are_told_to",
        ),
    ),
    Check("batched views equal torchvision's, bit for bit", ("test_views_equal_torchvisions",)),
    Check(
        "no step of a recipe with AdamW, averaged weights, mixed images or a policy waits for the host",
        ("test_no_step_of_any_recipe_waits_for_the_host",),
    ),
    Check(
        "runs with these recipes, killed in the middle of an epoch, resume to the same bits",
        ("test_every_recipe_resumes_to_the_same_numbers",),
    ),
    Check(
        "batches of these recipes are those of the CPU, up to rounding",
        ("test_batches_of_every_recipe_are_those_of_the_cpu",),
    ),
    Check(
        "images in the memory of the host give the batches of images on the device",
        ("test_images_in_the_memory_of_the_host_give_the_same_batches",),
    ),
    Check(
        "every operation of RandAugment and TrivialAugment gives the bytes of the CPU, without waiting for the host",
        ("test_a_cuda_device_gives_the_results_of_the_cpu_and_is_not_waited_for",),
    ),
    Check(
        "a teacher with fused batch norm computes what the plain one does, in every precision",
        ("test_a_fused_teacher_computes_what_the_plain_one_does",),
    ),
    Check(
        "the logit cache holds the logits of the live teacher, in every precision",
        ("test_the_logit_cache_holds_the_logits_of_the_live_teacher",),
    ),
    Check(
        "ResNet-18 `ce`, batch 128, against the reference (target: 58,800 images/s, 25 % of 790 TFLOP/s)",
        case=("resnet18", "ce"),
    ),
    Check("the same without CUDA graphs", case=("resnet18", "ce"), arm="kdbench-eager"),
    Check("ResNet-50 to ResNet-18 `logit`, live teacher", case=("resnet18", "logit")),
    Check(
        "ResNet-50 to ResNet-18 `logit`, logit cache (target: 5 times)", case=("resnet18", "logit"), arm="kdbench-cache"
    ),
    Check("ResNet-50 to ResNet-18 `feature`, live teacher", case=("resnet18", "feature")),
    Check("ResNet-101 to ResNet-34 `logit`, logit cache", case=("resnet34", "logit"), arm="kdbench-cache"),
    Check("ResNet-50 `ce`: training a teacher (target: 20 % of 790 TFLOP/s)", case=("resnet50", "ce")),
    Check("6 learners with one ResNet-50 teacher in lockstep, compared to one after the other", lockstep=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="run nothing, and write the page from the existing files")
    code = 0
    if not parser.parse_args().page:
        code = measure()
    if code != NO_DEVICE:
        PAGE.write_text(page())
        print(f"written: {PAGE.relative_to(ROOT)}")
    return code


def measure() -> int:
    """Run every part, write the results after each, and return the exit code."""
    import torch

    if not torch.cuda.is_available():
        print(
            "gpu-checks: error: this machine has no CUDA device; docs/gpu-checks.md lists the checks", file=sys.stderr
        )
        return NO_DEVICE
    device = torch.cuda.get_device_name()
    out = RESULTS / f"gpu-{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-').lower()}.json"
    out.parent.mkdir(exist_ok=True)
    before = json.loads(out.read_text()) if out.is_file() else {}
    result: dict[str, Any] = {
        "device": device,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "tests": before.get("tests", {}),
        "lockstep": before.get("lockstep"),
        "bench": before.get("bench"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        report, bench = Path(scratch) / "tests.xml", Path(scratch) / "bench.json"
        pytest = ["-m", "pytest", "-m", "gpu", "-o", "addopts=", "-q", "tests/gpu", f"--junitxml={report}"]
        passed = run(pytest, TESTS_LIMIT)
        result["tests"] |= outcomes(report)
        out.write_text(json.dumps(result, indent=2) + "\n")
        measured = True
        for part, arguments, limit in (("lockstep", LOCKSTEP, LOCKSTEP_LIMIT), ("bench", BENCH, BENCH_LIMIT)):
            main_bench = ["-c", "from kdbench.cli import main_bench; main_bench()", *arguments, "--out", str(bench)]
            measured = run(main_bench, limit) and measured
            if bench.is_file():
                result[part] = json.loads(bench.read_text())
                bench.unlink()
            out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {out.relative_to(ROOT)}")
    return 0 if passed and measured else 1


def run(arguments: list[str], seconds: float) -> bool:
    """Run python with some arguments, and return whether it succeeded in time."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"gpu-checks: stopped after {seconds:.0f} s: {' '.join(arguments[:4])} ...", file=sys.stderr)
        return False
    return done.returncode == 0


def outcomes(report: Path) -> dict[str, dict[str, int]]:
    """Return how many cases of each test function passed, failed or were skipped, from a JUnit report."""
    counts: dict[str, dict[str, int]] = {}
    if not report.is_file():
        return counts
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), "passed")
        function = counts.setdefault(case.get("name", "").partition("[")[0], {})
        function[outcome] = function.get(outcome, 0) + 1
    return counts


def page(results: Path = RESULTS) -> str:
    """Return the content of docs/gpu-checks.md, from the results in a folder."""
    files = [json.loads(file.read_text()) for file in sorted(results.glob("gpu-*.json"))]
    rows = [f"| {check.what} | {check.command} | {latest(check, files)} |" for check in CHECKS]
    head, _, _ = PAGE.read_text().partition("| check |")
    return head + "\n".join(["| check | command | latest result, machine, date |", "|---|---|---|", *rows]) + "\n"


def latest(check: Check, files: list[dict[str, Any]]) -> str:
    """Return the newest result of a check, for the page."""
    for file in sorted(files, key=lambda file: file["date"], reverse=True):
        found = tests_result(check, file) if check.tests else lockstep_result(check, file) or bench_result(check, file)
        if found:
            return f"{found}; {file['device']}, torch {file['torch']}, {file['date']}"
    return "not yet measured"


def tests_result(check: Check, file: dict[str, Any]) -> str | None:
    """Return the outcomes of a check's tests, or None if not all were run."""
    counts = [file["tests"][test] for test in check.tests if test in file["tests"]]
    if len(counts) < len(check.tests):
        return None
    total: dict[str, int] = {}
    for count in counts:
        for outcome, number in count.items():
            total[outcome] = total.get(outcome, 0) + number
    return ", ".join(f"{number} {outcome}" for outcome, number in total.items())


def lockstep_result(check: Check, file: dict[str, Any]) -> str | None:
    """Return the speed in lockstep, or None if it was not measured."""
    found = (file.get("lockstep") or {}).get("lockstep")
    if not check.lockstep or not found:
        return None
    ratio = found["ratio"]
    return f"{ratio['median']:.2f} times as fast ({ratio['lowest']:.2f} to {ratio['highest']:.2f}, n={ratio['n']})"


def bench_result(check: Check, file: dict[str, Any]) -> str | None:
    """Return the speed of a check's case and arm, or None if it was not measured."""
    for case in (file["bench"] or {"cases": []})["cases"]:
        if (case["student"], case["method"]) == check.case:
            for row in case["arms"]:
                if row["arm"] == check.arm:
                    ratio, speed, share = row["ratio"], row["images_per_second"], row["share_of_peak"]
                    return (
                        f"{ratio['median']:.1f} times the reference ({ratio['lowest']:.1f} to {ratio['highest']:.1f}, "
                        f"n={ratio['n']}), {speed['median']:,.0f} images/s"
                        + (f", {row['flops_per_second'] / 1e12:.0f} TFLOP/s" if share else "")
                        + (f", {share:.1%} of the peak" if share else "")
                        + (f", {row['memory_bytes'] / 1e9:.1f} GB" if row.get("memory_bytes") else "")
                    )
    return None


if __name__ == "__main__":
    sys.exit(main())
