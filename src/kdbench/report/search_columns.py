"""Columns of the table about a search."""

from kdbench.report.column import PER_CENT, POINTS, Column, named

SEARCH = named(
    search=Column("search", "name of the search"),
    sampler=Column("sampler", "how its settings were drawn"),
    trials=Column("trials", "number of trials with a result", "d"),
    trials_pruned=Column("pruned", "number of these that ended early; they count with their best epoch", "d"),
    trials_diverged=Column(
        "diverged", "number of these whose loss was not finite; they count at the accuracy of chance", "d"
    ),
    val_default=Column(
        "default %", "validation accuracy of the default setting; empty: it is not one of the complete trials", PER_CENT
    ),
    val_best=Column("best %", "best validation accuracy of the complete trials", PER_CENT),
    search_gain=Column(
        "search gain", "best minus default: what the search gains, in points of validation accuracy", POINTS
    ),
    expected_one=Column("one trial %", "expected validation accuracy of one trial: the mean of the trials", PER_CENT),
    trials_base=Column("trials (baseline)", "number of trials of the baseline of the same student", "d"),
    trials_equal=Column("equal trials", "number of trials at which both are compared: the smaller of the two", "d"),
    equal_gain=Column(
        "gain at equal trials",
        "expected best of so many trials minus that of the baseline, in points of validation accuracy", POINTS,
    ),
    default_gain=Column(
        "gain of defaults", "default minus the default of the baseline, in points of validation accuracy", POINTS
    ),
    tuned_gain=Column(
        "gain over untuned", "best minus the default of the baseline, in points of validation accuracy", POINTS
    ),
    search_share=Column(
        "share of search %",
        "search gain as a part of the gain over the untuned baseline, per cent; empty: one of them is not known, or "
        "the default is below that of the baseline, so that all of a gain is that of the search", ".0f",
    ),
)  # fmt: skip
SEARCH_TABLE = (
    "student teacher method role search sampler trials trials_pruned trials_diverged val_default val_best search_gain "
    "expected_one trials_base trials_equal equal_gain default_gain tuned_gain search_share"
).split()
SEARCH_FIRST = {"search": "student teacher method trials search_gain tuned_gain search_share equal_gain".split()}
