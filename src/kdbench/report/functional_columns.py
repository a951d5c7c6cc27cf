"""Columns of the tables of the functional view."""

from kdbench.report.column import Column, P, named

FUNCTIONAL = named(
    control=Column(
        "control",
        "runs without that teacher: SIDDO (the students' first weights, other order of the images), baseline (both "
        "seeds of the students), DIDDO (no common seed), students of another teacher seed, or a control method",
    ),
    metric=Column("distance", "distance between predictions of student and teacher: 0 for identical ones"),
    n_control=Column("n control", "number of control runs; over several teachers, of seeds", "d"),
    value=Column("to the teacher", "mean distance of the students to their own teacher", ".4f"),
    control_value=Column("control to the teacher", "mean distance of the control runs to that same teacher", ".4f"),
    transfer=Column(
        "transfer", "distance of the students minus that of the control: below 0, the students are closer", "+.4f"
    ),
    transfer_low=Column("transfer from", "lower end of its 95 % bootstrap interval over seeds, not corrected", "+.4f"),
    transfer_high=Column("transfer to", "upper end of it", "+.4f"),
    relative=Column("of the control's %", "transfer in per cent of the control's distance", "+.1f"),
    test=Column("test", "rank test of the rows of this control, chosen by their number and seeds alone"),
    p_smallest=Column("smallest p", "smallest p that the test can have with these seeds", P),
    p_smallest_adjusted=Column(
        "smallest p (adjusted)", "smallest adjusted p that could be reached, if every test had its smallest p", P
    ),
    alpha=Column("alpha", "weight of the distillation term, where the method has this key", ".3g"),
    temperature=Column("temperature", "temperature of the method, where it has this key", ".3g"),
    teacher_right=Column("teacher right", "test images that the teacher classifies correctly", ",.0f"),
    teacher_wrong=Column("teacher wrong", "test images that it gets wrong", ",.0f"),
    correct=Column("correct agreement", "of the first, images on which the student predicts its class", ",.1f"),
    correct_change=Column("change (correct)", "the same minus that of the control, images", "+.1f"),
    incorrect=Column("incorrect agreement", "of the others, images on which it makes the very mistake", ",.1f"),
    incorrect_change=Column("change (incorrect)", "the same minus that of the control, images", "+.1f"),
    correct_gain=Column(
        "correct gain %", "change of the rate of correct agreement in per cent of the room that the control leaves",
        "+.1f",
    ),
    correct_gain_low=Column("correct gain from", "lower end of its 95 % bootstrap interval over seeds", "+.1f"),
    correct_gain_high=Column("correct gain to", "upper end of it", "+.1f"),
    incorrect_gain=Column(
        "incorrect gain %", "change of the rate of shared mistakes in per cent of the room that the control leaves",
        "+.1f",
    ),
    incorrect_gain_low=Column("incorrect gain from", "lower end of its 95 % bootstrap interval over seeds", "+.1f"),
    incorrect_gain_high=Column("incorrect gain to", "upper end of it", "+.1f"),
    asymmetry=Column(
        "asymmetry", "correct gain minus incorrect gain: below 0, mistakes are taken over more than right answers",
        "+.1f",
    ),
    asymmetry_low=Column("asymmetry from", "lower end of its 95 % bootstrap interval over seeds, uncorrected", "+.1f"),
    asymmetry_high=Column("asymmetry to", "upper end of it", "+.1f"),
    finding=Column(
        "finding",
        "negative: the intervals of the asymmetry and of the incorrect gain show more wrong answers taken over, "
        "relative to the room; positive: those of the asymmetry and the correct gain right ones; no gain: the "
        "asymmetry differs from 0, and no gain is shown; undecided; empty: no interval",
    ),
    accuracy_change=Column(
        "accuracy change", "mean test accuracy of the students minus that of the control runs, in points", "+.2f"
    ),
    teacher_mistakes=Column("teacher's mistakes", "test images of the class that the teacher gets wrong", ",.0f"),
    shared_mistakes=Column("shared %", "of these, images on which students make the very mistake", ".1f"),
    control_mistakes=Column("shared by the control %", "the same for the control", ".1f"),
    mistakes_change=Column("change", "difference of the two, points", "+.1f"),
)  # fmt: skip

TRANSFER = (
    "student teacher method setting control metric n n_control value control_value transfer transfer_low transfer_high "
    "relative test p p_adjusted p_smallest p_smallest_adjusted significant family accuracy_change teacher_seed "
    "params alpha temperature remarks"
).split()
ASYMMETRY = (
    "student teacher method setting control n n_control teacher_right teacher_wrong correct correct_change incorrect "
    "incorrect_change correct_gain correct_gain_low correct_gain_high incorrect_gain incorrect_gain_low "
    "incorrect_gain_high asymmetry asymmetry_low asymmetry_high finding family accuracy_change teacher_seed remarks"
).split()
MISTAKES = (
    "student teacher method setting control class_name class_index n teacher_mistakes shared_mistakes control_mistakes "
    "mistakes_change"
).split()

FUNCTIONAL_ONLY_IN_CSV = {
    "transfer": "teacher_seed params alpha temperature relative p_smallest n_control".split(),
    "asymmetry": ("teacher_seed",),
}
"""Columns that the page does not show, by table."""
FUNCTIONAL_FIRST = {
    "transfer": "student setting control metric value transfer p_adjusted p_smallest_adjusted".split(),
    "asymmetry": "student setting control correct_gain incorrect_gain asymmetry asymmetry_low asymmetry_high".split(),
    "mistakes": "student teacher method setting class_name shared_mistakes control_mistakes mistakes_change".split(),
}
"""Columns that the page shows at first, by table."""
