"""What a campaign of some size can and can't show."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CampaignPlan"]


@dataclass(frozen=True)
class CampaignPlan:
    """What a campaign of some size can and can't show.

    Attributes
    ----------
    trials, strata : int
        Trials in all, and pairs of site and model that share them evenly.
    per_stratum : int
        Trials of the smallest stratum.
    smallest_rate : float
        If nothing is missed in a stratum, and all of its faults are consequential, the rate of misses is below this.
    smallest_rate_overall : float
        The same over all trials.
    width : float
        Of the interval of a rate of one half in a stratum: the widest there is.
    confidence : float
        Of all of these.
    silent : tuple of str
        Sites where no fault is consequential: words that only the checks read, and parameters at rest, which ``"off"``
        verifies too when it derives others from them. Nothing can be shown there of what is missed.
    """

    trials: int
    strata: int
    per_stratum: int
    smallest_rate: float
    smallest_rate_overall: float
    width: float
    confidence: float
    silent: tuple[str, ...] = ()

    def __str__(self) -> str:
        silent = (
            f". Nothing can be shown at {', '.join(self.silent)}: no fault is consequential there" if self.silent else ""
        )
        return (
            f"{self.trials} trials in {self.strata} strata, at least {self.per_stratum} each. At {self.confidence:.0%} "
            f"confidence: 0 missed in a stratum shows a rate below {self.smallest_rate:.2g}, 0 missed in all below "
            f"{self.smallest_rate_overall:.2g}, if every fault is consequential; intervals are at most {self.width:.2g} "
            f"wide{silent}"
        )
