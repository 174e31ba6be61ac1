"""Command line: ``sedq demo``, ``sedq calibrate``, ``sedq live`` and ``sedq info``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sedq import _info, demo
from sedq._files import check_target, replacing
from sedq.calibration import _command as calibrate
from sedq.faults.live import command as live

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sedq", description="Quantised inference with soft-error detection built in.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "demo",
        help="answer real requests while faults are injected",
        description="Answer the packaged held-out requests with the packaged model, without faults and with, unprotected "
        "and protected. Exit status 1 if a consequential fault was missed or a false alarm raised.",
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    run.add_argument("--seed", type=int, default=0, help="of the faults (default 0)")
    calibrate.add_parser(commands)
    struck = commands.add_parser(
        "live",
        help="flip bits in the registers of a live processor",
        description="Run an operator in another process, flip one bit of one register at a random moment, and classify "
        "what becomes of it: masked, detected, detected without effect, missed, crash or hang. Linux on x86-64.",
    )
    live.add_options(struck)
    commands.add_parser("info", help="versions, instruction sets, threads and CPU")
    return parser


def _demo(options: argparse.Namespace) -> int:
    check_target("--json", options.json)
    if options.seed < 0:
        raise ValueError(f"--seed: got {options.seed}, expected 0 or more")
    result = demo.run(seed=options.seed, progress=sys.stderr)
    print(demo.table(result))
    if options.json is not None:
        with replacing(options.json) as stream:
            stream.write((json.dumps(result, indent=2) + "\n").encode())
    return 0 if demo.passed(result) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of ``sys.argv[1:]``.

    Returns
    -------
    int
        0 if all went well; 1 if a demonstration or a calibration failed; 2 for wrong arguments or an invalid run.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "demo":
            return _demo(options)
        if options.command == "calibrate":
            return calibrate.run(options)
        if options.command == "live":
            check_target("--json", options.json)
            return live.main(options)
        _info.show_versions()
    except (ValueError, OSError) as error:
        print(f"sedq: {error}", file=sys.stderr)
        return 2
    return 0
