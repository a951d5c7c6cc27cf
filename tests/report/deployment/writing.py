"""Run directories of compressed and measured networks, written without training or measuring anything."""

import json

from tests.report.conftest import write_run

PARAMS = {"resnet8": 78_042, "resnet32": 464_154}
MACS = {"resnet8": 12_000_000, "resnet32": 69_000_000}
STRUCTURED, INT8 = {"name": "structured", "ratio": 0.5}, {"name": "int8", "images": 512}


def key_of(folder):
    return json.loads((folder / "summary.json").read_text())["run_key"]


def write_trained(root, student, seed, accuracy, **others):
    """Write a trained run and return its summary."""
    sizes = {"num_params": PARAMS.get(student, 1000), "macs": MACS.get(student, 2000)}
    key = others.pop("run_key", f"{student}-{others.get('method', 'ce')}-{seed}-{len(list(root.glob('*')))}")
    folder = write_run(root, student=student, seed=seed, accuracy=accuracy, **sizes | others | {"run_key": key})
    return json.loads((folder / "summary.json").read_text())


REPEATED = ("teacher", "method", "role", "seed", "init_seed", "data_seed", "teacher_seed", "teacher_key", "dataset")


def repeated(parent):
    """Keys that a run which compresses or measures repeats from its parent."""
    return {key: parent[key] for key in REPEATED}


UNKNOWN = dict.fromkeys(
    ("epochs", "recipe", "best_val_acc", "best_val_epoch", "test_acc_final", "train_seconds", "images_per_second",
     "method_params", "num_train", "num_val", "teacher_test_acc", "kl_t1", "kl_t4")
)  # fmt: skip


def write_compressed(root, parent, step, accuracy, *, params=None, **others):
    """Write a run that compresses the network of a run by one more step; return its summary."""
    steps = [*((parent.get("compression") or {}).get("steps") or []), step]
    name = step["name"]
    student = f"{parent['student']}-{name}" if name == "structured" else parent["student"]
    count = params or parent["num_params"]
    values = {
        "kind": "compress", "parent_key": parent["run_key"], "compression": {"steps": steps}, "num_params": count,
        "nonzero_params": count, "sparsity": 0.0, "parent_test_acc": parent["test_acc_best"], "parent_agreement": 0.9,
        "parent_kl_t1": 0.05, "macs": round(parent["macs"] * count / parent["num_params"]),
        "run_key": f"{parent['run_key']}-{name}{step.get('ratio', '')}", "per_class_acc": [accuracy] * 10,
    }  # fmt: skip
    folder = write_run(root, student=student, accuracy=accuracy, **UNKNOWN | repeated(parent) | values | others)
    return json.loads((folder / "summary.json").read_text())


def measurement(together, ms, size, *, device="a CPU", threads=1, **others):
    """Section `measurement`: latencies by batch grow in proportion to the batch."""

    def entry(batch, factor=1.0):
        own = ms * batch * factor
        return {
            "median_ms": own, "low_ms": 0.9 * own, "high_ms": 1.2 * own, "images_per_second": 1000 * batch / own,
        }  # fmt: skip

    return {
        "together": together, "device": device, "threads": threads, "rounds": 20, "size_bytes": size,
        "size_compressed_bytes": round(0.9 * size), "size_format": "onnx",
        "latency": {"onnx": {"1": entry(1), "64": entry(64, 0.5)}, "torch": {"1": entry(1, 2.0), "64": entry(64)}},
        "peak_memory_bytes": 50_000_000, "energy_mj_per_image": None,
        "missing": {"energy_mj_per_image": "the processor has no counter of energy"},
    } | others  # fmt: skip


def write_measured(root, parent, together=("all",), *, ms, size, accuracy=None, **others):
    """Write a run that measures the network of a run; return its summary."""
    kept = ("num_params", "macs", "compression", "nonzero_params", "sparsity", "student", "class_names")
    values = {key: parent.get(key) for key in kept}
    values |= {key: parent.get(key) for key in ("parent_test_acc", "parent_agreement", "parent_kl_t1")}
    accuracy = parent["test_acc_best"] if accuracy is None else accuracy
    own = {key: others.pop(key) for key in list(others) if key in (
        "device", "threads", "latency", "missing", "energy_mj_per_image", "peak_memory_bytes", "size_format"
    )}  # fmt: skip
    values |= {
        "kind": "measure", "parent_key": parent["run_key"], "per_class_acc": parent["per_class_acc"],
        "run_key": f"{parent['run_key']}-measured-{'-'.join(together)}",
        "measurement": measurement(list(together), ms, size, **own),
    }  # fmt: skip
    folder = write_run(root, accuracy=accuracy, **UNKNOWN | repeated(parent) | values | others)
    return json.loads((folder / "summary.json").read_text())


def write_study(root, seeds=range(3), energy=False):
    """Write twelve forms, measured together: a teacher, small networks, and what compression makes of them."""

    def measure(run, ms, size):
        spread = 1 + 0.01 * (run["seed"] % 3)
        extra = {"energy_mj_per_image": 4 * ms, "missing": {}} if energy else {}
        return write_measured(root, run, ms=ms * spread, size=size, **extra)

    for seed in seeds:
        wobble = (0.0, 0.002, -0.001, 0.001, -0.002)[seed % 5]
        teacher = write_trained(root, "resnet32", seed, 0.925 + wobble)
        measure(teacher, 1.9, 1_890_000)
        small = write_trained(root, "resnet8", seed, 0.86 - wobble)
        measure(small, 0.41, 330_000)
        own = {"teacher": "resnet32", "role": "distilled"}
        distilled = write_trained(root, "resnet8", seed, 0.885 + wobble / 2, method="logit", **own)
        measure(distilled, 0.41, 330_000)
        relational = write_trained(root, "resnet8", seed, 0.88 + wobble / 3, method="relational", **own)
        measure(relational, 0.41, 330_000)
        for run, size in ((small, 96_000), (distilled, 96_000), (teacher, 510_000)):
            latency = 0.3 if run["student"] == "resnet8" else 1.1
            measure(write_compressed(root, run, INT8, run["test_acc_best"] - 0.004 - 0.0003 * seed), latency, size)
        for ratio, loss, ms, size in (
            (0.5, 0.09, 1.1, 800_000),
            (0.7, 0.21, 0.75, 370_000),
            (0.9, 0.62, 0.38, 310_000),
        ):
            step = {"name": "structured", "ratio": ratio}
            pruned = write_compressed(root, teacher, step, 0.925 - loss + wobble - loss * seed / 50, params=size // 4)
            measure(pruned, ms, size)
            if ratio == 0.5:
                measure(write_compressed(root, pruned, INT8, 0.925 - loss - 0.01), 0.7, 220_000)
            if ratio == 0.7:
                tuned = write_trained(
                    root, "resnet32-structured", seed, 0.89 - wobble, parent_key=pruned["run_key"],
                    compression=pruned["compression"], num_params=pruned["num_params"], macs=pruned["macs"],
                )  # fmt: skip
                measure(tuned, 0.75, 370_000)
