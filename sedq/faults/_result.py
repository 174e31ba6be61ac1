"""What a campaign found: tables, JSON of a published schema, and a report to hand on."""

from __future__ import annotations

import functools
import json
import os
from importlib import resources
from typing import TYPE_CHECKING, Any

from sedq import _info
from sedq.faults import _summary
from sedq.faults._worker import Record
from sedq.files._replacing import replacing

if TYPE_CHECKING:
    from sedq.faults._campaign import Campaign

__all__ = ["CampaignResult", "schema"]

FORMAT, VERSION = "sedq-campaign", 1
LISTED = 1000  # missed faults that a document lists
HEADINGS = ("trials", "masked", "detected", "benign", "small", "SDC", "wrong", "crash", "hang", "alarm")


def schema() -> dict[str, Any]:
    """Return the JSON schema of what `CampaignResult.to_json` writes.

    Returns
    -------
    dict
        Draft 2020-12.

    Examples
    --------
    >>> from sedq import faults
    >>> faults.schema()["properties"]["format"]
    {'const': 'sedq-campaign'}
    """
    text = resources.files("sedq.faults").joinpath("campaign.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


class CampaignResult:
    """The records of a campaign and what they show.

    Attributes
    ----------
    campaign : Campaign
        Whose it is.
    records : list of dict
        One per trial, in order.
    log : str or None
        File that has all records.
    """

    def __init__(self, campaign: Campaign, records: list[Record], confidence: float = 0.95, log: str | None = None) -> None:
        self.campaign, self.records, self.confidence, self.log = campaign, records, confidence, log

    def __repr__(self) -> str:
        return f"<CampaignResult of {len(self.records)} trials, {self.outcomes['sdc']} SDC, goal {self.goal['state']}>"

    @functools.cached_property
    def outcomes(self) -> dict[str, int]:
        """Number of trials by outcome."""
        counts: dict[str, int] = _summary.row(self.records, self.campaign.spec.check, self.confidence)["outcomes"]
        return counts

    @functools.cached_property
    def goal(self) -> dict[str, Any]:
        """Whether all faults that the check promises to see were seen and none was raised without a fault."""
        return self.goal_of(None)

    def goal_of(self, rate: float | None) -> dict[str, Any]:
        """Say whether a goal holds.

        Parameters
        ----------
        rate : float or None
            The largest rate of missed consequential faults, over all trials; None for none at all of those promised.

        Returns
        -------
        dict
            ``state`` is "holds", "fails", or "unknown" if too few faults were consequential to show it, ``holds`` whether it
            is the first; and the counts that say so. Calls without a fault are one of each batch before the first trial, an
            alarm of which ends the campaign, and the trials in which no word changed.
        """
        quiet = len(self.campaign.spec.inputs)
        return _summary.goal(self.records, self.campaign.spec.check, rate, self.confidence, quiet)

    def document(self, rate: float | None = None) -> dict[str, Any]:
        """Return the figures as `to_json` writes them.

        Parameters
        ----------
        rate : float or None
            As for `goal_of`.

        Returns
        -------
        dict
        """
        worker, labels = self.campaign._worker, self.campaign.labels
        check = self.campaign.spec.check
        missed = [r for r in self.records if r["outcome"] in ("sdc", "miscorrected", "crash", "hang", "false_alarm")]
        missed.sort(key=lambda r: (r["outcome"] != "false_alarm" and not _summary.promised(r, check), r["trial"]))
        by = functools.partial(_summary.by, self.records, check=check, confidence=self.confidence)
        seen = [r for r in self.records if _summary.promised(r, check)]
        flips = [r for r in self.records if r["bit"] >= 0 and _summary.one_word(r)]
        return {
            "format": FORMAT,
            "version": VERSION,
            "environment": {name: str(value) for name, value in _info.versions().items()},
            "campaign": self.campaign.describe(),
            "reference": self.campaign.reference,
            "confidence": self.confidence,
            "goal": self.goal_of(rate),
            "total": _summary.row(self.records, check, self.confidence),
            "sites": by(lambda r: (_summary.stratum(r),), ("site",)),
            "models": by(lambda r: (r["model"],), ("model",)),
            "strata": by(lambda r: (_summary.stratum(r), r["model"]), ("site", "model")),
            "bits": _summary.by(flips, lambda r: (_summary.stratum(r), r["bit"]), ("site", "bit"), check, self.confidence),
            "sizes": _summary.sizes(self.records, check),
            "unsized": _summary.unsized(self.records, check),
            "auc": {
                name: _summary.scores_auc(records, worker.outputs, labels) if labels else None
                for name, records in (("all", self.records), ("promised", seen))
            },
            "listed": [{k: v for k, v in r.items() if k not in ("scores", "answers")} for r in missed[:LISTED]],
            "unlisted": max(0, len(missed) - LISTED),
        }

    def to_json(self, path: str | os.PathLike[str], rate: float | None = None) -> None:
        """Write the figures, without the records of single trials (the log has them).

        Parameters
        ----------
        path : path-like
            Replaced if it exists.
        rate : float or None
            As for `goal_of`.
        """
        with replacing(path) as stream:
            stream.write((json.dumps(self.document(rate), indent=1, allow_nan=False) + "\n").encode())

    def to_html(self, path: str | os.PathLike[str], rate: float | None = None, command: str | None = None) -> None:
        """Write a report: one file that needs no other, pictures included. Needs matplotlib (``sedq[report]``).

        Parameters
        ----------
        path : path-like
            Replaced if it exists.
        rate : float or None
            As for `goal_of`.
        command : str, optional
            What made this run, for those who want to run it again.
        """
        from sedq.faults._report import render

        sizes = [len(output) for output in self.campaign._worker.outputs]
        low, high = min(sizes), max(sizes)
        how = {
            "command": command or f"faults.Campaign(target, inputs, ...).run(trials={len(self.records)})",
            "trials": f"{len(self.records):,}, each with faults.Campaign(...).replay(trial) alone",
            "requests of a batch": str(low) if low == high else f"{low} to {high}",
            "log of all trials": self.log or "none was kept (resume=)",
        }
        text = render(self.document(rate), self.campaign.residuals(), how, logged=self.log is not None)
        with replacing(path) as stream:
            stream.write(text.encode())

    def replay(self, trial: int) -> Record:
        """Run a trial again.

        Parameters
        ----------
        trial : int
            Its number.

        Returns
        -------
        dict
            Its record, equal to that in `records`.
        """
        return self.campaign.replay(trial)

    def table(self) -> str:
        """Return the outcomes by site as a table to be read."""
        lines = [
            f"{'site':<24}"
            + "".join(f"{h:>9}" for h in HEADINGS)
            + f"{'promised':>14}   consequential faults noticed, and answered rightly"
        ]
        check = self.campaign.spec.check
        rows = _summary.by(self.records, lambda r: (_summary.stratum(r),), ("site",), check, self.confidence)
        for row in [*rows, {"site": "all", **_summary.row(self.records, check, self.confidence)}]:
            counts = [row["trials"], *row["outcomes"].values()]
            promised = row["promised"]
            seen = f"{promised['missed']} of {promised['consequential']}" if promised["trials"] else ""
            lines.append(
                f"{row['site']:<24}" + "".join(f"{c:>9}" for c in counts) + f"{seen:>14}   {_summary.rate_text(row)}"
            )
        lines += ["", "promised: missed, or wrongly corrected, of the consequential faults that the check promises to see"]
        lines.append(f"of faults that check={check!r} promises to see: {goal_text(self.goal, self.confidence)}")
        return "\n".join(lines)


def goal_text(goal: dict[str, Any], confidence: float) -> str:
    """State what a goal rests on, with its bounds."""
    n, free = goal["consequential"], goal["fault_free"]
    missed = (
        f"{goal['missed']} of {n} consequential missed or wrong, rate below {goal['missed_bound']:.2g} at {confidence:.0%}"
        if n
        else "none was consequential, which shows nothing"
    )
    return (
        f"{missed}; {goal['false_alarms']} false alarms in {free} calls without a fault, "
        f"rate below {goal['false_alarm_bound']:.2g}"
    )
