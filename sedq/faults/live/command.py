"""The command line of live campaigns."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sedq._files import replacing
from sedq.faults import live
from sedq.faults.live.strikes import KINDS
from sedq.faults.live.targets import OPERATORS

__all__ = ["add_options", "main"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a live campaign to a parser."""
    parser.add_argument("--operator", choices=OPERATORS, default="qlinear", help="what is struck (default qlinear)")
    parser.add_argument("--check", default="exact", help="its level of checking (default exact)")
    parser.add_argument("--trials", type=int, default=1000, help="flips (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the flips (default 0)")
    parser.add_argument(
        "--registers", nargs="+", choices=KINDS, help="classes to strike (default general, vector and, where present, mask)"
    )
    parser.add_argument("--dummy", action="store_true", help="flip nothing: nothing may be reported")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append each trial to FILE; go on with it if it exists")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")


def main(options: argparse.Namespace) -> int:
    """Run a live campaign and print its figures; 0, or 1 if a flip was reported where there was none."""
    result = live.run(
        options.operator,
        options.check,
        trials=options.trials,
        seed=options.seed,
        registers=None if options.registers is None else tuple(options.registers),
        dummy=options.dummy,
        log=options.log,
        progress=sys.stderr,
    )
    print(result.table())
    if options.json is not None:
        with replacing(options.json) as stream:
            stream.write((json.dumps(result.to_json(), indent=2) + "\n").encode())
    return 0 if result.passed else 1
