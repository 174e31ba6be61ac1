"""The report of a campaign: one HTML file with its pictures inside, for a reader who has nothing else at hand."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sedq import _statistics
from sedq.faults import _pictures
from sedq.faults._pictures import HEADINGS, picture
from sedq.faults._residuals import Residuals
from sedq.faults._summary import rate_text

__all__ = ["render"]

MEANINGS = {
    "masked": "the result is the same in every bit, nothing was noticed",
    "detected": "noticed; unprotected the result would have changed",
    "benign": "noticed, although unprotected the result would not have changed by more than the tolerance",
    "small": "not noticed; the result changed by no more than the tolerance",
    "missed (SDC)": "not noticed, and the result is wrong: silent data corruption",
    "wrong": "noticed, and yet the result that was returned is wrong",
    "crash": "the process ended",
    "hang": "the call did not end in time",
    "false alarm": "noticed, although no word had changed",
}
RUNGS = {
    "none": "noted, and left as it was",
    "recompute": "computed again by another path",
    "heal": "memory repaired, then computed again",
    "replay": "an earlier stage of the model computed again",
    "raise": "SoftErrorDetected raised",
    "refuse": "arguments refused, with an error that names them",
}
VERDICTS = {
    "holds": ("holds", "The goal holds."),
    "fails": ("fails", "The goal does not hold."),
    "unknown": ("unknown", "Whether the goal holds can't be told: too few faults were consequential."),
}
STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;max-width:1200px;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.6rem;margin:0 0 .2rem}
h2{font-size:1.15rem;margin:2.2rem 0 .4rem;border-bottom:1px solid #d5dce3;padding-bottom:.2rem}
p{margin:.4rem 0 .8rem}
table{border-collapse:collapse;font-size:12px;width:100%;margin:.5rem 0}
th,td{padding:.2rem .4rem;text-align:right;border-bottom:1px solid #e6ebf0;white-space:nowrap}
th{font-weight:600;border-bottom:2px solid #9fb0c0}
td:first-child,th:first-child{text-align:left}
tr.total td{font-weight:600;border-top:2px solid #9fb0c0}
td.bad{color:#b02a1d;font-weight:600}
td.none{color:#a5b1bd}
.verdict{padding:.8rem 1rem;border-left:6px solid;margin:1rem 0;background:#f5f8fa}
.holds{border-color:#2e7d4f}
.fails{border-color:#b02a1d}
.unknown{border-color:#e08e0b}
.scroll{overflow-x:auto}
figure{margin:.6rem 0}
figure img{max-width:100%}
figcaption,.note{font-size:13px;color:#51606f}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:13px}
dt{font-weight:600}
dd{margin:0;overflow-wrap:anywhere}
@media print{body{max-width:none;margin:0}h2{break-after:avoid}figure,tr{break-inside:avoid}}
"""


# ---- text


def _cell(value: object, kind: str = "") -> str:
    return f'<td class="{kind}">{html.escape(str(value))}</td>' if kind else f"<td>{html.escape(str(value))}</td>"


def _row(row: dict[str, Any], name: str) -> str:
    cells = [_cell(name), _cell(f"{row['trials']:,}")]
    for outcome, count in row["outcomes"].items():
        bad = outcome in ("sdc", "miscorrected", "false_alarm")
        cells.append(_cell(f"{count:,}", "none" if not count else "bad" if bad else ""))
    return "".join([*cells, _cell(rate_text(row)), _cell(*_promised(row["promised"]))])


def _promised(counts: dict[str, Any]) -> tuple[str, str]:
    if not counts["trials"]:
        return "", ""
    return f"{counts['missed']:,} of {counts['consequential']:,}", "bad" if counts["missed"] else ""


def _table(rows: Sequence[dict[str, Any]], by: str, total: dict[str, Any]) -> str:
    head = "".join(
        f"<th>{h}</th>"
        for h in (by, "trials", *HEADINGS, "consequential faults noticed, and answered rightly", "promised, missed")
    )
    body = "".join(f"<tr>{_row(r, r[by])}</tr>" for r in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}'
        f'<tr class="total">{_row(total, "all")}</tr></tbody></table></div>'
    )


def _verdict(document: dict[str, Any]) -> str:
    goal, check = document["goal"], html.escape(document["campaign"]["check"])
    wanted = (
        f"no fault that check=&quot;{check}&quot; promises to see is missed, and no alarm is raised without a fault"
        if goal["rate"] is None
        else f"at most {goal['rate']:.2g} of all consequential faults are missed, and no alarm is raised without a fault"
    )
    alarms = (
        f"{goal['false_alarms']:,} false alarms in {goal['fault_free']:,} calls without a fault (rate &lt; "
        f"{goal['false_alarm_bound']:.2g})."
    )
    found = (
        f"{goal['missed']:,} of {goal['consequential']:,} such consequential faults were missed or wrongly corrected, which "
        f"bounds the rate by {goal['missed_bound']:.2g} at {document['confidence']:.0%} confidence; {alarms}"
    )
    if not goal["consequential"]:
        found = f"no such fault was consequential, which shows nothing of what is missed. {alarms}"
    if goal["rate"] is None and not goal["trials"]:
        found = f"none of these faults is promised to be seen. {alarms}"
    state, word = VERDICTS[goal["state"]]
    return f'<div class="verdict {state}"><strong>{word}</strong> Goal: {wanted}.<br>Found: {found}</div>'


def _listed(document: dict[str, Any], logged: bool) -> str:
    columns = ("trial", "site", "model", "part", "element", "bit", "persistent", "outcome", "damage", "error")
    rows = document["listed"][:40]
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{c}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(_cell(f"{r[c]:.3g}" if isinstance(r[c], float) else r[c]) for c in columns) + "</tr>" for r in rows
    )
    left = len(document["listed"]) + document["unlisted"] - len(rows)
    where = "are in the log" if logged else "aren't listed: run it with a log (--resume, resume=) to have them"
    more = f"<p class=note>{left:,} more {where}.</p>" if left else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}'


def _definitions(pairs: Iterable[tuple[str, object]]) -> str:
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in pairs) + "</dl>"


def _auc(document: dict[str, Any]) -> str:
    text = ""
    for name, faults in (("all", "these faults"), ("promised", "these faults that the check promises to see")):
        found = document["auc"][name]
        if found is not None:
            text += (
                f"<p>Area under the ROC curve if every batch met one of {faults}: {found['without_faults']:.4f} without "
                f"faults, {found['unprotected']:.4f} unprotected, {found['protected']:.4f} protected.</p>"
            )
    return text and f"{text}<p class=note>A request without an answer counts as a score of 0.5.</p>"


def _seen(seen: int, n: int) -> str:
    """State a rate of detection: its interval, or a bound where nothing was missed."""
    if seen == n:
        return f"none missed (rate of misses &lt; {_statistics.upper_bound(0, n):.2g})"
    low, high = _statistics.interval(seen, n)
    return f"{seen / n:.1%} detected ({low:.1%} to {high:.1%})"


def _recovery(total: dict[str, Any]) -> str:
    """Say how detections ended."""
    seen = sum(total["rungs"].values())
    if not seen:
        return ""
    lines = [(rung, f"{count:,} ({count / seen:.1%})") for rung, count in total["rungs"].items()]
    return (
        "<h2>What detections led to</h2>"
        f"<p>{seen:,} faults were noticed; {total['corrected']:,} of these calls returned the result without a fault, in "
        "every bit. By the last rung of recovery:</p>" + _definitions((r, f"{n}: {RUNGS[r]}") for r, n in lines)
    )


def _in_force(found: Residuals) -> str:
    if not found.limits.size:
        return ""
    n, alarms, over = len(found.sound), int(found.sound_over.sum()), found.struck_over[found.consequential]
    return (
        f" At the threshold in force, which is {np.median(found.limits):.2g} of that bound in the median of bags: "
        f"{alarms:,} false alarms (rate &lt; {_statistics.upper_bound(alarms, n):.2g}), {_seen(int(over.sum()), len(over))}."
    )


def _bags(found: Residuals | None) -> str:
    if found is None or not found.consequential.any() or not (found.struck > 0).any():
        return ""
    n, alarms = len(found.sound), int((found.sound > 1).sum())
    struck = found.struck[found.consequential]
    text = (
        f"<p>The threshold check of pooled sums alone, on {n:,} calls without a fault and {len(struck):,} consequential "
        "flips of one bit in float accumulators or codes of rows (a change of more than 1e-4 of the largest output). At the "
        f"rounding bound: {alarms:,} false alarms (rate &lt; {_statistics.upper_bound(alarms, n):.2g}), "
        f"{_seen(int((struck > 1).sum()), len(struck))}.{_in_force(found)}</p>"
    )
    tail = "" if found.tail is None else " Dashed: the generalised Pareto tail fitted to calls without a fault."
    return (
        "<h2>Thresholds of embedding bags</h2>"
        + text
        + picture(
            "Detection and false alarms against the threshold",
            "Left: what a threshold detects and what it raises. Right: the same, one against the other, false alarms on a "
            "logarithmic axis that begins at one in as many calls as there are.",
            lambda f: _pictures.roc(f, found),
            3.6,
        )
        + "<h2>Residuals</h2>"
        + picture(
            "Shares of residuals beyond a value",
            f"Share of calls whose largest residual is beyond a value.{tail}",
            lambda f: _pictures.residuals(f, found),
            3.6,
        )
    )


def _unsized(left: dict[str, int]) -> str:
    """Say what the picture of damage shows, and what it leaves out."""
    return (
        "Sizes of changes, without faults of the detector itself: of the unprotected results, and of what protected calls "
        "returned, each by its own size. What was noticed was answered again, or refused. Left out, for they gave nothing "
        f"finite: {left['unprotected']:,} unprotected results (not a number, infinite, or none at all), and "
        f"{left['returned']:,} that were returned with protection."
    )


def render(document: dict[str, Any], residuals: Residuals | None, how: dict[str, str], *, logged: bool) -> str:
    """Return a report as HTML that refers to no other file.

    Parameters
    ----------
    document : dict
        As `CampaignResult.document` returns.
    residuals : Residuals or None
        Of pooled sums; None for a target without tables.
    how : dict of str
        How the run was made, for those who want to run it again.
    logged : bool
        Whether there is a log of all trials.

    Returns
    -------
    str
    """
    campaign, sites = document["campaign"], document["sites"]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in document["bits"]:
        if row["consequential"]:
            groups[row["site"]].append(row)
    trials, levels = document["total"]["trials"], f"{document['confidence']:.0%}"
    parts = [
        f"<h1>Fault-injection campaign</h1><p class=note>{trials:,} trials, check=&quot;{html.escape(campaign['check'])}"
        f"&quot;, on {html.escape(campaign['target'])}</p>",
        _verdict(document),
        "<h2>Outcomes by site</h2><p>Each trial answers one batch twice under one fault, unprotected and protected. "
        f"Intervals are two-sided at {levels} (Clopper-Pearson with fewer than 10 seen or missed, Wilson elsewhere); "
        "where nothing was missed, a one-sided bound of the same confidence. Missed is also what was noticed "
        "and yet answered wrongly. At some sites no fault can be consequential: words that only the checks read, and "
        "parameters at rest, which a call without checks verifies too; nothing can be shown there. The last column "
        "counts what was missed or "
        f"wrongly corrected of the consequential faults that check=&quot;{html.escape(campaign['check'])}&quot; promises to "
        "see: of one word, in memory or once in a kernel, in what the check covers. (Stuck: at every visit, whichever code "
        "repeats it.)</p>",
        _table(sites, "site", document["total"]),
        picture("Outcomes by site", "Outcomes by site.", lambda f: _pictures.outcomes(f, sites), 1 + 0.26 * len(sites)),
        _definitions(MEANINGS.items()),
        "<h2>Outcomes by fault model</h2>",
        _table(document["models"], "model", document["total"]),
    ]
    if groups:
        height = 1.9 * -(-len(groups) // 3)
        caption = (
            f"Share of consequential faults of one word that were noticed and answered rightly, by the bit struck, with "
            f"{levels} intervals; n is the number of these faults."
        )
        parts += [
            "<h2>Detection by bit position</h2>",
            picture("Detection by bit", caption, lambda f: _pictures.bits(f, groups), height),
        ]
    parts += [_recovery(document["total"]), _bags(residuals)]
    if document["sizes"]:
        caption = _unsized(document["unsized"])
        parts += [
            "<h2>Damage with and without protection</h2>",
            _auc(document),
            picture("Damage", caption, lambda f: _pictures.damage(f, document["sizes"]), 3.2),
        ]
    parts += [
        "<h2>Missed, wrong, crashed, hung, false alarms</h2>",
        _listed(document, logged),
        "<h2>How to run it again</h2>",
        _definitions(how.items()),
        _definitions((k, ", ".join(map(str, v)) if isinstance(v, list) else v) for k, v in campaign.items()),
        _definitions([("results without faults (SHA-256)", document["reference"]), *document["environment"].items()]),
    ]
    head = f'<meta charset="utf-8"><title>Fault-injection campaign</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
