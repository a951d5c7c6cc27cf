"""Columns of the tables of deployment."""

from kdbench.report.column import PER_CENT, POINTS, Column, named

MS, WHOLE = ",.3f", ",.0f"

DEPLOYMENT = named(
    form=Column("form", "network, training and compression in words: equal in all but the seeds"),
    session=Column(
        "session",
        "number of the measuring session: runs that were measured in turn in one process on one device; latencies of "
        "different sessions cannot be compared; empty: not measured", "d",
    ),
    measured_on=Column("measured on", "processor of the session, and number of threads"),
    rounds=Column("rounds", "number of rounds in which every network of the session was timed in turn", "d"),
    compression=Column("compression", "steps of compression and fine-tuning, in order; empty: none"),
    form_mean=Column(
        "accuracy %", "mean test accuracy over the runs, of the network as it runs in the inference engine", PER_CENT
    ),
    form_std=Column("std (form)", "sample standard deviation of it over the runs, in points", PER_CENT),
    n_parent=Column(
        "n (last compression)", "number of runs for which the accuracy before the last compression is known", "d"
    ),
    parent_change=Column(
        "change (last compression)",
        "accuracy minus that of the same run's network before its last compression, in points",
        POINTS,
    ),
    parent_low=Column(
        "last compression from", "lower end of its 95 % t-interval over seeds, paired by seed, not corrected", POINTS
    ),
    parent_high=Column("last compression to", "upper end of it", POINTS),
    n_start=Column("n (all steps)", "number of runs whose trained run, before any compression, is in the report", "d"),
    start_change=Column(
        "change (all steps)",
        "accuracy minus the test accuracy of the trained run that the compression began with, in points", POINTS,
    ),
    start_low=Column(
        "all steps from", "lower end of its 95 % t-interval over seeds, paired by seed, not corrected", POINTS
    ),
    start_high=Column("all steps to", "upper end of it", POINTS),
    parent_agreement=Column(
        "agreement before %", "test images on which the network predicts the same class as before its last compression",
        PER_CENT,
    ),
    parent_kl_t1=Column("KL to before", "mean KL(before ‖ after the last compression) in nats", ".4f"),
    nonzero_params=Column("nonzero", "parameters that are not zero, mean over the runs", WHOLE),
    sparsity=Column("sparsity %", "share of zeros among the weights of convolutions and linear layers", ".1f"),
    size_bytes=Column("bytes", "size of the file of the network, mean over the runs", WHOLE),
    size_compressed_bytes=Column("bytes (compressed)", "size of that file after lossless compression", WHOLE),
    size_format=Column("format", "format of the file"),
    batch=Column("batch", "largest batch that was timed, images", "d"),
    onnx_ms=Column(
        "onnx ms", "latency of one image by the ONNX engine, ms: median over rounds, mean over the runs", MS
    ),
    onnx_ms_low=Column("onnx ms from", "the same for the lower quartile over rounds", MS),
    onnx_ms_high=Column("onnx ms to", "the same for the upper quartile over rounds", MS),
    onnx_batch_ms=Column("onnx batch ms", "latency of the largest batch by the ONNX engine, likewise", MS),
    onnx_batch_low=Column("onnx batch ms from", "the same for the lower quartile over rounds", MS),
    onnx_batch_high=Column("onnx batch ms to", "the same for the upper quartile over rounds", MS),
    onnx_throughput=Column("onnx images/s", "images per second by the ONNX engine at the largest batch", WHOLE),
    torch_ms=Column("torch ms", "latency of one image by PyTorch, ms: median over rounds, mean over the runs", MS),
    torch_ms_low=Column("torch ms from", "the same for the lower quartile over rounds", MS),
    torch_ms_high=Column("torch ms to", "the same for the upper quartile over rounds", MS),
    torch_batch_ms=Column("torch batch ms", "latency of the largest batch by PyTorch, likewise", MS),
    torch_batch_low=Column("torch batch ms from", "the same for the lower quartile over rounds", MS),
    torch_batch_high=Column("torch batch ms to", "the same for the upper quartile over rounds", MS),
    torch_throughput=Column("torch images/s", "images per second by PyTorch at the largest batch", WHOLE),
    peak_memory_bytes=Column(
        "peak memory",
        "growth of a process of its own that loads the ONNX graph and computes the largest batch, bytes",
        WHOLE,
    ),
    energy_mj_per_image=Column("mJ per image", "energy of a prediction for one image, millijoules", ",.3f"),
    missing=Column("not measured", "what was not measured, and why"),
    deployed_class_acc=Column("accuracy of the class %", "mean test accuracy on the images of this class", PER_CENT),
    parent_class_change=Column(
        "class change (last compression)", "that accuracy minus the one before the last compression, in points", POINTS
    ),
    parent_class_low=Column(
        "class from (last compression)",
        "lower end of its 95 % t-interval over seeds, paired by seed; not corrected for the number of classes", POINTS,
    ),
    parent_class_high=Column("class to (last compression)", "upper end of it", POINTS),
    start_class_change=Column(
        "class change (all steps)", "that accuracy minus the one before any compression, in points", POINTS
    ),
    start_class_low=Column("class from (all steps)", "lower end of its 95 % t-interval, likewise", POINTS),
    start_class_high=Column("class to (all steps)", "upper end of it", POINTS),
)  # fmt: skip

DEPLOYMENT_TABLE = (
    "form session n form_mean form_std n_parent parent_change parent_low parent_high n_start start_change start_low "
    "start_high agreement parent_agreement parent_kl_t1 ece nll params nonzero_params sparsity macs size_bytes "
    "size_compressed_bytes size_format batch onnx_ms onnx_ms_low onnx_ms_high onnx_batch_ms onnx_batch_low "
    "onnx_batch_high onnx_throughput torch_ms torch_ms_low torch_ms_high torch_batch_ms torch_batch_low "
    "torch_batch_high torch_throughput peak_memory_bytes energy_mj_per_image measured_on rounds missing student "
    "teacher method role setting compression remarks"
).split()
DEPLOYMENT_CLASSES = (
    "form session class_name class_index n deployed_class_acc parent_class_change parent_class_low parent_class_high "
    "start_class_change start_class_low start_class_high"
).split()
DEPLOYMENT_FIRST = {
    "deployment": "form session n form_mean parent_change start_change size_bytes onnx_ms".split(),
    "deployment_classes": (
        "form class_name deployed_class_acc parent_class_change parent_class_low parent_class_high start_class_change"
    ).split(),
}
"""Columns that the page shows at first, by table."""
