"""Primary estimates: each gain, interaction and student's mean gain, by the test that the design of a report allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdbench.report.design import FEWEST_ARMS, Analysis, Block, Design, Estimate, crossed_estimate, welch_estimate
from kdbench.report.gains import Gain, are_replicates, share_seeds

NOT_TESTED = Estimate(Analysis.WELCH, math.nan, math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class PlacedDesign:
    """Design of a report, with the block and the column of each gain that has one."""

    design: Design
    places: dict[int, tuple[Block, int]]
    """By the id of the gain."""
    students: Sequence[str] = ()
    """Student of each block."""

    def place(self, gain: Gain) -> tuple[Block, int] | None:
        return self.places.get(id(gain))

    @property
    def arms(self) -> tuple[int, ...]:
        """Columns of each block."""
        return tuple(block.arms for block in self.design.blocks)

    def alike(self, arms: tuple[int, ...]) -> tuple[int, ...]:
        """Return the columns of those blocks that the rule treats as most of the report's: the larger ones if any."""
        large = tuple(size for size in arms if size >= FEWEST_ARMS)
        return (large or arms) if self.design.analysis == Analysis.AUTO else arms


def place_gains(gains: Sequence[Gain], analysis: Analysis) -> PlacedDesign:
    """Return the blocks of a report: each baseline with the arms that have its very seeds, as independent samples."""
    members: dict[tuple[str, ...], list[Gain]] = {}
    for gain in gains:
        if gain.is_paired and len(gain.values) > 1 and are_replicates(gain.group.seeds):
            assert gain.baseline is not None
            members.setdefault(tuple(gain.baseline.runs.run_key), []).append(gain)
    blocks, places = list[Block](), dict[int, tuple[Block, int]]()
    for of_base in members.values():
        block = Block(np.array([of_base[0].base_values, *(gain.values for gain in of_base)], dtype=float).T)
        blocks.append(block)
        places |= {id(gain): (block, column) for column, gain in enumerate(of_base, 1)}
    students = [of_base[0].group.shared.student for of_base in members.values()]
    return PlacedDesign(Design(blocks, analysis), places, students)


def estimate_gain(gain: Gain, placed: PlacedDesign) -> Estimate:
    """Return the primary estimate of a gain; without a standard error where there is no test."""
    if gain.baseline is None:
        return NOT_TESTED
    welch = welch_estimate([gain.values, gain.base_values], [1.0, -1.0])
    if placed.design.analysis == Analysis.WELCH:
        return welch
    if (crossed := gain.crossed) is not None:
        return crossed_estimate(crossed)
    if (place := placed.place(gain)) is not None:
        return placed.design.compare([place], [1.0])
    if depends_on_shared(gain):
        return Estimate(Analysis.WELCH, gain.delta, math.nan, math.nan)
    return welch


def depends_on_shared(gain: Gain) -> bool:
    """Return whether runs of a gain share teachers, or seeds beyond their pairs: they are no independent samples."""
    groups = [*gain.groups, *([gain.baseline] if gain.baseline else [])]
    shares = gain.is_pooled and share_seeds(gain.groups)
    return shares or gain.crossed is not None or not all(are_replicates(group.seeds) for group in groups)


def why_untested(gain: Gain) -> str:
    """Return why a gain with a baseline has no test, in words."""
    if min(len(gain.values), len(gain.base_values)) < 2:
        return "one seed only"
    if gain.crossed is None and depends_on_shared(gain):
        return "seeds that are no independent samples (repeated, crossed in part, or shared by teachers)"
    return "no variation over seeds"


def estimate_interaction(a: Gain, b: Gain, placed: PlacedDesign) -> Estimate:
    """Return the primary estimate of one gain minus another; without a standard error where there is no test."""
    welch = welch_estimate([a.values, a.base_values, b.values, b.base_values], [1.0, -1.0, -1.0, 1.0])
    if placed.design.analysis == Analysis.WELCH:
        return welch
    of_a, of_b = a.crossed, b.crossed
    if of_a is not None and of_b is not None and are_alike(a, b) and of_a.shape == of_b.shape:
        return crossed_estimate(of_a - of_b)
    places = [placed.place(gain) for gain in (a, b)]
    if places[0] is not None and places[1] is not None:
        return placed.design.compare([places[0], places[1]], [1.0, -1.0])
    if any(depends_on_shared(gain) or math.isnan(estimate_gain(gain, placed).se) for gain in (a, b)):
        return Estimate(Analysis.WELCH, welch.difference, math.nan, math.nan)
    return welch


def estimate_capacity(of_a: Sequence[Gain], of_b: Sequence[Gain], placed: PlacedDesign) -> Estimate:
    """Return the primary estimate of the mean of one student's gains minus the mean of another's."""
    gains = [*of_a, *of_b]
    weights = [1 / len(of_a)] * len(of_a) + [-1 / len(of_b)] * len(of_b)
    value = float(sum(w * gain.delta for w, gain in zip(weights, gains, strict=True)))
    if placed.design.analysis != Analysis.WELCH:
        places = [place for gain in gains if (place := placed.place(gain)) is not None]
        if len(places) == len(gains):
            return placed.design.compare(places, weights)
        crossed = [gain.crossed for gain in gains]
        whole = [differences for differences in crossed if differences is not None]
        if len(whole) == len(gains) and all(are_alike(gains[0], gain) for gain in gains):
            return crossed_estimate(np.sum([w * own for w, own in zip(weights, whole, strict=True)], axis=0))
        if any(depends_on_shared(gain) or math.isnan(estimate_gain(gain, placed).se) for gain in gains):
            return Estimate(Analysis.WELCH, value, math.nan, math.nan)
    arms: dict[Any, tuple[Sequence[float], float]] = {}
    for gain, weight in zip(gains, weights, strict=True):
        assert gain.baseline is not None
        base = tuple(gain.baseline.runs.run_key)  # a selection makes a group of the same runs for each gain
        for identity, values, own in ((id(gain), gain.values, weight), (base, gain.base_values, -weight)):
            arms[identity] = values, arms.get(identity, (values, 0.0))[1] + own
    return welch_estimate([values for values, _ in arms.values()], [weight for _, weight in arms.values()])


def are_alike(a: Gain, b: Gain) -> bool:
    """Return whether two pooled gains have the same teachers and seeds, so that each combination has its pair."""
    seeds = [[(group.shared.teacher_key, group.seeds) for group in gain.groups] for gain in (a, b)]
    return seeds[0] == seeds[1]
