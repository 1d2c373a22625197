# SPDX-License-Identifier: Apache-2.0
"""A report as a picture: bars for what was compared, whiskers from the lowest to the highest round."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "eucora", "font.size": 9}

from matplotlib import pyplot as plt  # noqa: E402 - the way of drawing is chosen before

OURS, THEIRS = "#1f5f8b", "#b8c4cc"


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the SVG: one plot for each comparison of a report's document."""
    comparisons = document["comparisons"]
    heights = [len(each["figures"]) + 1 for each in comparisons]
    figure, plots = plt.subplots(
        len(comparisons),
        figsize=(8, 0.32 * sum(heights) + 0.5 * len(comparisons)),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
        layout="constrained",
    )
    for plot, comparison in zip(plots[:, 0], comparisons, strict=True):
        draw_comparison(plot, comparison)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def draw_comparison(plot: Any, comparison: dict[str, Any]) -> None:
    """One bar each, the median; with its ratio to the one all stand beside."""
    names = list(comparison["figures"])[::-1]
    rounds = [comparison["figures"][name] for name in names]
    medians = [statistics.median(each) for each in rounds]
    spread = [
        [middle - min(each) for middle, each in zip(medians, rounds, strict=True)],
        [max(each) - middle for middle, each in zip(medians, rounds, strict=True)],
    ]
    colours = [OURS if "this product" in name else THEIRS for name in names]
    plot.barh(names, medians, xerr=spread, color=colours, error_kw={"elinewidth": 0.8, "capsize": 2})
    labels = [
        f"{middle:,.4g}  ({comparison['ratios'][name]:.3g} x)"
        for name, middle in zip(names, medians, strict=True)
    ]
    for place, (label, each) in enumerate(zip(labels, rounds, strict=True)):
        plot.text(max(each), place, f"  {label}", va="center", fontsize=8)
    plot.set_title(f"{comparison['title']} ({comparison['unit']})", loc="left", fontsize=9)
    plot.set_xlim(0, max(max(each) for each in rounds) * 1.35)
    for side in ("top", "right"):
        plot.spines[side].set_visible(False)
