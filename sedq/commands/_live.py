"""The part of ``sedq campaign`` that is about live faults."""

from __future__ import annotations

import argparse
import json
import sys

from sedq.faults import live
from sedq.faults.live._strikes import KINDS
from sedq.faults.live._targets import OPERATORS
from sedq.files._replacing import replacing

__all__ = ["add_options", "run"]

TRIALS = 1000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a live campaign to a parser."""
    group = parser.add_argument_group("faults in a live processor (Linux on x86-64)")
    group.add_argument(
        "--live",
        action="store_true",
        help="run an operator in another process, flip a bit of a register at a random moment, and classify what becomes of "
        f"it; with --check, --trials (default {TRIALS}), --goal, --seed, --resume and --json",
    )
    group.add_argument("--operator", choices=OPERATORS, help="what is struck (default qlinear)")
    group.add_argument(
        "--registers", nargs="+", choices=KINDS, help="classes to strike (default general, vector and, where present, mask)"
    )
    group.add_argument("--dummy", action="store_true", help="flip nothing: nothing may be reported")


def run(options: argparse.Namespace) -> int:
    """Run a live campaign and print its figures.

    Returns 0; 1 if a flip was reported where there was none, or too many went unseen for the goal.
    """
    if options.goal is not None and (options.dummy or not 0 < options.goal < 1):
        wanted = "none with --dummy" if options.dummy else "a rate between 0 and 1"
        raise ValueError(f"--goal: got {options.goal}, expected {wanted}")
    result = _result(options)
    if options.json is not None:
        with replacing(options.json) as stream:
            stream.write((json.dumps(result.to_json(), indent=2) + "\n").encode())
    print(result.table())
    if options.goal is None:
        return 0 if result.passed else 1
    holds = result.holds(options.goal)
    print(f"goal {'holds' if holds else 'DOES NOT HOLD'}")
    return 0 if holds else 1


def _result(options: argparse.Namespace) -> live.LiveResult:
    operator = options.operator or "qlinear"
    return live.run(
        operator,
        options.check or ("off" if operator == "probe" else "exact"),
        trials=TRIALS if options.trials is None else options.trials,
        seed=options.seed,
        registers=None if options.registers is None else tuple(options.registers),
        dummy=options.dummy,
        log=options.resume,
        progress=sys.stderr,
    )
