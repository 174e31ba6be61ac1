"""Command line: ``sedq demo`` and ``sedq info``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sedq import _info, demo

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
    commands.add_parser("info", help="versions, instruction sets, threads and CPU")
    return parser


def _write_json(path: Path, document: object) -> None:
    """Write through a temporary file, so that a reader sees all or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(document, stream, indent=2)
            stream.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _demo(options: argparse.Namespace) -> int:
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise ValueError(f"--json: got {options.json}, expected a file in an existing directory")
    result = demo.run(seed=options.seed, progress=sys.stderr)
    print(demo.table(result))
    if options.json is not None:
        _write_json(options.json.absolute(), result)
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
        0 if all went well; 1 if a demonstration failed; 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "demo":
            return _demo(options)
        _info.show_versions()
    except (ValueError, OSError) as error:
        print(f"sedq: {error}", file=sys.stderr)
        return 2
    return 0
