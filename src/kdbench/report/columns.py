"""What each column of the report means, how it is printed, and which tables show which."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column's heading on the page, its meaning for a reader who is no statistician, and its format."""

    heading: str
    meaning: str
    form: str = ""
    """A format specification for numbers."""


PER_CENT, POINTS, P = ".2f", "+.2f", "p"

COLUMNS = {
    "student": Column("student", "the network that is trained"),
    "teacher": Column("teacher", "the network that it learns from; empty: none"),
    "method": Column("method", "how it learns; ce: from the labels alone, undistilled"),
    "setting": Column("setting", "the keys that tell this group from others of its student, teacher and method"),
    "params": Column("parameters", "trainable numbers of the student", ",d"),
    "macs": Column("MACs", "multiply-accumulates of the student for one image", ",d"),
    "n": Column("n", "runs (seeds) that the numbers are means of; in a pooled row, teachers", "d"),
    "n_base": Column("n base", "runs of the undistilled student", "d"),
    "mean": Column(
        "accuracy %", "mean test accuracy over the runs, with each run's weights of the best validation epoch", PER_CENT
    ),
    "std": Column("std", "sample standard deviation of it over the runs, in points; empty for one run", PER_CENT),
    "mean_last": Column("last epoch %", "mean test accuracy with the weights of the last epoch", PER_CENT),
    "std_last": Column("std (last)", "sample standard deviation of that, in points", PER_CENT),
    "base_mean": Column("undistilled %", "mean test accuracy of the same student without a teacher", PER_CENT),
    "delta": Column("gain", "distilled mean minus undistilled mean, in points of test accuracy", POINTS),
    "ci_low": Column(
        "95 % from", "lower end of the 95 % interval (Welch), not corrected for the number of intervals", POINTS
    ),
    "ci_high": Column("95 % to", "upper end of it", POINTS),
    "p_welch": Column("p (Welch)", "two-sided Welch t-test: how often chance alone gives a difference this large", P),
    "p_paired": Column("p (paired)", "two-sided paired t-test over seeds; only where both arms have the same seeds", P),
    "p_holm": Column(
        "p (Holm)", "the Welch p (of an interaction: its own), raised for the number of tests in this table", P
    ),
    "significant": Column("significant", "p (Holm) below 0.05"),
    "mde80": Column(
        "detectable", "smallest true difference, in points, that this many runs notice 4 times in 5", PER_CENT
    ),
    "seeds_for_0p1": Column("seeds for 0.1", "runs per arm that notice a true gain of 0.1 points 4 times in 5", "d"),
    "seeds_for_0p2": Column("seeds for 0.2", "runs per arm that notice a true gain of 0.2 points 4 times in 5", "d"),
    "p_equivalence": Column(
        "p (equivalence)", "two one-sided tests: small where the gain lies within the margin around zero", P
    ),
    "equivalent": Column("equivalent", "p (equivalence) below 0.05: 'no difference worth the name' is a finding"),
    "seeds_for_equivalence": Column(
        "seeds to show it", "runs per arm that show equivalence 4 times in 5 if there is no gain", "d"
    ),
    "teacher_seed": Column("teacher seed", "which teacher; pooled: all of them, one value for each"),
    "base_setting": Column("undistilled setting", "which undistilled student, where there are several"),
    "remarks": Column("remarks", "what is missing or unusual"),
    "student_a": Column("larger student", "the student with more parameters"),
    "student_b": Column("smaller student", "the other"),
    "gain_a": Column("its gain", "gain of the larger student, in points", POINTS),
    "gain_b": Column("gain of the smaller", "gain of the smaller student, in points", POINTS),
    "difference": Column("difference", "gain of the larger minus gain of the smaller, in points", POINTS),
    "se": Column("standard error", "of that difference, in points", PER_CENT),
    "df": Column("df", "degrees of freedom (Welch-Satterthwaite, over the four groups)", ".1f"),
    "p": Column("p", "two-sided t-test of the difference of gains", P),
    "n_a": Column("n (larger)", "runs of the larger student's distilled group", "d"),
    "n_base_a": Column("n base (larger)", "runs of the larger student without a teacher", "d"),
    "n_b": Column("n (smaller)", "runs of the smaller student's distilled group", "d"),
    "n_base_b": Column("n base (smaller)", "runs of the smaller student without a teacher", "d"),
    "setting_a": Column("setting (larger)", "of the larger student's distilled group"),
    "setting_b": Column("setting (smaller)", "of the smaller student's"),
    "agreement": Column("agreement %", "test images on which student and teacher choose the same class", PER_CENT),
    "agreement_std": Column("std (agreement)", "sample standard deviation of it over the runs, in points", PER_CENT),
    "base_agreement": Column(
        "undistilled agreement %", "the same for undistilled students, who never saw this teacher: the null", PER_CENT
    ),
    "kl_t1": Column("KL, T = 1", "mean KL(teacher ‖ student) in nats; 0: the same probabilities", ".3f"),
    "base_kl_t1": Column("undistilled KL, T = 1", "the same for undistilled students", ".3f"),
    "kl_t4": Column("KL, T = 4", "at temperature 4, without the factor 16", ".3f"),
    "base_kl_t4": Column("undistilled KL, T = 4", "the same for undistilled students", ".3f"),
    "ece": Column(
        "ECE %", "expected calibration error, 15 bins of equal width: how far confidence is from accuracy", PER_CENT
    ),
    "base_ece": Column("undistilled ECE %", "the same for undistilled students", PER_CENT),
    "nll": Column("NLL", "mean negative log-likelihood of the labels, in nats", ".3f"),
    "base_nll": Column("undistilled NLL", "the same for undistilled students", ".3f"),
    "seed": Column("seed", "of the run", "d"),
    "init_seed": Column("init seed", "of the first weights", "d"),
    "data_seed": Column("data seed", "of the order of images and their views", "d"),
    "images": Column("images", "test images", "d"),
    "both_right": Column(
        "both right", "images that the distilled student and the undistilled one of the same seed have right", "d"
    ),
    "only_distilled": Column("only distilled", "images that only the distilled student has right", "d"),
    "only_undistilled": Column("only undistilled", "images that only the undistilled student has right", "d"),
    "both_wrong": Column("both wrong", "images that both have wrong", "d"),
    "p_mcnemar": Column(
        "p (McNemar)", "exact two-sided McNemar test of the two lines before, of this pair of runs alone", P
    ),
    "run_key": Column("key", "what the run is known by"),
    "epochs": Column("epochs", "trained", "d"),
    "best_val_acc": Column("validation %", "accuracy on the validation images at the best epoch", PER_CENT),
    "best_val_epoch": Column("best epoch", "the earliest with that accuracy", "d"),
    "test_acc_best": Column("accuracy %", "test accuracy with the weights of the best validation epoch", PER_CENT),
    "test_acc_final": Column("last epoch %", "test accuracy with the last weights", PER_CENT),
    "precision": Column("precision", "in which the network was computed"),
    "train_seconds": Column("seconds", "spent in the epochs", ",.0f"),
    "images_per_second": Column("images/s", "of the training steps, median over epochs", ",.0f"),
    "device": Column("device", "what it ran on"),
    "path": Column("run directory", "where it lies"),
}  # fmt: skip


def column_of(name: str) -> Column:
    """A column; classes of the per-class table are numbered."""
    if name.startswith("class_"):
        return Column(
            f"class {name.removeprefix('class_')}", "mean test accuracy of the images of this class, per cent", ".1f"
        )
    return COLUMNS[name]


def is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def printed(value: Any, form: str) -> str:
    """A value as a reader wants it; nothing for what is missing."""
    if is_missing(value):
        return ""
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return "yes" if value else "no"
    if form == P:
        return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
    if form and not isinstance(value, str):
        text = format(int(value) if form.endswith("d") else float(value), form)
        return text if any(digit in "123456789" for digit in text) else text.replace("-", "+" if "+" in form else "")
    return str(value)
