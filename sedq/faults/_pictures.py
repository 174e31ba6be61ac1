"""The pictures of a campaign's report. Needs matplotlib, which is imported when it is used."""

from __future__ import annotations

import base64
import html
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq.faults._residuals import Residuals
from sedq.faults._summary import OUTCOMES

__all__ = ["HEADINGS", "bits", "damage", "outcomes", "picture", "require_matplotlib", "residuals", "roc"]

Array = NDArray[Any]
SCALE = (1e-5, 1e6)  # of residuals
HEADINGS = ("masked", "detected", "benign", "small", "missed (SDC)", "wrong", "crash", "hang", "false alarm")
COLOURS = {
    "masked": "#d9d9d9",
    "tolerated": "#b8c4ce",
    "detected_benign": "#9ecae1",
    "detected_consequential": "#2b6ca3",
    "sdc": "#c0392b",
    "miscorrected": "#7b241c",
    "crash": "#e08e0b",
    "hang": "#f5c76b",
    "false_alarm": "#8e44ad",
}
NAMES = dict(zip(OUTCOMES, HEADINGS, strict=True))


def require_matplotlib() -> Any:
    """Return `matplotlib.figure.Figure`, which needs no display and no global state.

    Raises
    ------
    ValueError
        If matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("report: needs matplotlib, which isn't installed: pip install sedq[report]") from None
    return Figure


def picture(alternative: str, caption: str, draw: Callable[[Any], None], height: float) -> str:
    """Return a figure of HTML with a picture inside it, which `draw` draws."""
    figure = require_matplotlib()(figsize=(10, height), dpi=110, layout="constrained")
    draw(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(alternative, quote=True)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _bare(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def outcomes(figure: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draw shares of outcomes, a bar for each site."""
    ax = _bare(figure.subplots())
    left, places = np.zeros(len(rows)), np.arange(len(rows))
    for name, colour in COLOURS.items():
        share = np.array([row["outcomes"][name] / row["trials"] for row in rows])
        if share.any():
            ax.barh(places, share, left=left, color=colour, label=NAMES[name], height=0.75)
        left += share
    ax.set_yticks(places, [row["site"] for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of trials")
    ax.legend(ncols=9, loc="lower center", bbox_to_anchor=(0.45, 1), frameon=False, fontsize="small")


def bits(figure: Any, groups: dict[str, list[dict[str, Any]]]) -> None:
    """Draw rates of detection by bit, a panel for each site with the number of consequential faults."""
    width = 3
    axes = list(figure.subplots(-(-len(groups) // width), width, squeeze=False, sharey=True).flat)
    for ax, (site, rows) in zip(axes, groups.items(), strict=False):
        at = np.array([row["bit"] for row in rows])
        rate = np.array([row["detection"]["rate"] for row in rows])
        ends = np.array([[row["detection"]["low"], row["detection"]["high"]] for row in rows]).T
        _bare(ax).errorbar(
            at, rate, np.abs(ends - rate), fmt="o", markersize=3, linewidth=0.9, color=COLOURS["detected_consequential"]
        )
        ax.set_title(f"{site} (n = {sum(row['consequential'] for row in rows):,})", fontsize="medium")
        ax.set_ylim(-0.04, 1.06)
        ax.set_xlim(-1, next(w for w in (8, 32, 64) if at.max() < w))
        ax.set_xlabel("bit")
    for ax in axes[::width]:
        ax.set_ylabel("noticed, and right")
    for ax in axes[len(groups) :]:
        ax.set_visible(False)


def roc(figure: Any, found: Residuals) -> None:
    """Draw detection and false alarms against the threshold, and one against the other."""
    left, right = figure.subplots(1, 2)
    sound, struck = _shown(found.sound), _shown(found.struck[found.consequential])
    every = np.unique(np.concatenate([sound, struck]))
    alarms, seen = _beyond(sound, every), _beyond(struck, every)
    _bare(left).plot(every, seen, color=COLOURS["detected_consequential"], label="detected, of consequential faults")
    left.plot(every, alarms, color=COLOURS["sdc"], label="false alarms, of calls without a fault")
    left.axvline(1, color="0.4", linestyle=":", linewidth=1, label="rounding bound")
    limits = found.limits[np.isfinite(found.limits) & (found.limits > 0)]
    if limits.size:
        low, middle, high = np.quantile(limits, [0.05, 0.5, 0.95])
        left.axvline(middle, color="0.2", linewidth=1, label="threshold in force (5 % to 95 % of bags, and their median)")
        left.axvspan(low, high, color="0.85", linewidth=0)
    left.set_xscale("log")
    left.set_xlabel("threshold, in multiples of the rounding bound")
    left.set_ylabel("share")
    left.set_ylim(-0.03, 1.03)
    least = 1 / max(1, len(sound))
    right.plot(np.maximum([1, *alarms], least), [1, *seen], color=COLOURS["detected_consequential"], drawstyle="steps-pre")
    points = [("rounding bound", (found.sound > 1).mean(), (found.struck[found.consequential] > 1).mean(), "0.4")]
    if limits.size:
        points += [("threshold in force", found.sound_over.mean(), found.struck_over[found.consequential].mean(), "0.1")]
    for label, x, y, colour in points:
        right.plot(max(x, least), y, "o" if colour == "0.1" else "s", color=colour, markersize=6, label=label)
    _bare(right).set_xscale("log")
    right.set_xlabel(f"rate of false alarms; none of {len(sound):,} stands at the left end")
    right.set_ylabel("rate of detection")
    right.set_xlim(least / 1.3, 1.3)
    right.set_ylim(-0.03, 1.03)
    right.legend(frameon=False, fontsize="small", loc="lower right")
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize="small", loc="outside upper center", ncols=2)


def _shown(values: Array) -> Array:
    """Return residuals in order, those off the scale at its ends."""
    return np.sort(np.clip(values, *SCALE))


def _beyond(values: Array, thresholds: Array) -> Array:
    """Return the share of sorted values above each threshold."""
    return 1 - np.searchsorted(values, thresholds, side="right") / max(1, len(values))


def residuals(figure: Any, found: Residuals) -> None:
    """Draw the shares of residuals beyond a value, and the fitted tail."""
    ax = _bare(figure.subplots())
    named = (
        ("without a fault", found.sound, "0.5"),
        ("fault without consequence", found.struck[~found.consequential], COLOURS["detected_benign"]),
        ("consequential fault", found.struck[found.consequential], COLOURS["sdc"]),
    )
    for label, values, colour in named:
        if values.size:
            ordered = _shown(values)
            share = np.arange(len(values), 0, -1) / len(values)
            ax.step(ordered, share, where="post", color=colour, label=f"{label} ({len(values):,})")
    least = 0.1 / max(1, len(found.sound))
    if found.tail is not None:
        at = np.geomspace(found.tail.level, 10, 400)
        rate = found.tail.rate(at)
        label = f"Pareto tail, shape {found.tail.shape:.2f}, p = {found.tail.p_value:.2f}"
        ax.plot(at[rate > 0], rate[rate > 0], color="0.2", linestyle="--", label=label)
    ax.axvline(1, color="0.4", linestyle=":", linewidth=1, label="rounding bound")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(least, 1.5)
    ax.set_xlabel("largest residual of a call, in multiples of the rounding bound; those off the scale stand at its ends")
    ax.set_ylabel("share of calls beyond")
    figure.legend(frameon=False, fontsize="small", loc="outside upper center", ncols=3)


def damage(figure: Any, sizes: Iterable[dict[str, Any]]) -> None:
    """Draw how many results changed by how much without protection, and how many were returned wrong by how much with it."""
    ax = _bare(figure.subplots())
    total: dict[int, Array] = defaultdict(lambda: np.zeros(3, np.int64))
    for row in sizes:
        total[row["decade"]] += [row["unprotected"], row["returned"], row["promised"]]
    at = np.array(sorted(total))
    plain, returned, promised = np.array([total[d] for d in at]).T
    ax.bar(at - 0.27, plain, 0.27, color="#b8c4ce", label=f"unprotected: results changed ({plain.sum():,})")
    ax.bar(at, returned, 0.27, color=COLOURS["hang"], label=f"protected: wrong results returned ({returned.sum():,})")
    label = f"protected: of these under faults that are promised to be seen ({promised.sum():,})"
    ax.bar(at + 0.27, promised, 0.27, color=COLOURS["sdc"], label=label)
    ax.set_yscale("symlog", linthresh=1)
    step = -(-(at[-1] - at[0] + 1) // 16)  # labels that don't overlap
    shown = [d for d in range(at[0], at[-1] + 1) if (d - at[0]) % step == 0]
    ax.set_xticks(shown, [f"$10^{{{d}}}$" if d > -12 else "less" for d in shown], fontsize="small")
    ax.set_xlabel("largest change of the result, by decade")
    ax.set_ylabel("trials")
    ax.legend(frameon=False, fontsize="small")
