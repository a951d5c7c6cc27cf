"""Checks of a run against its parent: it is still the recorded one, and the numbers follow from both runs."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from kdbench.config.derived import COMPRESS, MEASURE, TRAIN
from kdbench.models.counts import count_weights
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.related import RelatedRun, network_before, read_related
from kdbench.rundir.student import build_trained
from kdbench.rundir.summary import RunSummary, read_unverified
from kdbench.runner.compressing import compress_parent, fidelity_to_parent, load_compressed, logits_in_fp32, named
from kdbench.system.device import place, torch_settings
from kdbench.train.evaluate import predict
from kdbench.verify.artifacts import Artifacts, Options, existing, find_beside
from kdbench.verify.checks import Checks, NotChecked, needed
from kdbench.verify.numbers import FLIP_TOLERANCE, LOGIT_TOLERANCE

PARENT = "run of the parent"


def check_parent(run: Artifacts, checks: Checks, options: Options) -> None:
    """Check a run against its parent; nothing for a run without one."""
    if run.summary.parent_key is None and (run.config is None or run.config.parent is None):
        return
    with checks.checking(PARENT):
        folder = find_beside(run, run.summary.parent_key, "parent")
        summary, matches = read_unverified(folder)
        if not matches or summary.run_key != run.summary.parent_key:
            checks.failed(PARENT, f"{folder.name}/summary.json was changed since it was written")
        else:
            checks.passed(PARENT, folder.name)
        weights = existing(RunDirectory(folder, summary.run_key).weights)
        checks.same("of the present parent", parent_weights_sha256=sha256(weights))
        check_record(run, summary, checks)
        if run.summary.kind == COMPRESS:
            check_weights(run, checks)
            check_compression(run, folder, checks, options)
        if run.summary.kind == MEASURE:
            check_measured(run, folder, checks)
            check_counts_of_measured(run, folder, summary, checks, options)
        check_before(run, folder, checks, options)


def check_weights(run: Artifacts, checks: Checks) -> None:
    """Check the counts of the weights of a compressed network."""
    with checks.checking("counts of the weights"):
        nonzero, sparsity = count_weights(needed(run.network, "best.safetensors"))
        checks.same("of the weights", nonzero_params=nonzero, sparsity=sparsity)


def check_compression(run: Artifacts, folder: Path, checks: Checks, options: Options) -> None:
    """Check that the compression, repeated with the parent's weights, gives a network with the same logits."""
    what = "compression repeated"
    with checks.checking(what):
        if options.quick:
            raise NotChecked("--quick")
        config, dataset = needed(run.config, "config.yaml"), needed(run.dataset, "the data")
        logits, runtime = needed(run.logits, "logits.safetensors"), needed(run.runtime, "config.yaml")
        parent = read_related(folder, "parent", options.trusted)
        with torch_settings(runtime):
            compressed = compress_parent(config, parent, dataset)
            network = load_compressed(named(compressed, config), compressed, dataset)
            computed = predict(place(network, runtime), dataset, dataset.test, runtime)
        # Ranges of activations that differ in their last bits round some activations to the other neighbour.
        rounded = config.compress is not None and not config.compress.target.trainable
        tolerance = LOGIT_TOLERANCE["bf16" if rounded else "fp32"]
        compare(what, computed, logits["test_logits"].float(), tolerance, checks)


def check_measured(run: Artifacts, folder: Path, checks: Checks) -> None:
    """Check that the logits of a measurement are those of the measured run, up to the engine's rounding."""
    what = "logits in the engine"
    with checks.checking(what):
        measured = needed(run.logits, "logits.safetensors")["test_logits"].float()
        own = load_file(existing(folder / "logits.safetensors"))["test_logits"].float()
        parent = read_unverified(folder)[0]
        compare(what, measured, own, LOGIT_TOLERANCE["bf16" if parent.precision == "bf16" else "fp16"], checks)


def compare(what: str, computed: Tensor, recorded: Tensor, tolerance: float, checks: Checks) -> None:
    """Add the check that two sets of logits are alike."""
    difference, largest = float((computed - recorded).abs().max()), float(recorded.abs().max())
    flips = int((computed.argmax(1) != recorded.argmax(1)).sum())
    detail = (
        f"largest difference {difference:.2g} of logits up to {largest:.3g}, {flips} of {len(recorded)} predictions "
        "differ"
    )
    fine = difference <= tolerance * largest and flips <= max(2, FLIP_TOLERANCE * len(recorded))
    (checks.passed if fine else checks.failed)(what, detail)


def check_before(run: Artifacts, folder: Path, checks: Checks, options: Options) -> None:
    """Check the numbers that compare the network with the one before it was compressed."""
    if run.summary.kind not in (COMPRESS, MEASURE):
        return
    with checks.checking("comparison with the network before"):
        before: RelatedRun | None = read_related(folder, "parent", options.trusted)
        if run.summary.kind == MEASURE and before is not None:
            if before.config.kind == TRAIN and before.config.parent is None:
                return  # it was never compressed
            before = network_before(before, options.trusted)
        if before is None:
            raise NotChecked("needs the run before the compression, which does not lie beside this one")
        if before.summary.precision != "fp32" and options.quick:
            raise NotChecked("--quick")
        logits = needed(run.logits, "logits.safetensors")
        dataset, runtime = needed(run.dataset, "the data"), needed(run.runtime, "config.yaml")
        with torch_settings(runtime):
            test = logits_in_fp32(before, dataset, runtime)
        values = fidelity_to_parent(logits["test_logits"].float(), test, logits["test_labels"].numpy())
        checks.same("from the logits of both runs", run.tolerance, **values)


def check_record(run: Artifacts, parent: RunSummary, checks: Checks) -> None:
    """Check what a run repeats of its parent."""
    with checks.checking("record of the parent"):
        config = needed(run.config, "config.yaml")
        own = needed(config.parent, "the parent in config.yaml")
        steps = (parent.compression or {}).get("steps", [])
        checks.compare("steps of the parent", steps, own.steps, "in the parent's summary")
        checks.compare("group of the parent", parent.group_key, own.group, "in the parent's summary")
        if run.summary.kind in (COMPRESS, MEASURE):
            checks.same("of the parent", teacher_key=parent.teacher_key, teacher_test_acc=parent.teacher_test_acc)


def check_counts_of_measured(
    run: Artifacts, folder: Path, parent: RunSummary, checks: Checks, options: Options
) -> None:
    """Check the sizes of a measured network: those of its run, and the counts of its weights."""
    with checks.checking("counts of the weights"):
        measured = read_related(folder, "parent", options.trusted)
        network, _ = build_trained(measured.config, run.spec, measured.directory.weights)
        nonzero, sparsity = count_weights(network)
        checks.same(
            "of the measured run",
            num_params=parent.num_params, macs=parent.macs, inference_params=parent.inference_params,
            inference_macs=parent.inference_macs, nonzero_params=nonzero, sparsity=sparsity,
        )  # fmt: skip
