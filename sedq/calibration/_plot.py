"""The picture of a calibration. Draws on axes that the caller made, so that nothing here imports a plotting library."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sedq.calibration._result import ThresholdCalibration

__all__ = ["draw"]


def draw(calibration: ThresholdCalibration, ax: Any) -> Any:
    """Draw the share of the units beyond each residual, the tail, the threshold and the target."""
    x, beyond = np.array(calibration.curve).reshape(-1, 2).T
    shown = beyond > 0
    ax.step(x[shown], beyond[shown], where="post", color="C0", label=f"samples ({calibration.samples:,})")
    right = float(x.max()) if x.size else 1.0
    finite = calibration.threshold < math.inf
    if finite:
        right = max(right, calibration.threshold)
    if calibration.tail is not None:
        at = np.linspace(calibration.tail.level, 1.05 * right, 200)
        rate = calibration.tail.rate(at)
        label = f"Pareto tail, shape {calibration.tail.shape:.2f}, p = {calibration.tail.p_value:.2f}"
        ax.plot(at[rate > 0], rate[rate > 0], color="C1", linestyle="--", label=label)
    ax.axhline(calibration.target_fpr, color="0.5", linewidth=0.8, linestyle=":", label=f"target {calibration.target_fpr:g}")
    if finite:
        low, high = calibration.fpr_interval
        floor = min(calibration.target_fpr, 1 / max(1, calibration.samples)) / 10
        ax.axvline(calibration.threshold, color="C3", linewidth=0.8, label=f"threshold {calibration.threshold:.3g}")
        ax.plot(
            [calibration.threshold] * 2, [max(low, floor), high], color="C3", linewidth=3, label="interval of the rate there"
        )
    ax.set_yscale("log")
    ax.set_ylim(min(calibration.target_fpr, 1 / max(1, calibration.samples)) / 10, 1.5)
    ax.set_xlim(0, 1.08 * right)
    ax.set_xlabel("residual / (u · magnitude · √g(n))")
    ax.set_ylabel(f"share of {calibration.unit}{'es' if calibration.unit == 'batch' else 's'} beyond")
    ax.legend(frameon=False, fontsize="small", loc="lower left")
    return ax
