"""Columns of the report's tables: their order, meaning and format."""

import math
from typing import Any

import pandas as pd

from kdbench.report.column import PER_CENT, POINTS, Column, P, named
from kdbench.report.deployment_columns import DEPLOYMENT, DEPLOYMENT_FIRST
from kdbench.report.functional_columns import FUNCTIONAL, FUNCTIONAL_FIRST, FUNCTIONAL_ONLY_IN_CSV
from kdbench.report.search_columns import SEARCH, SEARCH_FIRST

COLUMNS = FUNCTIONAL | DEPLOYMENT | SEARCH | named(
    student=Column("student", "network that is trained"),
    teacher=Column("teacher", "network whose outputs it is trained on; empty: none"),
    method=Column("method", "training method; ce: cross-entropy with the labels alone"),
    role=Column("role", "baseline, distilled, or control: a method that is compared with both; empty: given weights"),
    setting=Column("setting", "keys in which this group differs from others of its student, teacher and method"),
    params=Column("parameters", "trainable numbers of the student, and of its method where that predicts", ",d"),
    macs=Column("MACs", "multiply-accumulates of a prediction for one image", ",d"),
    n=Column("n", "number of runs (seeds) in the means; in a pooled row, of teachers", "d"),
    n_base=Column("n baseline", "number of baseline runs", "d"),
    mean=Column(
        "accuracy %", "mean test accuracy over the runs, with each run's weights of the best validation epoch", PER_CENT
    ),
    std=Column("std", "sample standard deviation of it over the runs, in points; empty for one run", PER_CENT),
    mean_last=Column("last epoch %", "mean test accuracy with the weights of the last epoch", PER_CENT),
    std_last=Column("std (last)", "sample standard deviation of that, in points", PER_CENT),
    base_mean=Column("baseline %", "mean test accuracy of the same student without a teacher", PER_CENT),
    delta=Column("gain", "mean minus the mean of the baseline, in points of test accuracy", POINTS),
    ci_low=Column(
        "95 % from", "lower end of the 95 % interval (Welch), not corrected for the number of intervals", POINTS
    ),
    ci_high=Column("95 % to", "upper end of it", POINTS),
    p_welch=Column("p (Welch)", "two-sided Welch t-test: how often chance alone gives a difference this large", P),
    p_paired=Column("p (paired)", "two-sided paired t-test over seeds; only where both arms have the same seeds", P),
    p_holm=Column(
        "p (Holm)", "Welch p (of an interaction: its own) raised for the number of tests of this role in the table", P
    ),
    significant=Column("significant", "p (adjusted) of the primary analysis below 0.05; empty: no verdict"),
    mde80=Column(
        "detectable (one test)",
        "smallest true difference that these runs detect 4 times in 5 by one uncorrected Welch test", PER_CENT
    ),
    seeds_for_0p1=Column(
        "seeds for 0.1 (one test)", "runs per arm that detect 0.1 points 4 times in 5 by one uncorrected test", "d"
    ),
    seeds_for_0p2=Column(
        "seeds for 0.2 (one test)", "runs per arm that detect 0.2 points 4 times in 5 by one uncorrected test", "d"
    ),
    p_equivalence=Column(
        "p (equivalence)", "two one-sided tests: small where the gain lies within the margin around zero", P
    ),
    equivalent=Column("equivalent", "p (equivalence) below 0.05: evidence that there is no gain outside the margin"),
    seeds_for_equivalence=Column(
        "seeds to show it", "runs per arm that show equivalence 4 times in 5 if there is no gain", "d"
    ),
    analysis=Column(
        "analysis", "primary analysis by the rule stated beforehand: blocks, paired, crossed, welch; empty: none"
    ),
    family=Column(
        "family",
        "primary: counts in the verdict; secondary or one teacher: a row that a pooled one summarises; control or "
        "other control: a family of its own",
    ),
    primary_se=Column("se (primary)", "standard error of the gain by the primary analysis, points", PER_CENT),
    primary_df=Column("df (primary)", "its degrees of freedom", ".1f"),
    primary_low=Column("from", "lower end of the 95 % interval of the primary analysis, for this gain alone", POINTS),
    primary_high=Column("to", "upper end of it", POINTS),
    p_primary=Column("p", "two-sided p of the primary analysis, for this test alone", P),
    p_adjusted=Column("p (adjusted)", "that p raised by Holm's method for the number of tests of its family", P),
    joint_low=Column(
        "from (all)",
        "lower end of the simultaneous interval: all intervals of the family hold at once, 19 times in 20",
        POINTS,
    ),
    joint_high=Column("to (all)", "upper end of it", POINTS),
    image_se=Column(
        "se (images)", "standard error of the gain of these very networks over the choice of test images, points",
        PER_CENT,
    ),
    images_low=Column(
        "from (new images)", "lower end of the 95 % interval for other seeds and other test images of the same kind",
        POINTS,
    ),
    images_high=Column("to (new images)", "upper end of it", POINTS),
    p_images=Column("p (new images)", "two-sided p of the same reading, for this test alone", P),
    correlation=Column("correlation", "correlation of the accuracies of the same seed in both arms", PER_CENT),
    detectable=Column(
        "detectable (rule)",
        "smallest true difference, in points, that this very rule, correction included, finds 4 times in 5", PER_CENT,
    ),
    detectable_low=Column("detectable from", "the same at the lower end of what the spread may be", PER_CENT),
    detectable_high=Column("detectable to", "the same at the upper end of it", PER_CENT),
    needed_0p1=Column("needed for 0.1", "seeds per arm with which this very rule finds 0.1 points 4 times in 5", "d"),
    needed_0p1_low=Column("needed for 0.1 from", "the same at the lower end of what the spread may be", "d"),
    needed_0p1_high=Column("needed for 0.1 to", "the same at the upper end of it", "d"),
    needed_0p2=Column("needed for 0.2", "seeds per arm with which this very rule finds 0.2 points 4 times in 5", "d"),
    needed_0p2_low=Column("needed for 0.2 from", "the same at the lower end of what the spread may be", "d"),
    needed_0p2_high=Column("needed for 0.2 to", "the same at the upper end of it", "d"),
    p_equivalence_adjusted=Column(
        "p (equivalence, adjusted)",
        "two one-sided tests by the primary analysis, raised by Holm's method for the number of tests of the family", P,
    ),
    equivalent_adjusted=Column(
        "equivalent (adjusted)", "that p below 0.05: evidence, after correction, of no gain outside the margin"
    ),
    shrunken=Column(
        "shrunken", "gain moved towards zero by as much as gains of this spread are noise, in points", POINTS
    ),
    exaggeration=Column(
        "exaggeration",
        "factor by which such a gain would be too large on average where it comes out significant, if the shrunken one "
        "is true", ".1f",
    ),
    teacher_seed=Column("teacher seed", "seed of the teacher; pooled: one value for each of several teachers"),
    base_setting=Column("baseline setting", "setting of the baseline, where there are several"),
    remarks=Column("remarks", "what is missing or unusual"),
    student_a=Column("larger student", "student with more parameters"),
    student_b=Column("smaller student", "student with fewer parameters"),
    gains_a=Column("gains (larger)", "number of gains that the mean of the larger student is over", "d"),
    gains_b=Column("gains (smaller)", "number of gains that the mean of the smaller student is over", "d"),
    gains_common=Column("gains in common", "number of methods and teachers that both students have", "d"),
    difference_common=Column("difference in common", "mean difference of the gains by these, in points", POINTS),
    gain_a=Column("its gain", "gain of the larger student, in points", POINTS),
    gain_b=Column("gain of the smaller", "gain of the smaller student, in points", POINTS),
    difference=Column("difference", "gain of the larger minus gain of the smaller, in points", POINTS),
    se=Column("standard error", "standard error of that difference, in points", PER_CENT),
    df=Column("df", "degrees of freedom (Welch-Satterthwaite, over the four groups)", ".1f"),
    p=Column("p", "two-sided t-test of the difference of gains", P),
    n_a=Column("n (larger)", "number of runs of the larger student", "d"),
    n_base_a=Column("n baseline (larger)", "number of baseline runs of the larger student", "d"),
    n_b=Column("n (smaller)", "number of runs of the smaller student", "d"),
    n_base_b=Column("n baseline (smaller)", "number of baseline runs of the smaller student", "d"),
    setting_a=Column("setting (larger)", "setting of the larger student's group"),
    setting_b=Column("setting (smaller)", "setting of the smaller student's group"),
    agreement=Column("agreement %", "test images on which student and teacher predict the same class", PER_CENT),
    agreement_std=Column("std (agreement)", "sample standard deviation of it over the runs, in points", PER_CENT),
    base_agreement=Column(
        "baseline agreement %", "the same for the baseline, which was trained without this teacher", PER_CENT
    ),
    agreement_slope=Column(
        "agreement per point",
        "points of agreement with this teacher that undistilled networks gain per point of accuracy", PER_CENT,
    ),
    agreement_expected=Column(
        "expected agreement %",
        "agreement that an undistilled network of the student's accuracy would have with this teacher", PER_CENT,
    ),
    agreement_excess=Column(
        "excess agreement", "agreement minus the expected one, in points: what accuracy does not explain", POINTS
    ),
    agreement_excess_low=Column(
        "excess from", "lower end of its 95 % interval over seeds, with the error of the slope", POINTS
    ),
    agreement_excess_high=Column("excess to", "upper end of it", POINTS),
    agreement_explained=Column(
        "explained %",
        "part of agreement minus baseline agreement that the gain in accuracy explains; empty where that is not "
        "clearly above 0", ".0f",
    ),
    agreement_right=Column(
        "agreement where right %", "test images that the student classifies as the teacher, of those where the teacher "
        "is right", PER_CENT,
    ),
    base_agreement_right=Column("baseline agreement where right %", "the same for the baseline", PER_CENT),
    same_mistake=Column(
        "same mistakes %",
        "test images on which the student makes the very mistake of the teacher, of those where the teacher is wrong",
        PER_CENT,
    ),
    base_same_mistake=Column("baseline same mistakes %", "the same for the baseline", PER_CENT),
    kl_t1=Column("KL, T = 1", "mean KL(teacher ‖ student) in nats; 0: the same probabilities", ".3f"),
    base_kl_t1=Column("baseline KL, T = 1", "the same for the baseline", ".3f"),
    kl_t4=Column("KL, T = 4", "at temperature 4, without the factor 16", ".3f"),
    base_kl_t4=Column("baseline KL, T = 4", "the same for the baseline", ".3f"),
    ece=Column(
        "ECE %", "expected calibration error, 15 bins of equal width: how far confidence is from accuracy", PER_CENT
    ),
    base_ece=Column("baseline ECE %", "the same for the baseline", PER_CENT),
    nll=Column("NLL", "mean negative log-likelihood of the labels, in nats", ".3f"),
    base_nll=Column("baseline NLL", "the same for the baseline", ".3f"),
    seed=Column("seed", "seed of the run", "d"),
    init_seed=Column("init seed", "seed of the initial weights", "d"),
    data_seed=Column("data seed", "seed of the order of images and their views", "d"),
    images=Column("images", "number of test images", "d"),
    both_right=Column("both right", "images that this run and the baseline run of its seed classify correctly", "d"),
    only_method=Column("only this run", "images that only this run classifies correctly", "d"),
    only_baseline=Column("only baseline", "images that only the baseline run classifies correctly", "d"),
    both_wrong=Column("both wrong", "images that neither classifies correctly", "d"),
    ties=Column(
        "open", "images on which rounded logits leave the class of either run open, in none of the four counts before",
        "d",
    ),
    p_mcnemar=Column(
        "p (McNemar)", "exact two-sided McNemar test of the two counts before, of this pair of runs alone", P
    ),
    class_name=Column("class", "name of the class, or its number where the runs record no name"),
    class_index=Column("class number", "place of the class in the order of the labels, from 0", "d"),
    gain=Column("gain of the class", "gain in accuracy on the test images of this class, in points", POINTS),
    class_low=Column(
        "class from", "lower end of its 95 % interval over seeds, paired where both arms have the same seeds; "
        "not corrected for the number of classes", POINTS,
    ),
    class_high=Column("class to", "upper end of it", POINTS),
    run_key=Column("key", "hash of what can change the numbers of the run"),
    epochs=Column("epochs", "number of epochs", "d"),
    best_val_acc=Column("validation %", "accuracy on the validation images at the best epoch", PER_CENT),
    best_val_epoch=Column("best epoch", "earliest epoch with that accuracy", "d"),
    test_acc_best=Column("accuracy %", "test accuracy with the weights of the best validation epoch", PER_CENT),
    test_acc_final=Column("last epoch %", "test accuracy with the last weights", PER_CENT),
    precision=Column("precision", "number format of the network's computations"),
    train_seconds=Column("seconds", "time spent in the epochs", ",.0f"),
    images_per_second=Column("images/s", "speed of the training steps, median over epochs", ",.0f"),
    device=Column("device", "processor or GPU of the run"),
    path=Column("run directory", "folder of the run"),
    chosen=Column("chosen", "setting that won, by its overrides"),
    candidates=Column("candidates", "number of settings that competed", "d"),
    margin=Column("margin", "points of validation accuracy by which it leads the next best", PER_CENT),
    noise_images=Column(
        "noise (images)", "standard error of such a margin from the number of validation images, common to both",
        PER_CENT,
    ),
    noise_seeds=Column("noise (seeds)", "what the spread over seeds adds to it", PER_CENT),
    noise=Column("noise", "both together: the root of the sum of their squares", PER_CENT),
    clear=Column("clear", "margin of at least twice the noise; empty: the spread over seeds is not known"),
    optimism=Column(
        "optimism",
        "points by which the winner's validation score is too high on average because it is the best of several",
        PER_CENT,
    ),
    optimism_nested=Column(
        "optimism (nested)", "the same by leaving out each seed of the selection, where several seeds chose", PER_CENT
    ),
    noise_share=Column("noise share", "share of the variance of the candidates' scores that is noise", PER_CENT),
    noise_from=Column("noise from", "from what the noise of images and of seeds is estimated"),
    factor=Column("part", "part of a training whose seed was varied, parts combined, or the rest"),
    levels=Column("levels", "number of seeds that it had", "d"),
    component=Column(
        "std of the part", "standard deviation of single runs that comes from this part alone, in points", PER_CENT
    ),
    component_low=Column(
        "std from", "lower end of its 95 % interval, from the chi-squared distribution of the mean squares", PER_CENT
    ),
    component_high=Column("std to", "upper end of it", PER_CENT),
    share=Column("share %", "share of the part in the variance of single runs, per cent", ".0f"),
    component_df=Column("df (part)", "degrees of freedom of its mean square", "d"),
)  # fmt: skip

GAINS = (
    "student teacher method setting n n_base mean std base_mean delta ci_low ci_high p_welch p_paired p_holm "
    "significant mde80 seeds_for_0p1 seeds_for_0p2 p_equivalence equivalent seeds_for_equivalence role teacher_seed "
    "base_setting remarks analysis family primary_se primary_df primary_low primary_high p_primary p_adjusted "
    "joint_low joint_high image_se images_low images_high p_images correlation detectable detectable_low "
    "detectable_high needed_0p1 needed_0p1_low needed_0p1_high needed_0p2 needed_0p2_low needed_0p2_high "
    "p_equivalence_adjusted equivalent_adjusted shrunken exaggeration"
).split()
INTERACTIONS = (
    "method teacher student_a student_b gain_a gain_b difference se df ci_low ci_high p p_holm mde80 n_a n_base_a n_b "
    "n_base_b setting_a setting_b role teacher_seed analysis family primary_se primary_df primary_low primary_high "
    "p_primary p_adjusted significant image_se images_low images_high p_images detectable detectable_low "
    "detectable_high needed_0p1 needed_0p1_low needed_0p1_high needed_0p2 needed_0p2_low needed_0p2_high"
).split()
CAPACITY = (
    "student_a student_b gains_a gains_b gain_a gain_b difference analysis primary_se primary_df primary_low "
    "primary_high p_primary image_se images_low images_high p_images gains_common difference_common"
).split()
GROUPS = "student teacher method role setting teacher_seed params macs n mean std mean_last std_last".split()
RUNS = (
    "run_key student teacher method role setting seed init_seed data_seed teacher_seed epochs best_val_epoch "
    "best_val_acc test_acc_best test_acc_final nll ece agreement kl_t1 kl_t4 params macs precision train_seconds "
    "images_per_second device path"
).split()
FIDELITY = (
    "student teacher method role setting n n_base agreement agreement_std base_agreement kl_t1 base_kl_t1 kl_t4 "
    "base_kl_t4 ece base_ece nll base_nll agreement_slope agreement_expected agreement_excess agreement_excess_low "
    "agreement_excess_high agreement_explained agreement_right base_agreement_right same_mistake base_same_mistake"
).split()
CHOICES = (
    "student teacher method chosen candidates margin noise_images noise_seeds noise clear optimism optimism_nested "
    "noise_share noise_from"
).split()
COMPONENTS = (
    "student teacher method role setting n factor levels component component_low component_high share component_df"
).split()
FLIPS = (
    "student teacher method role setting seed images both_right only_method only_baseline both_wrong ties p_mcnemar"
).split()
CLASS_GAINS = "student teacher method role setting class_name class_index n gain class_low class_high".split()

ONLY_IN_CSV = FUNCTIONAL_ONLY_IN_CSV | {
    "gains": ("teacher_seed",),
    "interactions": ("teacher_seed",),
    "groups": ("teacher_seed",),
    "runs": "init_seed data_seed teacher_seed params macs kl_t1 kl_t4 nll ece precision".split(),
}
"""Columns that the page does not show, by table."""
FIRST = {
    **FUNCTIONAL_FIRST,
    **DEPLOYMENT_FIRST,
    **SEARCH_FIRST,
    "gains": "student teacher method setting delta primary_low primary_high p_adjusted n".split(),
    "interactions": "method teacher student_a student_b difference primary_low primary_high p_adjusted".split(),
    "groups": "student teacher method role setting n mean std".split(),
    "fidelity": (
        "student teacher method agreement base_agreement agreement_expected agreement_excess same_mistake"
    ).split(),
    "capacity": "student_a student_b gain_a gain_b difference primary_low primary_high p_primary".split(),
    "choices": "student teacher method chosen margin noise clear optimism".split(),
    "flips": "student teacher method setting seed only_method only_baseline p_mcnemar".split(),
    "runs": "student teacher method setting seed best_val_acc test_acc_best agreement train_seconds".split(),
    "class_gains": "student teacher method setting class_name gain class_low class_high".split(),
}
"""Columns that the page shows at first, by table; of those that are not empty, the first eight."""
MOST_FIRST = 8


PER_CLASS = "per_class"
"""Name of the table with a column for each class."""
OF_CLASS = "class_"
"""Beginning of the columns of that table that hold accuracies."""


def row(**values: Any) -> dict[str, Any]:
    """Return a table's row. A name that is no column is a bug."""
    assert values.keys() <= COLUMNS.keys(), values.keys() - COLUMNS.keys()
    return values


def column_of(name: str, table: str = "") -> Column:
    """Return the description of a column of a table; those of per_class have the name or number of a class."""
    if name.startswith(OF_CLASS) and (table == PER_CLASS or name not in COLUMNS):
        own = name.removeprefix(OF_CLASS)
        heading = f"class {own}" if own.isdigit() else own
        return Column(heading, "mean test accuracy of the images of this class, per cent", ".1f")
    return COLUMNS[name]


def is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def format_value(value: Any, form: str) -> str:
    """Return a value as text for a reader; a missing one is empty."""
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
