#!/usr/bin/env python
"""Print accuracy and cost of each method as the table of results/methods/README.md.

    scripts/methods_table.py results/methods

The folder holds report/ (of `kdbench-report`) and cost.csv (of scripts/measure_methods.py).
"""

import argparse
from pathlib import Path

import pandas as pd

COLUMNS = (
    "method", "n", "accuracy", "gain", "95 % interval", "p", "s / epoch", "time / ce", "time / feature", "memory / ce",
    "state MB",
)  # fmt: skip


def main() -> None:
    """Print the baseline, then the other groups from the largest gain to the smallest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    gains = pd.read_csv(folder / "report" / "gains.csv", keep_default_na=False, na_values=[""])
    groups = pd.read_csv(folder / "report" / "groups.csv")
    costs = pd.read_csv(folder / "cost.csv").set_index("method")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    (baseline,) = groups[(groups.role == "baseline") & groups.student.isin(gains.student)].itertuples()
    print_row("`ce`", baseline.n, baseline.mean, baseline.std, ["", "", ""], costs.loc["ce"])
    for gain in gains.sort_values("delta", ascending=False).itertuples():
        setting = f" {gain.setting}" if isinstance(gain.setting, str) else ""
        star, p = (" *" if gain.significant else ""), (f"{gain.p_holm:.3f}" if gain.p_holm >= 0.001 else "< 0.001")
        compared = [f"{gain.delta:+.2f}{star}", f"{gain.ci_low:+.2f} to {gain.ci_high:+.2f}", p]
        print_row(f"`{gain.method}`{setting}", gain.n, gain.mean, gain.std, compared, costs.loc[gain.method])


def print_row(method: str, n: int, mean: float, std: float, compared: list[str], cost: pd.Series) -> None:
    """Print a row of the table; `compared` is gain, interval and p."""
    cells = [
        method, str(n), f"{mean:.2f} ({std:.2f})", *compared, f"{cost.seconds_per_epoch:.0f}",
        f"{cost.ratio_to_ce:.2f}", f"{cost.ratio_to_feature:.2f}", f"{cost.saved_ratio_to_ce:.2f}",
        f"{cost.state_megabytes:.1f}",
    ]  # fmt: skip
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
