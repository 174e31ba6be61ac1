"""``sedq campaign``: inject faults into a model and say what its protection is worth."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sedq.commands import _live as live
from sedq.datasets import load_msweb
from sedq.datasets._requests import read_requests
from sedq.faults import _pictures
from sedq.faults._campaign import Campaign
from sedq.faults._result import CampaignResult
from sedq.faults._sites import site_names
from sedq.faults._worker import InvalidRun
from sedq.faults.live import LiveError
from sedq.files._replacing import check_distinct, check_target
from sedq.models import DLRM

__all__ = ["add_parser", "kept", "run"]

TRIALS = 10_000
BATCHES = 1000
CHUNK = 100  # trials of a worker, which an interrupt waits for
DEFAULTS = {"trials": TRIALS, "batch": 2, "workers": 1, "check": "exact"}
ENDS = {
    "holds": (0, "goal holds"),
    "fails": (1, "goal DOES NOT HOLD"),
    "unknown": (2, "goal: CAN'T TELL, too few faults were consequential to show it"),
}
LIVE_ONLY = ("operator", "registers", "dummy")

EPILOG = (
    "Exit status: 0 if the goal holds, 1 if it doesn't, 2 if it can't be told because too few faults were consequential, or "
    "if the run is invalid (wrong arguments, a result without a fault that changed, the log of another campaign). The "
    "goal: no fault that the check promises to see was missed or answered wrongly, which must show a rate below 10 %, and "
    "no alarm without one; with --goal RATE, the rate of consequential faults that were missed is no larger, at 95 % "
    "confidence. With --live 1 if something was reported where nothing was flipped, or, with --goal RATE, if the rate of a "
    "class of registers may be larger: the upper end of its interval at 95 % is compared. 130 if interrupted."
)


def add_parser(commands: Any) -> None:
    """Add the command to those of the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "campaign",
        help="inject many faults and count what becomes of them",
        description="Inject faults into the packaged model or another, or with --live into the registers of a processor at "
        "work, and count what becomes of them.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="a file that DLRM.save wrote (default: the packaged model)"
    )
    parser.add_argument(
        "--requests",
        type=Path,
        metavar="FILE",
        help="what the model answers, as for sedq calibrate (default: packaged requests for the packaged model, synthetic "
        "ones for another)",
    )
    parser.add_argument("--trials", type=int, metavar="N", help=f"how many faults (default {TRIALS})")
    parser.add_argument("--sites", nargs="+", metavar="SITE", help="where they strike (default: everywhere)")
    parser.add_argument("--list-sites", action="store_true", help="say which sites there are, and end")
    parser.add_argument(
        "--check",
        metavar="LEVEL",
        help="level of checking: exact (default) or full; with --live also off, and for bags digest or threshold",
    )
    parser.add_argument("--goal", type=float, metavar="RATE", help="largest rate of missed consequential faults")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default 0)")
    parser.add_argument("--batch", type=int, metavar="N", help="requests per trial (default 2)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default 1)")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="log of the trials, to which a run that ended is resumed"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    live.add_options(parser)


def _packaged(batch: int) -> tuple[DLRM, list[Any]]:
    data = load_msweb()
    c, r = data.calibration, data.heldout
    model = DLRM(data.bottom, data.tables, data.top, data.modes)
    model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)
    # one batch in eight: as many different requests as trials can tell apart
    return model, [r.batch(i, i + batch) for i in range(0, len(r), 8 * batch)]


def _given(path: Path, batch: int) -> list[Any]:
    """Return the batches of a file, evenly spread ones if there are more than a campaign tells apart."""
    requests = read_requests(path)
    if not len(requests):
        raise ValueError(f"--requests: got {path}, expected one request at least")
    starts = range(0, len(requests), batch)
    count = min(len(starts), BATCHES)
    parts = [requests.batch(i, i + batch) for i in (starts[k * len(starts) // count] for k in range(count))]
    return [(part.dense, part.indices, part.offsets) for part in parts]  # without labels, which such a file doesn't have


def _synthetic(model: DLRM, batch: int, seed: int, count: int = 256) -> list[Any]:
    """Make requests for any model: normal dense features, 1 to 20 uniform rows per bag."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        dense = rng.normal(size=(batch, model.bottom[0].packed.shape[1])).astype(np.float32)
        lengths = rng.integers(1, 21, (len(model.bags), batch))
        indices = [rng.integers(0, bag.shape[0], n.sum()) for bag, n in zip(model.bags, lengths, strict=True)]
        made.append((dense, indices, [np.concatenate([[0], np.cumsum(n)]) for n in lengths]))
    return made


def _check_options(options: argparse.Namespace) -> None:
    for name in ("report", "json"):
        check_target(f"--{name}", getattr(options, name))
    if options.resume is not None and not options.resume.exists():  # one that exists is appended to where it is
        check_target("--resume", options.resume)
    check_distinct({f"--{name}": getattr(options, name) for name in ("model", "requests", "resume", "report", "json")})
    others = ("model", "requests", "sites", "list_sites", "batch", "workers", "report") if options.live else LIVE_ONLY
    for name in others:
        value = getattr(options, name)
        if value is not None and value is not False:
            wanted = "none with --live" if options.live else "it with --live"
            raise ValueError(f"--{name.replace('_', '-')}: got {value!r}, expected {wanted}")
    if options.live:
        return
    for name, default in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    for name, least in (("trials", 1), ("batch", 1), ("workers", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: got {getattr(options, name)}, expected {least} or more")
    if options.check not in ("exact", "full"):
        raise ValueError(f"--check: got {options.check!r}, expected 'exact' or 'full'")
    if options.goal is not None and not 0 < options.goal < 1:
        raise ValueError(f"--goal: got {options.goal}, expected a rate between 0 and 1")
    if options.report is not None:
        _pictures.require_matplotlib()


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    _check_options(options)
    if options.live:
        return _live(options)
    try:
        return _campaign(options)
    except (ValueError, OSError):
        raise
    except Exception as error:  # whatever it is, it says nothing of the goal
        what = "" if isinstance(error, (InvalidRun, BrokenExecutor)) else f"{type(error).__name__}: "
        print(f"sedq: the run is invalid: {what}{error}", file=sys.stderr)
        return 2


def kept(options: argparse.Namespace) -> str:
    """Say what an interrupted run leaves; nothing for a command that isn't a campaign."""
    if options.command != "campaign":
        return ""
    return "; no log was kept" if options.resume is None else f"; go on with --resume {options.resume}"


def _campaign(options: argparse.Namespace) -> int:
    model, inputs = _packaged(options.batch) if options.model is None else (DLRM.load(options.model), None)
    if options.requests is not None:
        inputs = _given(options.requests, options.batch)
    elif inputs is None:
        inputs = _synthetic(model, options.batch, options.seed)
    try:
        if options.list_sites:
            print("\n".join(site_names(model, inputs, options.check)))
            return 0
        campaign = Campaign(model, inputs, sites=options.sites, rng=options.seed, check=options.check)
    except (IndexError, TypeError) as error:
        if options.requests is None:
            raise
        raise ValueError(f"--requests: got {options.requests}, which the model refuses: {error}") from None
    if options.goal is None and not campaign.promises():
        raise ValueError(f"--goal: got none, expected a rate: check={options.check!r} promises to see none of these faults")
    print(campaign.plan(options.trials), file=sys.stderr)
    result = _results(campaign, options)
    if options.json is not None:
        result.to_json(options.json, options.goal)
    if options.report is not None:
        result.to_html(options.report, options.goal, _command(options))
    print(result.table())
    status, text = ENDS[result.goal_of(options.goal)["state"]]
    print(text)
    return status


def _command(options: argparse.Namespace) -> str:
    """Return the command that makes the same run, defaults written out."""
    words: list[object] = ["sedq", "campaign"]
    for name in ("model", "requests", "trials", "sites", "check", "goal", "seed", "batch"):
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return shlex.join(map(str, words)) + ("" if options.model else "  # the packaged model")


def _live(options: argparse.Namespace) -> int:
    try:
        return live.run(options)
    except (LiveError, InvalidRun) as error:
        print(f"sedq: the run is invalid: {error}", file=sys.stderr)
        return 2


def _results(campaign: Campaign, options: argparse.Namespace) -> CampaignResult:
    if options.workers == 1:
        return campaign.run(options.trials, resume=options.resume, progress=True)
    count = min(options.workers, 4 * (os.cpu_count() or 1))
    # an interrupt is for this process, which waits for what its workers are at
    with ProcessPoolExecutor(count, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as executor:
        return campaign.run(options.trials, executor=executor, resume=options.resume, progress=True, chunk=CHUNK)
